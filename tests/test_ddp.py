"""Several ranks on the CPU (gloo): the numbers of one process, exact resume, a name for the rank that hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Begun, command
from omegaconf import DictConfig, OmegaConf
from processes import together
from runs import (
    MODELS,
    ROOT,
    assert_same_state,
    log,
    make_images,
    new_run,
    rows,
    small_run,
    start_ranks,
    work,
)
from test_text_more import small_encoder
from torchmetrics.image import TotalVariation
from torchmetrics.text import WordErrorRate

from genlab.cli.build import build_model
from genlab.cli.load import load_run
from genlab.evaluation import Protocol, evaluate, generate
from genlab.evaluation.metrics import (
    FID,
    KID,
    CodeValidity,
    Confidence,
    InceptionScore,
    PrecisionRecall,
    TextCoherence,
    TextCopying,
    TextLikelihood,
    TextQuality,
)
from genlab.runs.checkpoint import load_checkpoint

# Every family, and experiments that differ in more than weights of losses; beta-TC's estimate is of a micro-batch.
CHOICES = [
    *(f"model={name}" for name in MODELS if name != "ddpm_unet"),
    *(f"experiment={name}_mnist" for name in ("wgan_gp", "sngan", "r3gan", "iwae", "klvae")),
    *(pytest.param(f"experiment={name}_mnist", marks=pytest.mark.soak)
      for name in ("unet_gan", "gan_ensemble", "vae_conv", "fsqvae")),
]  # fmt: skip
QUICK = ("evaluation=none", "callbacks.samples.count=0", "callbacks.final.count=0", "callbacks.latents.final=false",
         "debug=null", "data.batch_size=8", "data.limit_val=8", "schedule.log_every=8", "schedule.eval_every=0",
         "schedule.save_every=0", "trainer.gradient_clip_val=null", "schedule.warmup=0")  # fmt: skip


def config_of(choice: str, folder: Path, *overrides: str, sgd: bool = False) -> DictConfig:
    """A small run without batch norm; with plain gradient descent of rate 1, a step is the gradient. A hundredth of it
    for nats an item in a VAE, and for R3GAN: its penalties, eight times as heavy at every eighth update, else throw the
    critic so far that rounding shows in the generator's step."""
    config = small_run(choice, folder, *QUICK, *overrides)
    if sgd:
        rate = 0.01 if config.model._target_.endswith("VAE") or "r3gan" in choice else 1.0
        config.optimizer = OmegaConf.create({"_target_": "torch.optim.SGD", "_partial_": True, "lr": rate})
        config.schedule.decay = "constant"
    if config.model.get("generator", {}).get("_target_") == "genlab.networks.dcgan.Generator":
        config.model.generator._target_ = "ddp_parts.Generator"
    return config


def weights_after(config: DictConfig, ranks: int) -> dict[str, torch.Tensor]:
    config.trainer.devices = ranks
    run = new_run(config)
    assert work(run, ranks=ranks, allow="ddp_parts") == 0, log(run)
    return load_checkpoint(run.last)["state_dict"]


# Too; all choices are shared and accumulated at once, but for the one whose negatives are of a micro-batch.
WITHOUT_ACCUMULATION = ("model=ddpm", "model=gan", "model=gpt", "model=dual_encoder")


