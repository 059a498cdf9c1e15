"""One test over conf/model and conf/experiment: every shipped family trains, validates, saves, samples and loads."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from runs import (
    EXPERIMENTS,
    MODELS,
    TWINS,
    assert_same_state,
    compose_train,
    leaves,
    log,
    new_run,
    rows,
    small_run,
    start,
    work,
)

from genlab.cli.build import build_feedback, build_model, load_weights
from genlab.cli.load import load_run
from genlab.errors import ConfigError
from genlab.runs.checkpoint import load_checkpoint
from genlab.runs.directory import RunDirectory

CHOICES = [*(f"model={name}" for name in MODELS), *(f"experiment={name}" for name in EXPERIMENTS if name not in TWINS)]


def parts_of(config: DictConfig) -> str:
    """The classes that a model is made of, whatever their numbers; not what its items are shown as."""
    targets: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            targets.add(str(node.get("_target_")))
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            visit(child)

    visit({**OmegaConf.to_container(config.model), "modality": None})
    return " ".join(sorted(targets))


# Experiments that are made of the same classes as another choice, with other numbers: trained and sampled from, but
# what their parts carry from step to step is shown by that one. IWAE has two phases, and lstm_shakespeare a state
# that it carries from batch to batch: these stand for themselves. Written down and checked where each is trained, since
# composing all would cost every worker of pytest ten seconds before its first test.
SAME_PARTS = {
    "experiment=audio_lm_digits": "model=audio_lm",
    "experiment=awdlstm_ptb": "model=lstm",
    "experiment=betatc_vae_mnist": "model=vae",
    "experiment=betavae_mnist": "model=vae",
    "experiment=codec_digits": "model=audio_codec",
    "experiment=dcgan_cifar10": "experiment=dcgan_celeba",
    "experiment=dcgan_mnist": "experiment=dcgan_celeba",
    "experiment=ddpm_cifar10": "model=ddpm_unet",
    "experiment=ddpm_mnist_draft": "model=ddpm",
    "experiment=dual_emoji": "model=dual_encoder",
    "experiment=dual_emoji_small": "model=dual_encoder",
    "experiment=emoji_t2i": "model=latent_diffusion",
    "experiment=gan_ensemble_mnist": "experiment=dcgan_celeba",
    "experiment=gpt2_openwebtext": "model=gpt",
    "experiment=gpt_chorales": "model=gpt",
    "experiment=gpt_poetry": "model=gpt",
    "experiment=gpt_python_code": "model=gpt",
    "experiment=gpt_shakespeare_char": "model=gpt",
    "experiment=gpt_shakespeare_char_cpu": "model=gpt",
    "experiment=gpt_sums": "model=gpt_answers",
    "experiment=gpt_sums_grpo": "model=gpt_answers",
    "experiment=latent_cifar10": "model=latent_class",
    "experiment=latent_mnist": "model=latent_class",
    "experiment=drums_diffusion": "model=mel_diffusion",
    "experiment=lstm_chorales": "model=lstm",
    "experiment=lstm_poetry": "model=lstm",
    "experiment=marian_debian_synopsis": "model=seq2seq",
    "experiment=marian_multi30k": "model=seq2seq",
    "experiment=marian_multi30k_cpu": "model=seq2seq",
    "experiment=mel_diffusion_digits": "model=mel_diffusion",
    "experiment=mlm_shakespeare": "model=masked_diffusion",
    "experiment=poetry_grpo": "model=gpt",
    "experiment=r3gan_mnist": "experiment=r3gan_cifar10",
    "experiment=smollm2_code": "experiment=smollm2_synopsis",
    "experiment=smollm2_dialogue": "experiment=smollm2_synopsis",
    "experiment=sngan_proj_cifar10": "experiment=sngan_cifar10",
    "experiment=sngan_proj_mnist": "experiment=sngan_mnist",
    "experiment=text_gan_shakespeare": "model=text_gan",
    "experiment=text_lm_captions": "model=lstm",
    "experiment=text_mle_shakespeare": "model=text_gan",
    "experiment=text_vae_captions": "model=text_vae",
    "experiment=vae_mnist": "model=vae",
    "experiment=vqvae_cifar10": "model=autoencoder",
    "experiment=vqvae_mnist": "model=autoencoder",
}
BORNE = [choice for choice in CHOICES if choice not in SAME_PARTS]
GENERATING = [
    choice
    for choice in CHOICES
    if choice not in ("model=dual_encoder", "model=reward") and not choice.startswith("experiment=dual_emoji")
]


@functools.cache
def composed(choice: str) -> DictConfig:
    return compose_train([choice])


# One of each loop and each kind of loss has its curves drawn, which takes as long as its training.
DRAWN = ("model=ddpm", "model=gan", "model=gpt")


@pytest.fixture(scope="module", params=CHOICES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DictConfig]:
    """Each choice under the debug overlay: two steps, and two more after a save where that is resumed from below."""
    folder = tmp_path_factory.mktemp(request.param.replace("=", "-"))
    once = () if request.param in BORNE else ("debug.schedule.max_samples=8",)
    config = small_run(request.param, folder, *once, shipped=True)
    run = new_run(config)
    assert work(run, **({"CURVES": "1"} if request.param in DRAWN else {})) == 0, log(run)
    return run.path, config


def test_record_of_a_run(trained: tuple[Path, DictConfig], request: pytest.FixtureRequest) -> None:
    path, config = trained
    choice = request.node.callspec.params["trained"]
    if choice in SAME_PARTS:
        assert parts_of(config) == parts_of(composed(SAME_PARTS[choice]))
    for name in ("config.yaml", "status.json", "metrics.jsonl", "result.json"):
        assert (path / name).stat().st_size > 0, name
    assert (path / "curves.png").exists() == (choice in DRAWN)
    assert bool(list((path / "samples").glob("final.*"))) == (choice in GENERATING)
    assert json.loads((path / "status.json").read_text())["state"] == "finished"
    found = rows(RunDirectory(path))
    assert found[-1]["samples"] == config.schedule.max_samples
    assert any("val/loss" in row for row in found)
    assert any("train/grad_norm" in row for row in found)
    values = [v for row in found for v in row.values()]
    assert all(v is not None and v == v for v in values), "a value is not finite"


def test_checkpoint_is_plain_data(trained: tuple[Path, DictConfig]) -> None:
    path, config = trained
    state = load_checkpoint(path / "checkpoints" / "last.ckpt")
    model = build_model(config)
    assert state["state_dict"].keys() == model.state_dict().keys()
    assert state["samples"] == config.schedule.max_samples
    assert set(state["ema"]["ema"]) == {k for k in model.state_dict() if k.startswith(model.sampled_parts())}
    if "reward" not in (config.get("feedback") or {}):  # such small models earn none, and stay as they are
        assert any(not torch.equal(state["ema"]["ema"][k], state["state_dict"][k]) for k in state["ema"]["ema"])


@pytest.mark.parametrize("trained", GENERATING, indirect=True)
def test_samples_are_a_function_of_seed_and_condition(trained: tuple[Path, DictConfig]) -> None:
    path, _ = trained
    loaded = load_run(path, device="cpu")
    model = loaded.generative
    model.chunk_size = 4
    told = model.examples(5, loaded.data())  # what seeds have no default for
    first = model.sample(torch.arange(3, 8), told)
    again = model.sample(torch.arange(5, 8), {name: rows[2:] for name, rows in told.items()})
    assert first.modality == loaded.model.modality
    same = first[2:].data == again.data
    assert same.all() if isinstance(same, torch.Tensor) else same
    assert len(first) == 5
    with pytest.raises(ConfigError, match="knows no such condition"):
        loaded.sample(1, colour=1)
    if any(known.name == "label" for known in model.conditions):
        labelled = loaded.sample(2, label=1)
        assert labelled.labels is not None
        assert labelled.labels.tolist() == [1, 1]
        with pytest.raises(ConfigError, match="expected 0 to"):
            loaded.sample(1, label=99)


def test_validation_losses_do_not_depend_on_the_global_generator(trained: tuple[Path, DictConfig]) -> None:
    path, config = trained
    loaded = load_run(path, device="cpu")
    if (feedback := build_feedback(config.get("feedback"))) is not None:
        loaded.model.feedback = feedback
        feedback.attach(loaded.model)
    data = loaded.data()
    batch = next(iter(data.batches(data.eval_loader("val"))))
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            losses.append({k: v.item() for k, v in loaded.model.eval().validation_step(batch, 0).items()})
    assert losses[0] == losses[1]


# ---- faults that every family must bear: rows 1, 3, 13 and 17 of docs/faults.md


each_of_its_parts = pytest.mark.parametrize("trained", BORNE, indirect=True)


def again(config: DictConfig, *parts: dict[str, Any]) -> RunDirectory:
    """The run once more, with callbacks that make faults."""
    changed = config.copy()
    changed.resume, changed.callbacks.extra = "never", list(parts)
    changed.callbacks.samples.count = changed.callbacks.final.count = 0  # not what is tested here
    changed.callbacks.latents = {"reconstructions": 0, "final": False}
    return new_run(changed)


@pytest.mark.faults(1, 3)
@each_of_its_parts
def test_a_run_that_is_stopped_ends_as_if_nothing_had_been(trained: tuple[Path, DictConfig], tmp_path: Path) -> None:
    """What each part carries from step to step is in the checkpoint."""
    path, config = trained
    run = again(config, {"_target_": "fault_parts.Signal", "number": 15, "samples": 4, "folder": str(tmp_path)})
    assert work(run, allow="fault_parts") == 143, log(run)
    assert load_checkpoint(run.last)["samples"] == 8, "the signal at 4 is obeyed after the step"
    assert work(run, allow="fault_parts") == 0, log(run)
    assert_same_state(RunDirectory(path), run)


# The loops (one network, players, text GAN), and what they carry: an average, phases, codes, an LSTM's state.
REPRESENTATIVES = ["model=ddpm", "model=gan", "model=text_gan", "model=autoencoder", "experiment=iwae_mnist",
                   "experiment=lstm_shakespeare"]  # fmt: skip
ONE_OF_EACH = [*REPRESENTATIVES, *(pytest.param(c, marks=pytest.mark.soak) for c in BORNE if c not in REPRESENTATIVES)]


@pytest.mark.faults(1)
@pytest.mark.parametrize("trained", ONE_OF_EACH, indirect=True)
def test_a_run_that_is_killed_ends_as_if_nothing_had_been(trained: tuple[Path, DictConfig], tmp_path: Path) -> None:
    path, config = trained
    kill = {"_target_": "fault_parts.Kill", "moment": "batch", "samples": 12, "folder": str(tmp_path)}
    run = again(config, kill)
    process = start(run, allow="fault_parts")
    process.join(120)
    assert process.exitcode == -9, log(run)
    assert load_checkpoint(run.last)["samples"] == 8
    assert work(run, allow="fault_parts") == 0, log(run)
    assert_same_state(RunDirectory(path), run)


@pytest.mark.faults(13)
@pytest.mark.parametrize("trained", ONE_OF_EACH, indirect=True)
def test_a_step_without_a_finite_gradient_is_left_out(trained: tuple[Path, DictConfig]) -> None:
    run = again(trained[1], {"_target_": "ddp_parts.Poison", "rank": 0, "batches": [1]})
    assert work(run, allow="ddp_parts") == 0, log(run)
    state = load_checkpoint(run.last)
    assert state["skipped"] >= 1
    assert state["updates"] < load_checkpoint(trained[0] / "checkpoints" / "last.ckpt")["updates"]
    assert all(v.isfinite().all() for v in leaves(state).values() if isinstance(v, torch.Tensor))


@functools.cache
def untrained(choice: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return build_model(small_run(choice, Path(folder)))


@pytest.mark.faults(17)
def test_weights_of_another_architecture_are_refused(trained: tuple[Path, DictConfig]) -> None:
    path, config = trained
    other = untrained("model=ddpm" if "gan" in config.name else "model=gan")
    checkpoint = path / "checkpoints" / "last.ckpt"
    with pytest.raises(ConfigError, match="another architecture") as refusal:
        load_weights(other, load_checkpoint(checkpoint), "ema", checkpoint)
    assert next(iter(other.state_dict())) in str(refusal.value)


@pytest.mark.parametrize("twin", TWINS)
def test_a_twin_is_its_experiment_on_other_data(twin: str) -> None:
    """So it need not be trained here."""
    configs = [
        OmegaConf.to_container(compose_train([f"experiment={name}"]), resolve=True) for name in (twin, TWINS[twin])
    ]
    for config in configs:
        assert isinstance(config, dict)
        for part in ("data", "paper", "name"):
            config.pop(part, None)
    assert configs[0] == configs[1]
