"""Claims of the documents that can be checked without running anything long."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from runs import compose_train

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


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