@pytest.mark.parametrize("choice", CHOICES)
def test_gradients_equal_those_of_one_process(choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_ALLOW", "ddp_parts")
    one_step = config_of(choice, tmp_path, "schedule.max_samples=8", "resume=never", sgd=True)
    alone = weights_after(one_step, 1)
    others = [weights_after(one_step, 2)] if choice in WITHOUT_ACCUMULATION else []
    if choice != "model=dual_encoder":
        one_step.trainer.accumulate_grad_batches = 2
        others.append(weights_after(one_step, 2))
    before = build_model(one_step).state_dict()
    moved = max(float((alone[k].float() - before[k].float()).abs().max()) for k in alone)
    assert moved > 1e-3, "a step must move the weights"
    for name, value in alone.items():
        if value.is_floating_point():
            for other in others:
                torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


OF_TEXTS = ("feedback.max_new_tokens=4", "feedback.group=4", "feedback.reward._target_=ddp_parts.Letters",
            "feedback.kl_target=0.1")  # fmt: skip
FEEDBACK = {
    "grpo": ("model=gpt_answers", "feedback=grpo", *OF_TEXTS),
    "ppo": ("model=gpt_answers", "feedback=ppo", "feedback.updates=2", *OF_TEXTS),
    "ddpo": ("model=ddpm", "feedback=ddpo", "feedback.sampler.steps=3", "feedback.group=2", "feedback.trained_steps=1",
             "feedback.clip=0.2", "feedback.reward={_target_: ddp_parts.Brightness}", "~feedback.reward.classifier"),
    "dpo": ("experiment=smollm2_dpo",),
}  # fmt: skip


@pytest.mark.parametrize("kind", FEEDBACK)
def test_feedback_is_that_of_one_process(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups lie whole on one rank; the weight of the KL follows the mean of all."""
    monkeypatch.setenv("GENLAB_ALLOW", "ddp_parts")
    choice, *options = FEEDBACK[kind]
    config = config_of(choice, tmp_path, *options, "schedule.max_samples=16", "resume=never", sgd=True)
    config.optimizer.lr = 0.1
    alone, shared = weights_after(config, 1), weights_after(config, 2)
    assert any(not value.equal(build_model(config).state_dict()[name]) for name, value in alone.items())
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", ["ddpm", "gan", "gpt", "vae", "autoencoder"])
def test_ranks_hold_equal_parameters_after_10_steps(family: str, tmp_path: Path) -> None:
    """The shipped networks, batch norm and its statistics included."""
    config = small_run(
        f"model={family}", tmp_path, *QUICK, "schedule.max_samples=80", "resume=never", "trainer.devices=2",
        shipped=True,
    )  # fmt: skip
    config.callbacks.extra = [{"_target_": "ddp_parts.Dump", "folder": str(tmp_path / "states")}]
    run = new_run(config)
    assert work(run, ranks=2, allow="ddp_parts") == 0, log(run)
    first, second = (torch.load(tmp_path / "states" / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


@pytest.mark.parametrize("family", ["ddpm", "gan", pytest.param("autoencoder", marks=pytest.mark.soak)])
@pytest.mark.faults(1)
def test_exact_resume_at_two_ranks(family: str, tmp_path: Path) -> None:
    options = (*QUICK, "schedule.max_samples=120", "schedule.save_every=24", "schedule.eval_every=80", "resume=never",
               "trainer.devices=2")  # fmt: skip
    whole = new_run(small_run(f"model={family}", tmp_path, *options))
    assert work(whole, ranks=2) == 0, log(whole)
    broken = new_run(small_run(f"model={family}", tmp_path, *options))
    for seen in (40, 88):  # killed at the first row past so many samples
        processes = start_ranks(broken, 2)
        while (
            all(p.exitcode is None for p in processes) and max((r["samples"] for r in rows(broken)), default=0) < seen
        ):
            time.sleep(0.01)
        assert all(p.exitcode is None for p in processes), log(broken)
        for process in processes:
            os.kill(process.pid or 0, signal.SIGKILL)
        for process in processes:
            process.join()
    assert work(broken, ranks=2) == 0, log(broken)
    assert_same_state(whole, broken)


# ---- sampling and evaluation


def _samples(path: str) -> Any:
    loaded = load_run(path, device="cpu")
    return {"data": generate(loaded.model, torch.arange(26), loaded.generative.examples(26, loaded.data())).data}


SAMPLED = ["ddpm", "gan", "gpt", "masked_diffusion", "seq2seq"]  # each way of generating; the others go one of them
LIKEWISE = [pytest.param(family, marks=pytest.mark.soak) for family in ("vae", "autoencoder", "text_gan", "text_vae")]


@pytest.mark.parametrize("family", [*SAMPLED, *LIKEWISE])
def test_samples_are_bit_equal_on_1_2_3_ranks(family: str, tmp_path: Path) -> None:
    tokens = ("sampler.max_new_tokens=8",)
    short = dict.fromkeys(("gpt", "text_gan", "text_vae", "masked_diffusion"), tokens)
    short |= {"ddpm": ("sampler.steps=2",), "seq2seq": ("sampler=ancestral_tokens", *tokens)}
    run = new_run(small_run(f"model={family}", tmp_path, "model.chunk_size=4", *short.get(family, ()), shipped=True))
    assert work(run) == 0, log(run)
    found = [together(ranks, _samples, str(run.path)) for ranks in (1, 2, 3)]
    whole = found[0][0]["data"]
    assert len(whole) == 26, "more than six chunks for three ranks"
    assert len({bytes(x.numpy().tobytes()) if isinstance(x, torch.Tensor) else x for x in whole}) > 13
    for states in found[1:]:
        for state in states:
            same = torch.equal(state["data"], whole) if isinstance(whole, torch.Tensor) else state["data"] == whole
            assert same


def _values(path: str, cache: str, options: dict[str, Any]) -> Any:
    os.environ["GENLAB_DATA"] = f"{cache}-{torch.distributed.is_initialized() and torch.distributed.get_world_size()}"
    loaded = load_run(path, device="cpu")
    record = evaluate(loaded.model, loaded.data(), Protocol(**options), progress=False)
    return {"values": record["values"], "missing": record["missing"], "floor": record.get("floor", {}).get("values")}


def test_metrics_are_equal_on_1_2_3_ranks(tmp_path: Path) -> None:
    path = make_images(tmp_path / "many.npz", [1, 28, 28], 10, 100)
    run = new_run(small_run("model=ddpm", tmp_path, f"data.path={path}", "sampler.steps=2"))
    assert work(run) == 0, log(run)
    metrics = {"fid": FID(), "kid": KID(10, 20), "inception_score": InceptionScore(),
               "precision_recall": PrecisionRecall(), "confident_09": Confidence(),
               "tv": TotalVariation("mean")}  # fmt: skip
    options = {"metrics": metrics, "n": 50, "reference_split": "train", "extractor": "mnist-cnn", "floor": False}
    found = [together(ranks, _values, str(run.path), str(tmp_path / "cache"), options) for ranks in (1, 2, 3)]
    values = found[0][0]["values"]
    assert not found[0][0]["missing"]
    assert len(values) == 9
    for states in found:
        for state in states:
            assert state["values"] == pytest.approx(values, rel=1e-6, abs=1e-12)


def test_text_metrics_are_equal_on_1_2_3_ranks(tmp_path: Path) -> None:
    run = new_run(small_run("model=gpt", tmp_path))
    assert work(run) == 0, log(run)
    encoder = small_encoder(tmp_path / "encoder")
    protocols: list[dict[str, Any]] = [
        {"metrics": {"text_quality": TextQuality("char"), "wer": WordErrorRate()}, "n": 21,
         "reference_split": "train", "prompt": 8},
        {"metrics": {"text_likelihood": TextLikelihood()}, "reference_split": "val"},
        {"metrics": {"text_likelihood": TextLikelihood(stride=3)}, "reference_split": "val", "n": 40},
        {"metrics": {"text_copying": TextCopying((2,)), "code_validity": CodeValidity()}, "n": 21,
         "reference_split": "val"},
        {"metrics": {"text_coherence": TextCoherence("newline", str(encoder))}, "n": 21, "reference_split": "val"},
    ]  # fmt: skip
    found = [together(ranks, _all_values, str(run.path), str(tmp_path / "cache"), protocols) for ranks in (1, 2, 3)]
    for i in range(len(protocols)):
        first = found[0][0][i]
        assert first["values"]
        assert not first["missing"]
        for states in found:
            for state in states:
                assert state[i]["values"] == pytest.approx(first["values"], rel=1e-6)
                assert state[i]["floor"] == (first["floor"] and pytest.approx(first["floor"], rel=1e-6))


def _all_values(path: str, cache: str, protocols: list[dict[str, Any]]) -> list[Any]:
    return [_values(path, cache, options) for options in protocols]


# ---- the real entry points


def arguments_of(folder: Path, *overrides: str) -> list[str]:
    """The command line of a small GAN."""
    path = make_images(folder / "images.npz", [1, 28, 28])
    return ["train.py", "model=gan", "data=npz", f"data.path={path}", "data.shape=[1,28,28]", "data.num_classes=10",
            "data.num_workers=0", "trainer=debug", "logger=none", *overrides]  # fmt: skip


def only_run(folder: Path) -> Path:
    (found,) = (folder / "runs").glob("*/*/status.json")
    return found.parent


def _little_grace() -> None:
    from genlab.cli.ranks import Workers

    Workers.wait.__defaults__ = (3.0, 3.0)


@pytest.mark.parametrize(("part", "words"), [("Sleep", "rank 1 gave no sign for"), ("Fail", "rank 1: RuntimeError")])
@pytest.mark.faults(6, 8)
def test_the_rank_at_fault_is_named(part: str, words: str, tmp_path: Path) -> None:
    """A rank that hangs is killed by the parent after its time; three seconds of it here."""
    extra = f"callbacks.extra=[{{_target_:ddp_parts.{part},rank:1,batch:3}}]"
    options = ("evaluation=none", "schedule.max_samples=64", "trainer.devices=2", "rank_timeout_s=6", extra)
    done = command(*arguments_of(tmp_path, *options), folder=tmp_path, environment={"GENLAB_ALLOW": "ddp_parts"},
                   before=_little_grace)  # fmt: skip
    assert done.code == 1, done.output
    (line,) = [line for line in done.output.splitlines() if line.startswith("genlab: error")]
    assert words in line, done.output
    status = OmegaConf.load(only_run(tmp_path) / "status.json")
    assert status.state == "failed"
    assert words in status.message


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    """Two processes of torchrun, started cold, share one run."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "GENLAB_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT / "src")}
    started = subprocess.run(
        [*torchrun, *arguments_of(tmp_path, "evaluation=none")],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240,
    )  # fmt: skip
    assert started.returncode == 0, started.stdout
    run = only_run(tmp_path)
    config = OmegaConf.load(run / "config.yaml")
    assert (config.trainer.devices, config.trainer.num_nodes) == (2, 1)
    assert (run / "ranks" / "1.pulse").exists()


