"""What happens at a batch: set by the conductor, read by the other callbacks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Events:
    """Flags of the batch that has just ended: an optimizer step ended; log; evaluate; save; it was the last."""

    step: bool = False
    log: bool = False
    evaluate: bool = False
    save: bool = False
    last: bool = False
