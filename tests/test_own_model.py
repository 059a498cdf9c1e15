"""docs/own_model.md, done as it says: files written, commands run, from a folder outside the repository."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from runs import ROOT


def test_the_page_works(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "own_model.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", page, re.DOTALL))
    assert len(files) == 3
    assert len([line for line in files["mylab.py"].splitlines() if line]) <= 60
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (block,) = re.findall(r"<!-- commands -->\n```bash\n(.*?)```", page, re.DOTALL)
    commands = re.sub(r"python (\w+\.py)", rf"{sys.executable} {ROOT}/\1", block)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "GENLAB_ALLOW")}
    environment |= {"GENLAB_RUNS": str(tmp_path / "runs"), "GENLAB_DATA": str(tmp_path / "cache")}
    # The package under test, where it is not the one that is installed.
    commands = commands.replace("PYTHONPATH=$PWD", f"PYTHONPATH=$PWD:{ROOT / 'src'}")
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (path.parent for path in (tmp_path / "runs").glob("*/*/result.json"))
    image = np.asarray(Image.open(run / "samples" / "seed-0-label-3" / "000005.png"), np.float32)
    assert image[3].mean() > 180, "the row that the label asks for is bright"
    assert np.delete(image, 3, 0).mean() < 60
    record = json.loads((run / "evaluation" / "fid_1k_test.proxy.json").read_text())
    assert record["values"]["fid_1k_test.proxy"] is not None
