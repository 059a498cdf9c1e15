#!/usr/bin/env python
"""Published numbers beside ours: python scripts/reproduce.py [EXPERIMENT ...] [--train] [--seeds 0,1,2]"""

from genlab.cli.reproduce import main

if __name__ == "__main__":
    raise SystemExit(main())
