"""The notebooks run from a clean kernel, show what they showed when they were stored, and are stored clean."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from commands import command

from genlab.data.fetch import present

nbformat = pytest.importorskip("nbformat", reason="nbclient and ipykernel come with the extra `test`")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 600 * 1024  # bytes

every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def runner() -> ModuleType:
    """scripts/run_notebooks.py."""
    spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "scripts" / "run_notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> set[str]:
    """What a cell shows: stdout, stderr, image/png, ...; text that stands for a picture does not count."""
    shown: set[str] = set()
    for output in cell.outputs:
        if output.output_type == "stream":
            shown.add(output.name)
        elif output.output_type == "error":
            shown.add("error")
        else:
            types = set(output.data)
            shown |= types - {"text/plain"} or types
    return shown


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["diffusion_by_hand", "quickstart"]


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data is there, sizes are small, and nothing is left in, or taken from, the user's home."""
    if not present("mnist"):
        pytest.skip("MNIST is not in the cache: python scripts/fetch_data.py mnist")
    monkeypatch.setenv("GENLAB_NOTEBOOK_QUICK", "1")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def compare(path: Path, shown: list[set[str]]) -> None:
    """Each cell shows the kinds of things that it showed when it was stored."""
    for found, stored in zip(shown, code_cells(nbformat.read(path, as_version=4)), strict=True):
        if "if not QUICK:" not in stored.source:
            assert found == kinds(stored), stored.source


def as_commands(folder: Path) -> Callable[..., Any]:
    """In the place of subprocess.Popen: commands of the repository are done in this process, others as ever."""
    popen = subprocess.Popen

    def start(arguments: Any, *args: Any, **options: Any) -> Any:
        if arguments[0] != sys.executable or not arguments[1].endswith(".py"):
            return popen(arguments, *args, **options)
        environment = {"GENLAB_RUNS": os.environ["GENLAB_RUNS"], "CURVES": "1"}
        done = command(*arguments[1:], folder=folder, environment=environment)
        process = SimpleNamespace(stdout=done.output.splitlines(keepends=True), returncode=done.code)
        return contextlib.nullcontext(process)

    return start


@pytest.mark.data
@pytest.mark.usefixtures("mnist")
@every
def test_runs_and_shows_what_is_stored(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, its commands too; the slow test below starts a kernel."""
    import matplotlib
    from IPython.core.displayhook import DisplayHook
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.core.pylabtools import select_figure_formats
    from IPython.utils.capture import capture_output

    results: list[Any] = []

    class Results(DisplayHook):
        """Keeps what a cell's last line gives, as a kernel would show it."""

        def write_output_prompt(self) -> None:
            """In a terminal, Out[1]."""

        def write_format_data(self, format_dict: Any, md_dict: Any = None) -> None:
            results.append(format_dict)

        def finish_displayhook(self) -> None:
            """In a terminal, an empty line."""

    monkeypatch.setattr(subprocess, "Popen", as_commands(tmp_path))
    monkeypatch.chdir(path.parent)
    backend = matplotlib.get_backend()
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(displayhook_class=Results)
    shell.display_formatter.active_types = shell.display_formatter.format_types
    shown: list[set[str]] = []
    try:
        matplotlib.use("module://matplotlib_inline.backend_inline")
        select_figure_formats(shell, {"png"})
        for cell in code_cells(nbformat.read(path, as_version=4)):
            with capture_output() as captured:
                result = shell.run_cell(cell.source)
            result.raise_error()
            found = {name for name in ("stdout", "stderr") if getattr(captured, name)}
            for data in (*(output.data for output in captured.outputs), *results):
                found |= set(data) - {"text/plain"} or set(data)
            results.clear()
            shown.append(found - {"image/jpeg"})
    finally:
        matplotlib.use(backend)
        InteractiveShell.clear_instance()
    compare(path, shown)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.usefixtures("mnist")
@every
def test_runs_in_a_clean_kernel(path: Path) -> None:
    before = path.read_bytes()
    executed = runner().execute(path)  # raises where a cell does
    assert path.read_bytes() == before
    compare(path, [kinds(cell) for cell in code_cells(executed)])


@every
def test_stored_clean(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/root|/tmp|/home/|/Users/", text)
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "not stored after one whole run"
    for cell in cells:
        assert not kinds(cell) & {"error", "stderr"}, cell.source
        last = cell.source.strip().splitlines()[-1]
        if re.search(r"plt\.show\(\)|\bprint\(|^(picture|grid|python)\(", last):
            assert cell.outputs, cell.source
    for before, cell in zip([None, *notebook.cells], notebook.cells, strict=False):
        if cell.cell_type == "code":
            assert before is not None
            assert before.cell_type == "markdown", f"no sentence before: {cell.source}"


@every
def test_links_lead_somewhere(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", cell.source):
                assert (path.parent / target).exists(), target
