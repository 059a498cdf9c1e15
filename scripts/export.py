#!/usr/bin/env python
"""A run's model as safetensors and JSON.

python scripts/export.py run=RUN out=FOLDER [weights=raw] [format=transformers|diffusers]
"""

from __future__ import annotations

import sys

from genlab.cli.start import refuse_known_bad, use_utf8
from genlab.errors import ConfigError

if __name__ == "__main__":
    use_utf8()
    try:
        refuse_known_bad()
    except ConfigError as error:
        sys.exit(f"genlab: error: {error}")
    from genlab.cli.export import main  # after the check: it imports torch and Lightning

    sys.exit(main(sys.argv[1:]))