def test_variables_of_torchrun_and_parallel_evaluation(tmp_path: Path) -> None:
    """As torchrun would start two processes, with its store; evaluate.py on two gives the values of the run itself."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "0", "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "2",
              "LOCAL_WORLD_SIZE": "2", "GENLAB_RUNS": str(tmp_path / "runs")}  # fmt: skip
    protocol = ("evaluation=debug", "evaluation.extractor=mnist-cnn", "evaluation.reference_split=train")
    arguments = arguments_of(tmp_path, *protocol)
    tasks = []
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        tasks.append(Begun(arguments, tmp_path / rank, {**common, "RANK": rank, "LOCAL_RANK": rank}))
    for task in tasks:
        done = task.end()
        assert done.code == 0, done.output
    run = only_run(tmp_path)
    config = OmegaConf.load(run / "config.yaml")
    assert (config.trainer.devices, config.trainer.num_nodes) == (2, 1)
    assert (run / "ranks" / "1.pulse").exists()
    (record,) = (run / "evaluation").glob("fid_*.json")
    values = json.loads(record.read_text())["values"]
    record.unlink()
    done = command("evaluate.py", f"run={run}", "devices=2", folder=tmp_path)
    assert done.code == 0, done.output
    again = json.loads(record.read_text())
    assert again["machine"]["ranks"] == 2
    assert again["values"] == pytest.approx(values, rel=1e-6)


def test_slurm(tmp_path: Path) -> None:
    """srun's variables for two tasks of one node; no SLURM is needed to read them."""
    common = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1",
              "SLURM_JOB_NAME": "genlab", "SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0",
              "SLURM_NTASKS_PER_NODE": "2", "GENLAB_RUNS": str(tmp_path / "runs")}  # fmt: skip
    arguments = arguments_of(tmp_path, "evaluation=none")
    tasks = []
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        tasks.append(Begun(arguments, tmp_path / rank, {**common, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}))
    for task in tasks:
        done = task.end()
        assert done.code == 0, done.output
    run = only_run(tmp_path)
    assert OmegaConf.load(run / "status.json").state == "finished"
    assert (run / "ranks" / "1.pulse").exists()
    assert not list((tmp_path / "runs").glob(".slurm*")), "the announcement is taken back"
