#!/usr/bin/env python
"""Sets runs side by side: python scripts/compare.py RUN... [--metrics GLOB] [--x time] [--no-group] [--out FOLDER]"""

from genlab.cli.compare import main

if __name__ == "__main__":
    raise SystemExit(main())
