#!/usr/bin/env python
"""The small experiments side by side, from stored records: python scripts/families.py"""

from genlab.cli.families import main

if __name__ == "__main__":
    raise SystemExit(main())
