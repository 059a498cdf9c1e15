#!/usr/bin/env python
"""Fetches data sets into the cache ($GENLAB_DATA, by default ~/.cache/genlab).

python scripts/fetch_data.py mnist cifar10
"""

from __future__ import annotations

import argparse
import sys
import time

from genlab.data.fetch import fetch, find, present
from genlab.data.registry import DATASETS
from genlab.errors import GenlabError
from genlab.files import cache_root


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets (see --list)")
    parser.add_argument("--list", action="store_true", help="list the data sets: size, licence, whether present")
    parser.add_argument("--root", help="the cache folder, instead of $GENLAB_DATA or ~/.cache/genlab")
    args = parser.parse_args()
    if not args.names and not args.list:
        parser.error("name a data set, or --list")
    try:
        for entry in (find(name) for name in args.names):
            start = time.monotonic()
            folder = fetch(entry.name, args.root)
            print(f"{entry.name}: {entry.size / 1e6:.1f} MB in {folder}, verified ({time.monotonic() - start:.1f} s)")
        if args.list:
            print(f"cache: {cache_root(args.root)}")
            for entry in DATASETS.values():
                state = "present" if present(entry.name, args.root) else "absent"
                print(f"{entry.name:18} {entry.size / 1e6:7.1f} MB  {state:8} {entry.licence:40} {entry.homepage}")
    except GenlabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
