"""Claims of the documents that can be checked without running anything long."""

from __future__ import annotations

import ast
import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import compose_train

import genlab.evaluation

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name}: {target}"
    for name in re.findall(r"`((?:src|conf|scripts|tests|docs)/[\w./-]+\.\w+)`", text):
        assert "NAME" in name or (ROOT / name).exists(), f"{page.name}: {name}"


def test_train_commands_of_the_documents_compose() -> None:
    """Every `python train.py ...` in a document that has no placeholder in capitals."""
    commands = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        commands |= set(re.findall(r"python train\.py((?: [\w.+~@/\[\],-]+=[^\s`#)]+)*)", text))
    checked = 0
    for command in sorted(commands):
        words = command.split()
        if any(re.search(r"=[A-Z]|\.\.\.|^resume=|^-m|=dataset$", word) for word in words):
            continue
        compose_train(words)
        checked += 1
    assert checked >= 5


def test_every_field_of_conf_has_a_comment() -> None:
    """Beside the field; `_target_` and the like, papers' numbers and debug overlays speak for themselves."""
    bare = []
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        node = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if top := re.match(r"(\w+):", line):
                node = top[1]
            field = re.match(r"\s*([a-z]\w*):\s+\S", line)
            if field and node not in ("paper", "debug", "defaults") and "#" not in line and path.parent.name != "hydra":
                bare.append(f"{path.relative_to(ROOT)}: {line.strip()}")
    assert not bare


# ---- the site

REFERENCE = ("models", "networks", "objectives", "diffusion", "decoding", "data", "evaluation", "callbacks", "runs",
             "samples.py", "postprocess.py", "noise.py", "errors.py", "files.py", "cli/load.py",
             "cli/compose.py")  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors: broken links, pages in no menu, docstrings that cannot be parsed."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [*command, "--site-dir", str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def article(page: Path) -> str:
    """The text of a built page without menus, tags and marks of headings."""
    inside = re.search(r"<article.*?</article>", page.read_text(encoding="utf-8"), re.DOTALL)
    assert inside, page
    return html.unescape(re.sub(r"<[^>]+>", " ", inside.group()))


def public_names() -> list[str]:
    """Full names of the classes and functions that the reference must show: what modules define, and `__all__`."""
    names = []
    for part in REFERENCE:
        path = ROOT / "src" / "genlab" / part
        for module in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            full = ".".join(module.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
            for node in ast.parse(module.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                    names.append(f"{full}.{node.name}")
    return names + [f"genlab.evaluation.{name}" for name in genlab.evaluation.__all__]


def test_the_site_builds_and_its_reference_holds_every_public_name(site: Path) -> None:
    pages = sorted((site / "reference").rglob("index.html"))
    assert len(pages) == len(list((ROOT / "docs" / "reference").glob("*.md")))
    anchors = {name for page in pages for name in re.findall(r'id="(genlab\.[\w.]+)"', page.read_text("utf-8"))}
    names = public_names()
    assert len(names) > 150
    assert {"genlab.cli.load.load_run", "genlab.models.base.GenerativeModel"} <= set(names)
    assert not sorted(set(names) - anchors), "without a docstring, or on no page"


def test_no_page_of_the_site_is_empty_or_loads_anything_from_outside(site: Path) -> None:
    pages = sorted(site.rglob("index.html"))
    assert len(pages) >= 25
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert len(article(page).split()) >= 60, f"{page} is empty"
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?([^\s\">]+)", text)
        loaded += re.findall(r"<link[^>]*rel=\"?(?:stylesheet|preconnect|icon)[^>]*href=\"?([^\s\">]+)", text)
        assert loaded
        for source in loaded:
            assert not re.match(r"(https?:)?//", source), f"{page}: {source}"
            assert (page.parent / source.partition("?")[0]).exists(), f"{page}: {source}"


def test_docstrings_are_not_taken_for_markup(site: Path) -> None:
    """A pair of asterisks or underscores in a docstring would vanish and slant what is between them."""
    for page in sorted((site / "reference").rglob("index.html")):
        found = re.findall(r"<(?:em|strong|del|sup|sub)>.*?</", page.read_text(encoding="utf-8"))
        assert not found, f"{page.parent.name}: {found}"


# ---- both READMEs

READMES = (ROOT / "README.md", ROOT / "README.zh.md")


def commands(text: str) -> list[list[str]]:
    """Lines of each block of bash and Python, without comments and empty ones."""
    blocks = re.findall(r"^```(?:bash|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [[re.sub(r"(^|\s+)#.*", "", line) for line in block.splitlines()] for block in blocks]
    return [[line for line in block if line] for block in lines]


def numbers(text: str) -> list[str]:
    """Numbers of a text, in order, without those in code."""
    return re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", re.sub(r"(?s)```.*?```|`[^`]+`", "", text))


def results(text: str) -> list[tuple[list[str], list[str]]]:
    """Code and numbers of each row of the table of results."""
    rows = [line for line in text.split("\n## ")[4].splitlines() if line.startswith("| ") and "`python" in line]
    return [(re.findall(r"`[^`]+`", row), numbers(row)) for row in rows]


def test_both_readmes_have_the_same_commands_numbers_and_links() -> None:
    english, chinese = (path.read_text(encoding="utf-8") for path in READMES)
    assert "README.zh.md" in english
    assert "README.md" in chinese
    assert len(commands(english)) >= 4
    assert commands(english) == commands(chinese)
    assert len(results(english)) == 7
    assert results(english) == results(chinese)
    assert sorted(numbers(english)) == sorted(numbers(chinese))
    link = r"\]\(((?!README)[^)]+)\)"
    assert re.findall(link, english) == re.findall(link, chinese)
    assert english.count("\n## ") == chinese.count("\n## ")
    assert len(re.findall(r"[\u4e00-\u9fff]", chinese)) > 800


def test_every_row_of_the_table_of_faults_has_a_test() -> None:
    rows = re.findall(r"^\| (\d+) \|.*pytest --row (\d+)`", (ROOT / "docs" / "faults.md").read_text(), re.MULTILINE)
    assert [int(row) for row, _ in rows] == list(range(1, 45))
    assert all(row == named for row, named in rows)
    tested = {
        int(row)
        for path in (ROOT / "tests").glob("test_*.py")
        for mark in re.findall(r"mark\.faults\(([\d, ]+)\)", path.read_text(encoding="utf-8"))
        for row in mark.split(",")
    }
    assert tested == set(range(1, 45))
