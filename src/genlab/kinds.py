"""Which samplers fit which models. Free of torch: a configuration is checked by it before anything is imported.

A sampler's class says how it makes items (`kind`), a model's how they are made (`sampled_by`); one that says nothing is
taken as it is.
"""

from __future__ import annotations

from typing import Any

from genlab.errors import ConfigError

# kind -> (how items are made, options of conf/sampler that do)
KINDS = {
    "process": ("steps from noise to data", "ddim_50, dpmpp_20 or euler_50"),
    "latent": ("one draw of a latent", "latent or latent_truncated"),
    "tokens": ("one token after another", "nucleus, ancestral_tokens or beam_5"),
    "gaps": ("unmasking", "unmasking"),
}


def sampler_misfit(sampler: str, kind: Any, model: str, wanted: Any) -> tuple[str, str] | None:
    """What is wrong with a sampler's class for a model's, and what to do; None: nothing that is known."""
    if kind == wanted or kind not in KINDS or wanted not in KINDS:
        return None
    what = f"{sampler} is made for {KINDS[kind][0]}, {model} is sampled by {KINDS[wanted][0]}"
    return what, f"Take sampler={KINDS[wanted][1]}"


def check_kind(sampler: Any, model: Any) -> None:
    """Raises ConfigError where an object of a sampler does not fit a model."""
    names = type(sampler).__name__, type(model).__name__
    misfit = sampler_misfit(names[0], getattr(sampler, "kind", None), names[1], getattr(model, "sampled_by", None))
    if misfit is not None:
        raise ConfigError(f"sampler: {'. '.join(misfit)}")
