#!/usr/bin/env python
"""docs/families.md: the small experiments side by side, at equal samples seen and at equal wall time.

From stored run records alone: a record belongs to an experiment where its configuration is today's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reproduce import mean_sd, read_runs, rounded, row, same_runs

from genlab.cli.comparison.read import Run
from genlab.cli.compose import compose_config
from genlab.errors import ConfigError
from genlab.files import write_bytes

DATA = {"mnist": "MNIST", "fashion": "Fashion-MNIST"}
EQUAL_SAMPLES = 76_800
EQUAL_SECONDS = 180
PROXY = "val/fid_1k_test.proxy"
# Title, name of the value in a metric record, digits. The floor stands in the first line of a table.
VALUES = (
    ("FID 10k", "fid_10k_test", 4),
    ("precision", "precision_10k_test", 3),
    ("recall", "recall_10k_test", 3),
    ("label accuracy", "label_accuracy_10k", 4),
    ("near train images", "near_duplicates_10k_train", 3),
    ("-ELBO", "neg_elbo_10k_test", 4),
    ("-log p, IW 200", "nll_iw200_10k_test", 4),
)
RECONSTRUCTIONS = (
    ("rFID 10k", "rfid_10k_test", 4),
    ("PSNR, dB", "psnr_10k_test", 4),
    ("SSIM", "ssim_10k_test", 3),
    ("label accuracy", "rlabel_accuracy_10k", 4),
)
HEAD = f"""# Families side by side

Small experiments that train on two CPU cores in minutes each, written by `python scripts/families.py` from the
records in `docs/results`; each was trained by `python train.py experiment=NAME` with one thread, beside other jobs.
FID, precision and recall are by the data's own classifier (`mnist-cnn`, `fashion-cnn`), of 10,000 samples of the
averaged weights against the 10,000 test images; the first line of a table is what real train images reach (the
floor). Seconds are wall time of training, with validation and its samples: upper bounds, since most runs on
Fashion-MNIST shared the two cores with one other job, and those on MNIST, `unet_gan_*`, `r3gan_*` and the ensembles
with two to five. Several seeds: mean ± standard deviation.

FID at {EQUAL_SAMPLES:,} samples seen and after {EQUAL_SECONDS} seconds is a proxy of 1,000 samples, higher than that
of 10,000: compare down a column. A VAE's samples are its decoder's means; its -ELBO (one draw) and -log p(x) (200
importance samples) are nats of binarised digits. Unconditional models have no label accuracy.
"""


def main(arguments: Sequence[str] | None = None, root: Path | None = None) -> int:
    """See `--help`; returns the exit code."""
    root = root or Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(prog="families.py", description=__doc__)
    parser.add_argument("--results", type=Path, default=root / "docs" / "results", help="folder of run records")
    parser.add_argument("--out", type=Path, default=root / "docs" / "families.md")
    options = parser.parse_args(arguments)
    try:
        parts, stored = [HEAD], read_runs([options.results])
        for suffix, title in DATA.items():
            runs = _runs(root, stored, suffix)
            generated, stages = (
                {name: found for name, found in runs.items() if found[0].measured(columns[0][1]) is not None}
                for columns in (VALUES, RECONSTRUCTIONS)
            )
            if generated:
                parts += [f"## {title}", _table(generated, VALUES, curve=True)]
            if stages:
                parts += [f"### First stages on {title}", _table(stages, RECONSTRUCTIONS, curve=False)]
            if runs:
                parts += [f"### What they look like: {title}", _pictures(runs, options.out.parent)]
        write_bytes(options.out, ("\n\n".join(part.strip("\n") for part in parts) + "\n").encode())
    except ConfigError as error:
        print(f"genlab: error: {error}", file=sys.stderr)
        return error.exit_code
    print(options.out)
    return 0


def _runs(root: Path, stored: Sequence[Run], suffix: str) -> dict[str, list[Run]]:
    """Finished runs of today's configuration, the newest of each seed, by experiment."""
    found: dict[str, list[Run]] = {}
    for path in sorted((root / "conf" / "experiment").glob(f"*_{suffix}.yaml")):
        config: Any = compose_config(root / "conf", "train", [f"experiment={path.stem}"])
        runs = sorted((run for run in same_runs(config, stored) if run.finished), key=lambda run: run.name)
        if runs:
            found[path.stem] = list({run.seed: run for run in runs}.values())
    return found


def _table(runs: dict[str, list[Run]], columns: Sequence[tuple[str, str, int]], curve: bool) -> str:
    shown = [c for c in columns if any(run.measured(c[1]) is not None for found in runs.values() for run in found)]
    titles = ["experiment", "samples seen", "seconds", *(title for title, _, _ in shown)]
    if curve:
        titles += [f"FID 1k at {EQUAL_SAMPLES:,} samples", f"FID 1k at {EQUAL_SECONDS} s"]
    first = ["real train images", "", ""]
    for _, name, digits in shown:
        floors = (found[0].measured(name, floor=True) for found in runs.values())
        first.append(rounded(next((floor for floor in floors if floor is not None), None), digits))
    lines = [row(titles), row(["---"] * len(titles)), row(first + [""] * (len(titles) - len(first)))]
    for name, found in sorted(runs.items(), key=lambda item: item[1][0].measured(shown[0][1]) or 0.0):
        cells = [f"`{name}`", f"{found[0].samples or 0:,}", mean_sd([run.wall_s for run in found], 3)]
        cells += [mean_sd([run.measured(key) for run in found], digits) for _, key, digits in shown]
        if curve:
            cells += [mean_sd([_at(run, samples=EQUAL_SAMPLES) for run in found], 3)]
            cells += [mean_sd([_at(run, seconds=EQUAL_SECONDS) for run in found], 3)]
        lines.append(row(cells))
    return "\n".join(lines)


def _at(run: Run, samples: int | None = None, seconds: float | None = None) -> float | None:
    """The proxy's value at a number of samples (the next validation's), or the last one before a time."""
    points = run.curves.get(PROXY, {})
    if samples is not None:
        return next((value for at, (_, value) in points.items() if samples <= at < samples * 1.05), None)
    before = [value for _, (elapsed, value) in points.items() if seconds is not None and elapsed <= seconds]
    return before[-1] if before else None


def _pictures(runs: dict[str, list[Run]], folder: Path) -> str:
    cells = []
    for name, found in runs.items():
        stages = found[0].path / "reconstructions.png"
        picture = stages if found[0].measured(RECONSTRUCTIONS[0][1]) is not None else found[0].path / "final.png"
        if picture.exists():
            path = Path(os.path.relpath(picture, folder)).as_posix()
            cells.append(f"`{name}`<br>![samples of {name}]({path})")
    rows = [cells[i : i + 3] for i in range(0, len(cells), 3)]
    return "\n".join([row([" "] * 3), row(["---"] * 3), *(row(part + [""] * (3 - len(part))) for part in rows)])


if __name__ == "__main__":
    sys.exit(main())
