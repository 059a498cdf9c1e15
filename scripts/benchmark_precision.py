"""The row `precision` of benchmark.py: a training step's passes in bfloat16 against float32, on a CPU."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def compared(repeats: int) -> dict[str, Any]:
    """CPU time of one thread of a forward and a backward pass: float32 over bf16-mixed; and milliseconds in float32."""
    import torch

    from genlab.cli.build import build_model
    from genlab.cli.compose import compose_config
    from genlab.files import cache_root
    from genlab.networks.attention import attend_by_products, logits_at

    torch.set_num_threads(1)
    torch.manual_seed(0)

    def network(*options: str) -> Any:
        return build_model(compose_config(ROOT / "conf", "train", list(options))).network.train()

    def tokens(rows: int, length: int) -> Any:
        return torch.randint(2, 60, (rows, length))

    marian, gpt, unet = network("experiment=marian_debian_synopsis"), network("model=gpt"), network("model=ddpm")
    encoder, folded = network("experiment=emoji_first_stage").encoder, torch.randn(32, 48, 16, 16)
    image, times, labels = torch.randn(64, 1, 28, 28), torch.randint(1000, (64,)), torch.randint(10, (64,))
    cases: dict[str, tuple[Any, Callable[[], Any]]] = {
        "marian_debian_synopsis, 32 pairs of 90 and 14 tokens": (
            marian, lambda: marian(input_ids=tokens(32, 90), decoder_input_ids=tokens(32, 14), use_cache=False).logits
        ),
        "model=gpt, 12 windows of 64 characters": (gpt, lambda: gpt(input_ids=tokens(12, 64), use_cache=False).logits),
        "model=ddpm, 64 digits": (unet, lambda: unet(image, times, labels)[0]),
        "emoji_first_stage, 32 pictures in squares of 4 x 4": (encoder, lambda: encoder(folded)),
    }  # fmt: skip
    if (cache_root() / "smollm2").is_dir():  # python scripts/fetch_data.py smollm2
        adapted = network("experiment=smollm2_synopsis")
        cases["smollm2_synopsis, an adapter, 4 rows of 160 tokens, 30 of them answers"] = (
            adapted, lambda: logits_at(adapted, torch.arange(160).expand(4, -1) >= 130, tokens(4, 160))
        )  # fmt: skip
    capabilities = torch.cpu.get_capabilities()
    known = {key: capabilities.get(key) for key in ("cpu_name", "avx512_bf16", "amx_bf16")}
    result: dict[str, Any] = {"processor's": known}
    for name, (module, forward) in cases.items():
        attends = hasattr(module, "set_attn_implementation")
        seconds: dict[str, list[float]] = {
            kind: [] for kind in ("float32", "bf16", *(("bf16, SDPA",) if attends else ()))
        }
        for round_ in range(repeats + 1):
            for kind, once in seconds.items():
                if attends:
                    module.set_attn_implementation("sdpa")
                if kind == "bf16":
                    attend_by_products(module)
                began = time.process_time()
                with contextlib.nullcontext() if kind == "float32" else torch.autocast("cpu", torch.bfloat16):
                    output = forward().float()
                output.square().mean().backward()
                once += [time.process_time() - began] if round_ else []
        full = seconds.pop("float32")
        result[name] = {"milliseconds in float32": 1e3 * statistics.median(full)}
        for kind, once in seconds.items():
            ratios = [a / b for a, b in zip(full, once, strict=True)]
            result[name][f"float32 / {kind}"] = {
                "median": statistics.median(ratios), "from": min(ratios), "to": max(ratios)
            }  # fmt: skip
    return result
