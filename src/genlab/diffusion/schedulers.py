"""Schedulers of diffusers: a scheduler_config.json as a process, a prediction and a sampler, and back.

What is read is what a StableDiffusionPipeline makes of the file: its steps_offset is 1, and nothing is clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from genlab.diffusion.processes import VP, Process
from genlab.diffusion.samplers import PLMS, DPMSolverPP
from genlab.errors import ConfigError

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
# Class -> our sampler, its options, the spacing where the file names none, and whether the last step may end at t = 1,
# with diffusers' default for that. Ancestral Euler and DDPM are DDIM with eta 1, at the same times.
SAMPLERS: dict[str, tuple[str, dict[str, Any], str, bool | None]] = {
    "DDIMScheduler": ("DDIM", {}, "leading", True),
    "PNDMScheduler": ("PLMS", {}, "leading", False),
    "DDPMScheduler": ("DDIM", {"eta": 1.0}, "leading", None),
    "EulerDiscreteScheduler": ("Euler", {"coordinates": "sigma"}, "linspace", None),
    "EulerAncestralDiscreteScheduler": ("DDIM", {"eta": 1.0}, "linspace", None),
    "HeunDiscreteScheduler": ("Heun", {"coordinates": "sigma"}, "linspace", None),
    "DPMSolverMultistepScheduler": ("DPMSolverPP", {}, "linspace", None),
}
# Options without a counterpart, and what changes nothing: the first are of the model, the others of its sampling.
REFUSED: dict[str, Any] = {
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "thresholding": False,
    "timestep_type": "discrete",
}
LEFT_OUT: dict[str, Any] = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
            "use_lu_lambdas": False, "final_sigmas_type": "zero", "solver_order": 2, "solver_type": "midpoint",
            "algorithm_type": "dpmsolver++", "euler_at_final": False, "skip_prk_steps": True}  # fmt: skip


class Reading(NamedTuple):
    """What a scheduler_config.json says.

    Attributes:
        process: arguments of VP.
        prediction: what the network puts out.
        sampler: node of conf/sampler.
        notes: what is sampled in another way, for the user.
    """

    process: dict[str, Any]
    prediction: Any
    sampler: dict[str, Any]
    notes: list[str]


def read_scheduler(facts: Mapping[str, Any], where: str) -> Reading:
    """The scheduler of a folder; guidance and number of steps are the pipeline's defaults.

    Args:
        facts: scheduler_config.json.
        where: the file, for messages.

    Raises:
        ConfigError: a scheduler, schedule, prediction or option without a counterpart.
    """
    kind = str(facts.get("_class_name"))
    schedule, prediction = facts.get("beta_schedule", "linear"), facts.get("prediction_type", "epsilon")
    for name, value, known in (
        ("_class_name", kind, SAMPLERS), ("beta_schedule", schedule, SCHEDULES),
        ("prediction_type", prediction, PREDICTIONS),
    ):  # fmt: skip
        if value not in known:
            raise ConfigError(f"{where}: {name} {value!r} is not known; write one of {', '.join(known)}")
    for name, neutral in REFUSED.items():
        if facts.get(name, neutral) != neutral:
            raise ConfigError(
                f"{where}: {name}={str(facts[name])[:40]} has no counterpart here; only {neutral} is read"
            )
    steps = int(facts.get("num_train_timesteps", 1000))
    ends = [
        float(facts.get(f"beta_{end}", default)) * steps / 1000 for end, default in (("start", 1e-4), ("end", 0.02))
    ]
    process = {"steps": steps, "schedule": SCHEDULES[schedule], "betas": ends}
    sampler, options, spacing, to_0 = SAMPLERS[kind]
    named = facts.get("timestep_spacing", spacing)
    spacing, notes = named, []
    if named == "leading" and sampler == "DPMSolverPP":
        spacing = "linspace"
    elif named == "leading" and to_0 is not None and not facts.get("set_alpha_to_one", to_0):
        spacing = "leading_to_1"
    if spacing not in (named, "leading_to_1") or (spacing == "linspace" and sampler != "DPMSolverPP"):
        notes.append(
            f"timestep_spacing {named!r} of {kind} is not ours: {spacing} of DPMSolverMultistep takes its place"
        )
    if named != "leading" and to_0 is not None and not facts.get("set_alpha_to_one", to_0):
        notes.append(f"timestep_spacing {named!r} of {kind} ends at t = 0, in spite of set_alpha_to_one=false")
    for name, neutral in LEFT_OUT.items():
        if name in facts and facts[name] not in (neutral, None):
            notes.append(f"{name}={facts[name]} of {kind} is left out")
    target = f"genlab.diffusion.samplers.{sampler}"
    node = {"_target_": target, "steps": 50, "spacing": spacing, "guidance_scale": 7.5, **options}
    return Reading(process, PREDICTIONS[prediction], node, notes)


def scheduler_config(process: Process, prediction: str, sampler: Any) -> dict[str, Any]:
    """A scheduler_config.json of a process: DDIM, or the sampler's own scheduler where diffusers has it; of a flow
    FlowMatchEulerDiscreteScheduler.

    Raises:
        ConfigError: diffusers has no such prediction.
    """
    vp = isinstance(process, VP)
    names = {ours: theirs for theirs, ours in PREDICTIONS.items()} if vp else {"velocity": "velocity"}
    if prediction not in names:
        raise ConfigError(f"no scheduler of diffusers reads prediction={prediction} of a {type(process).__name__}")
    if not isinstance(process, VP):
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
    own = {PLMS: "PNDMScheduler", DPMSolverPP: "DPMSolverMultistepScheduler"}
    kind, spacing = own.get(type(sampler), "DDIMScheduler"), getattr(sampler, "spacing", "trailing")
    known = {"linspace": "linspace"} if kind == own[DPMSolverPP] else {"leading": "leading", "leading_to_1": "leading"}
    scale = 1000 / process.end
    config: dict[str, Any] = {
        "_class_name": kind,
        "num_train_timesteps": int(process.end),
        "beta_start": process.ends[0] * scale,
        "beta_end": process.ends[1] * scale,
        "beta_schedule": {ours: theirs for theirs, ours in SCHEDULES.items()}[process.schedule],
        "prediction_type": names[prediction],
        "timestep_spacing": known.get(spacing, "trailing"),
        "steps_offset": 1,
    }
    if kind == own[DPMSolverPP]:
        return config
    config["set_alpha_to_one"] = spacing != "leading_to_1"
    return config | ({"skip_prk_steps": True} if kind == own[PLMS] else {"clip_sample": False})
