"""The row `adapter` of benchmark.py: memory of a step of an adapter against that of a forward pass."""

from __future__ import annotations

import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

TOKENS = 256  # of one row, half of them an answer's
ROOT = Path(__file__).resolve().parent.parent


def peak_gib(work: str) -> float:
    """Largest memory of a process that does this work and ends."""
    done = subprocess.run([sys.executable, __file__, work], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def compared(repeats: int) -> dict[str, Any]:
    """Each of them in a process of its own, in turn."""
    peaks = [{work: peak_gib(work) for work in ("step", "checkpointed", "forward")} for _ in range(repeats)]
    return {
        "peak of a step / of a forward pass": sorted(peak["step"] / peak["forward"] for peak in peaks),
        "the same with model.gradient_checkpointing=true": sorted(
            peak["checkpointed"] / peak["forward"] for peak in peaks
        ),
        "GiB": [{work: round(gib, 3) for work, gib in peak.items()} for peak in peaks],
    }


def main(work: str) -> None:
    """One row of SmolLM2 with the adapter of experiment=smollm2_synopsis: a forward pass, or a step of AdamW."""
    import torch
    from tokenizers import Tokenizer

    from genlab.cli.build import build_model
    from genlab.cli.compose import compose_config
    from genlab.files import folder_or_cached
    from genlab.models.schedule import Schedule
    from genlab.models.trained import Plan

    torch.set_num_threads(1)
    checkpointed = f"model.gradient_checkpointing={str(work == 'checkpointed').lower()}"
    model: Any = build_model(compose_config(ROOT / "conf", "train", ["experiment=smollm2_synopsis", checkpointed]))
    model.train()
    model.tokenizer = Tokenizer.from_file(str(folder_or_cached("smollm2") / "tokenizer.json"))
    around = sum(map(len, model.ids[:2]))
    source = torch.full((1, TOKENS // 2 - around), 100)
    batch = {"source": source, "labels": torch.full((1, TOKENS // 2), 100)}
    if work == "forward":
        with torch.no_grad():
            model.losses(batch)
    else:
        model.plan = Plan(partial(torch.optim.AdamW, lr=1e-3), Schedule(100), 1)
        optimizer = model.configure_optimizers()
        model.losses(batch)["loss"].backward()
        optimizer.step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


if __name__ == "__main__":
    main(sys.argv[1])
