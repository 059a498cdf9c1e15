#!/usr/bin/env python
"""Stages that build on each other:
python scripts/chain.py NAME|FILE.yaml [STAGE.KEY=VALUE ...] [--dir DIR] [--dry-run]"""

from pathlib import Path

from genlab.cli.chain import main

if __name__ == "__main__":
    raise SystemExit(main(Path(__file__).resolve().parent.parent))
