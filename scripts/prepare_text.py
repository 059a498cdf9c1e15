#!/usr/bin/env python
"""Makes a prepared folder of text: normalised, filtered, without exact and near duplicates, split without leakage.

python scripts/prepare_text.py my/texts prepared/mine --suffix .txt --suffix .md --min-chars 200 --script han=0.5
python train.py model=gpt data=text_folder data.path=prepared/mine
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import fields
from pathlib import Path

from genlab.data.prepare import Preparation, prepare, readable
from genlab.errors import ConfigError, GenlabError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder, a text file, or a .jsonl of {text, ...}")
    parser.add_argument("target", type=Path, help="the folder to make")
    parser.add_argument("--suffix", action="append", help="of the files of a folder (default .txt); may be repeated")
    parser.add_argument("--exclude", action="append", default=[], help="name of a folder or file to leave out")
    parser.add_argument("--text-field", default="text", help="of a JSON Lines record, its text")
    parser.add_argument("--as-it-is", action="store_true", help="do not normalise")
    parser.add_argument("--min-chars", type=int, default=1)
    parser.add_argument("--max-chars", type=int)
    parser.add_argument(
        "--script", action="append", default=[], metavar="NAME=SHARE", help="least share of its letters"
    )
    parser.add_argument("--near-duplicates", choices=["drop", "together", "ignore"], default="drop")
    parser.add_argument("--threshold", type=float, default=0.8, help="Jaccard index of near duplicates")
    parser.add_argument("--shingle", type=int, default=9, help="characters a shingle")
    parser.add_argument("--val-fraction", type=float, default=0.05)
    parser.add_argument("--test-fraction", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.monotonic()
    try:
        options = {field.name: vars(args)[field.name] for field in fields(Preparation) if field.name in args}
        preparation = Preparation(**options, normalise=not args.as_it_is, scripts=scripts_of(args.script))
        suffixes = args.suffix or [".txt"]
        report = prepare(args.source, args.target, preparation, suffixes, args.exclude, args.text_field)
    except GenlabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(readable(report))
    print(f"{args.target}: made in {time.monotonic() - start:.1f} s")
    return 0


def scripts_of(given: list[str]) -> dict[str, float] | None:
    """NAME=SHARE -> {name: share}; None where none is given."""
    try:
        return {name: float(share) for name, share in (item.split("=") for item in given)} or None
    except ValueError:
        raise ConfigError(f"--script {' '.join(given)}: give NAME=SHARE, e.g. han=0.5") from None


if __name__ == "__main__":
    sys.exit(main())
