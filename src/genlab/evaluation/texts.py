"""The part of a record that is about generated texts."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np

from genlab.evaluation.judged import Judged
from genlab.evaluation.progress import bar
from genlab.evaluation.protocol import Protocol
from genlab.evaluation.sharding import from_first_rank, sharded, world


def text_record(judged: Judged, protocol: Protocol, progress: bool, examples: int = 8) -> dict[str, Any]:
    """Quality and variety of the texts, the metrics' signatures, and a few of the texts themselves."""
    from genlab.evaluation.text import text_quality  # here: torchmetrics takes seconds

    began = time.perf_counter()
    with bar(progress, f"{protocol.name}: texts", -(-judged.n // world()[1])) as shown:
        rows = sharded(
            judged.n, judged.unit, judged.group, lambda a, b: {"text": list(judged.read(a, b).data)}, shown.update
        )
    seconds = time.perf_counter() - began
    texts = rows["text"]

    def compute() -> tuple[dict[str, float], dict[str, str], dict[str, str]]:
        try:
            values, signatures = text_quality(texts, judged.references, protocol.tokenize, protocol.sentences)
        except (ValueError, ArithmeticError) as error:  # it must not end a training run
            warnings.warn(f"text metrics have no value: {error}")
            return {}, {}, {protocol.name or "text_quality": str(error)}
        return values, signatures, {}

    values, signatures, missing = from_first_rank(compute)
    missing |= {protocol.key(k): "not finite" for k, v in values.items() if not np.isfinite(v)}
    return {
        "values": {protocol.key(k): v if np.isfinite(v) else None for k, v in values.items()},
        "missing": missing,
        "signatures": signatures,
        "generated": {**judged.facts, "seconds": round(seconds, 2), "per_second": round(judged.n / seconds, 2)},
        "reference": {"with_samples": judged.references is not None, "split": protocol.reference_split},
        "examples": [
            {"text": text, **({"references": judged.references[i]} if judged.references else {})}
            for i, text in enumerate(texts[:examples])
        ],
    }
