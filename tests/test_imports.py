"""Imports go down only, nothing outside models/ asks which family it holds, and modules stay short."""

from __future__ import annotations

import ast
import re
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "genlab"
# package -> what it may import of genlab, besides itself
BELOW = {
    "errors": set(),
    "settings": {"errors"},
    "kinds": {"errors"},
    "signals": set(),
    "files": {"errors"},
    "noise": {"errors"},
    "drawing": {"errors", "files"},
    "folders": {"errors", "files"},
    "sound": {"errors", "files"},
    "music": set(),
    "animation": {"errors", "files"},
    "modality": {"errors", "files", "drawing", "sound", "music", "animation"},
    "samples": {"errors", "modality"},
    "judges": {"errors", "samples"},
}
BOTTOM = {*BELOW}
BELOW |= dict.fromkeys(("networks", "objectives", "diffusion", "decoding", "data"), BOTTOM)
BELOW["conditions"] = {*BOTTOM, "data", "decoding"}
BELOW["picture_conditions"] = {*BOTTOM, "data", "decoding", "conditions"}
BELOW["feedback"] = {*BOTTOM, "networks", "objectives", "diffusion", "decoding"}
BELOW["models"] = {*BELOW}
BELOW["evaluation"] = {*BOTTOM, "data", "networks", "objectives", "conditions", "picture_conditions", "judges"}
BELOW["rewards"] = {*BOTTOM, "data", "decoding", "evaluation", "parts"}
BELOW["postprocess"] = {*BOTTOM, "networks", "data"}
BELOW["runs"] = {"errors", "files"}
BELOW["callbacks"] = {*BELOW}
BELOW["cli"] = {*BELOW}


def imports(path: Path) -> set[str]:
    """Parts of genlab that a module imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" if node.module == "genlab" else node.module for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("genlab.")}
    return found


def test_imports_go_down_only() -> None:
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if part in BELOW:
            up = imports(path) - BELOW[part] - {part, "__version__"}
            wrong += [f"{path.relative_to(SOURCE)} imports genlab.{name}" for name in sorted(up)]
    assert not wrong, "\n".join(wrong)
    assert {p.name for p in SOURCE.iterdir() if p.is_dir() and p.name != "__pycache__"} <= BELOW.keys()


def test_nothing_outside_models_knows_a_family() -> None:
    families = [
        node.name
        for path in (SOURCE / "models").glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and path.stem not in ("base", "schedule", "trained")
    ]
    pattern = re.compile(rf"\b({'|'.join(families)})\b")
    assert len(families) >= 4
    wrong = [
        f"{path.relative_to(SOURCE)}: {match.group()}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path.relative_to(SOURCE).parts[0] != "models"
        for match in pattern.finditer(_code(path))
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_are_short_and_families_shorter() -> None:
    for path in SOURCE.rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= (250 if path.parent.name == "models" else 400), f"{path}: {lines} lines"


def test_entry_points_fit_on_a_page() -> None:
    for name in ("train.py", "sample.py", "evaluate.py"):
        assert len((SOURCE.parent.parent / name).read_text().splitlines()) <= 60


def _code(path: Path) -> str:
    """Names that a module uses, without its comments and strings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    names += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    return " ".join(names)
