"""docs/own_model.md, done as it says: files written, commands run, from a folder outside the repository."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from commands import command
from PIL import Image
from runs import ROOT


def test_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "own_model.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", page, re.DOTALL))
    assert len(files) == 3
    assert len([line for line in files["mylab.py"].splitlines() if line]) <= 60
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (block,) = re.findall(r"<!-- commands -->\n```bash\n(.*?)```", page, re.DOTALL)
    environment = {"GENLAB_DATA": str(tmp_path / "cache")}
    for line in block.splitlines():
        first, *words = shlex.split(line)
        if first == "export":
            for name, value in (word.split("=", 1) for word in words):
                if name == "PYTHONPATH":
                    monkeypatch.syspath_prepend(value.replace("$PWD", str(tmp_path)))
                else:
                    environment[name] = value
        else:
            assert first == "python"
            done = command(*words, folder=tmp_path, environment=environment)
            assert done.code == 0, done.output
    (run,) = (path.parent for path in (tmp_path / "runs").glob("*/*/result.json"))
    image = np.asarray(Image.open(run / "samples" / "seed-0-label-3" / "000005.png"), np.float32)
    assert image[3].mean() > 180, "the row that the label asks for is bright"
    assert np.delete(image, 3, 0).mean() < 60
    record = json.loads((run / "evaluation" / "fid_1k_test.proxy.json").read_text())
    assert record["values"]["fid_1k_test.proxy"] is not None
