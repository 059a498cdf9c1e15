"""A rank's work from configuration to result: build, fit, finish."""

from __future__ import annotations

import math
import signal
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy

from genlab.callbacks.conductor import Conductor, Events
from genlab.callbacks.ema import EMA
from genlab.callbacks.evaluate import EvaluateWhileTraining
from genlab.callbacks.guard import FiniteGuard
from genlab.callbacks.pictures import Reconstructions, SampleGrid, save_samples, show_panels, show_table
from genlab.callbacks.progress import SampleProgress
from genlab.callbacks.pruning import Pruned, Pruning
from genlab.callbacks.recorder import Recorder
from genlab.callbacks.saver import Saver
from genlab.cli.build import (
    build_data,
    build_feedback,
    build_model,
    build_protocol,
    check_data,
    check_resumable,
    choose_device,
    load_config,
    load_weights,
    read_checkpoint,
    set_threads,
)
from genlab.cli.evaluate import lines_of
from genlab.cli.pretrained import check_vocabulary
from genlab.cli.ranks import Place, place
from genlab.cli.redact import redact
from genlab.cli.targets import instantiate
from genlab.data.module import DataModule
from genlab.drawing import curves, guarded
from genlab.errors import CheckpointError, ConfigError, Interrupted, Preempted
from genlab.evaluation import Protocol, evaluate, generate, sharding, write_record
from genlab.evaluation.evaluator import modality_of
from genlab.evaluation.latents import Panels
from genlab.files import folder_or_cached, write_json
from genlab.models.base import GenerativeModel
from genlab.models.schedule import Schedule
from genlab.models.trained import Plan, TrainedModel
from genlab.networks.attention import attend_by_products
from genlab.runs.checkpoint import AtomicCheckpointIO, load_last, sweep_temporaries
from genlab.runs.directory import RunDirectory, find_run
from genlab.runs.pulse import Pulse
from genlab.signals import STOPPING, caught, ignore_all, leave_terminal, raise_in_handler

# Named, because Lightning takes SLURM's also where a batch script has started a single process.
ENVIRONMENTS: dict[str, Any] = {
    "own": LightningEnvironment,
    "torchrun": TorchElasticEnvironment,
    "slurm": lambda: SLURMEnvironment(auto_requeue=False),
}


class UnwrappedDDP(DDPStrategy):
    """Ranks and collectives, without DistributedDataParallel around the model: players average their own gradients."""

    def configure_ddp(self) -> None:
        """Nothing to wrap."""


def train_session(run: RunDirectory) -> None:
    """Trains a run from where it stands, evaluates it and writes its result.

    Raises:
        GenlabError: anything expected, with its exit code.
    """
    began = time.time()
    config = load_config(run)
    here = place()
    set_threads(config.threads, here.local_world)
    data, model = build_data(config), build_model(config)
    protocol = build_protocol(config.get("evaluation"))
    if isinstance(model, GenerativeModel):
        model.check_sampler(model.sampler)
    if protocol is not None:
        protocol.check_model(model, modality_of(model))
    model.plan = make_plan(config)
    data.prepare_data()  # before the trainer: a wrong file is told before anything else is built
    data.setup("fit")
    model.feedback = build_feedback(config.get("feedback"))
    model.check_items(data)
    model.tokenizer = data.tokenizer
    for key in ("model.network.path", "model.policy.network.path", "model.path"):
        if pretrained := OmegaConf.select(config, key):
            check_vocabulary(data.tokenizer, folder_or_cached(pretrained))
    if protocol is not None:
        protocol.check(model, data, modality_of(model))
    if here.rank == 0:
        sweep_temporaries(run.checkpoints)
        run.set_status("running", message=None, exit_code=None)
    found = load_last(run.checkpoints, set_aside=here.rank == 0)
    if model.feedback is not None:
        if config.init_from is not None:  # also where the run goes on: the reference has these weights
            load_first_weights(config, model, data)
        model.feedback.attach(model)
    if found is not None:
        check_resumable(model, *found)
        check_data(run, data.manifest)
    elif saved := run.status().get("checkpoint"):  # never from scratch unasked
        raise ConfigError(
            f"run {run.path}: {saved} does not exist, nor the one before, yet the run had reached "
            f"{run.status().get('samples', 0):,} samples. Put it back, or start anew with resume=never."
        )
    elif config.init_from is not None and model.feedback is None:
        load_first_weights(config, model, data)
    device = choose_device("cpu" if config.trainer.accelerator == "cpu" else "auto")
    if device.type == "cpu" and config.trainer.precision == "bf16-mixed":
        attend_by_products(model)
    model.prepare(data, torch.device("cuda", here.local) if device.type == "cuda" else device)
    if here.rank == 0:
        if data.tokenizer is not None:
            data.tokenizer.save(str(run.path / "tokenizer.json"))
        write_json(run.path / "data.json", data.manifest.to_dict())
    if config.compile:
        model.compile_parts()
    pulse = None
    if here.world > 1:
        pulse = Pulse(run.path, here.rank)
        sharding.on_wait = partial(pulse.mark, "had done its share of sampling")
    trainer, ema, recorder = make_trainer(config, run, model, here, pulse, protocol)
    (saver,) = (callback for callback in trainer.callbacks if isinstance(callback, Saver))  # type: ignore[attr-defined]
    try:
        try:
            trainer.fit(model, datamodule=data, ckpt_path=found and str(found[1]), weights_only=True)
        except Exception as error:
            if not saver.left:
                raise
            raise saver.stopped() from error  # another rank has left, which breaks a collective of this one
        finish(run, config, model, data, protocol, ema, recorder, trainer, began)
    except Pruned as pruned:
        if here.rank == 0:
            write_result(run, config, recorder, model.samples_seen, pruned=True)
            run.set_status("pruned", samples=model.samples_seen, message=str(pruned))
            print(f"\nrun        {run.path}\n           {pruned}", flush=True)
        close_loggers(trainer)
    except BaseException as error:
        close_loggers(trainer, getattr(error, "exit_code", 1))
        raise


def load_first_weights(config: DictConfig, model: TrainedModel, data: DataModule) -> None:
    """The weights that `init_from` names."""
    source = find_run(config.init_from, Path(config.runs_dir))
    check_vocabulary(data.tokenizer, source.path)
    checkpoint, path = read_checkpoint(source, "last")
    load_weights(model, checkpoint, config.weights, path)
    model.samples_seen = model.updates = 0


def make_plan(config: DictConfig) -> Plan:
    """What conf/optimizer, conf/schedule and conf/trainer say of training."""
    return Plan(
        optimizer=instantiate(config.optimizer),
        schedule=instantiate(config.schedule, Schedule),
        batch_size=int(config.data.batch_size),
        accumulation=int(config.trainer.accumulate_grad_batches),
        clip_norm=config.trainer.gradient_clip_val,
        seed=int(config.seed),
    )


def make_trainer(
    config: DictConfig,
    run: RunDirectory,
    model: TrainedModel,
    here: Place,
    pulse: Pulse | None,
    protocol: Protocol | None,
) -> tuple[pl.Trainer, EMA, Recorder]:
    """Lightning's Trainer with GenLab's callbacks, in the order that they need (each says why in its docstring)."""
    settings: Any = OmegaConf.to_container(config.trainer, resolve=True)
    for ours in ("_target_", "accumulate_grad_batches", "gradient_clip_val"):
        settings.pop(ours)
    if model.automatic_optimization:
        settings["accumulate_grad_batches"] = model.accumulation
    if here.world > 1 and "strategy" not in settings:
        kind = DDPStrategy if model.automatic_optimization else UnwrappedDDP
        # Buffers are not broadcast before every forward: the conductor averages what batch norm has gathered.
        settings["strategy"] = kind(broadcast_buffers=False, timeout=timedelta(seconds=float(config.rank_timeout_s)))
    events, options = Events(), config.callbacks
    recorder = Recorder(events, run)
    ema = EMA(**options.ema)
    saver = Saver(events, run, recorder, **options.checkpoint)
    saver.install()
    callbacks: list[Callback] = [
        Conductor(events, pulse),
        recorder,
        FiniteGuard(events, run, **(options.get("guard") or {})),
        SampleGrid(run.path / "samples", **options.samples),
        Reconstructions(run.path / "samples", (options.get("latents") or {}).get("reconstructions", 16)),
        EvaluateWhileTraining(recorder, protocol, run, options.evaluate_every, options.evaluate_n),
        *(instantiate(node, Callback) for node in options.extra),
        *([Pruning(recorder, options.checkpoint.monitor, trial)] if (trial := Pruning.of_environment()) else []),
        ema,
        *([SampleProgress(recorder)] if settings["enable_progress_bar"] else []),
        saver,
    ]
    loggers: list[Logger] = []
    if here.rank == 0:
        for node in (config.logger or {}).values():
            logger = instantiate(redact(OmegaConf.to_container(node, resolve=True)), Logger, save_dir=str(run.path))
            logger.log_hyperparams(redact(OmegaConf.to_container(config, resolve=True)))
            loggers.append(logger)
    trainer = pl.Trainer(
        **settings,
        default_root_dir=str(run.path),
        max_epochs=1,  # the loader is the whole run: see genlab.data
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=2**31,  # the conductor says when
        use_distributed_sampler=False,
        enable_model_summary=False,
        log_every_n_steps=2**31,  # the recorder writes the rows
        logger=loggers,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), ENVIRONMENTS[here.launcher]()],
    )
    return trainer, ema, recorder


def finish(
    run: RunDirectory,
    config: DictConfig,
    model: TrainedModel,
    data: DataModule,
    protocol: Protocol | None,
    ema: EMA,
    recorder: Recorder,
    trainer: pl.Trainer,
    began: float,
) -> None:
    """Final samples, evaluation, curves, result: by the averaged weights. A signal here loses no training."""

    def stop(number: int, frame: FrameType | None) -> None:
        leave_terminal(number)
        kind = Interrupted if number == signal.SIGINT else Preempted
        words = f"training is saved at {model.samples_seen:,} samples; the same command does the evaluation."
        raise_in_handler(kind(words))

    for number in caught(STOPPING):
        signal.signal(number, stop)
    model.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
    ema.swap_in(model)
    recorder.read_back()
    final = config.callbacks.final
    if final.count and isinstance(model, GenerativeModel):
        samples = generate(model, torch.arange(final.count), model.examples(final.count, data))
        meta = {"run": run.path.name, "samples": str(model.samples_seen)}
        if trainer.is_global_zero:
            with guarded(stem := run.path / "samples" / "final"):
                save_samples(stem, samples, model.shown(samples.condition), final.columns, meta)
    if trainer.is_global_zero and (config.callbacks.get("latents") or {}).get("final", True):
        panels = Panels(model, data)
        show_panels(trainer.loggers, panels.modality, panels.save(run.path / "samples"), model.samples_seen)
    lines: list[str] = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EvaluateWhileTraining) and callback.seconds:
            lines.append(f"evaluation while training took {callback.seconds:.0f} s, {callback.share:.0%} of its time")
    if protocol is not None:
        context = {"run": run.path.name, "model": config.name}
        try:
            closest = run.path / "evaluation" / "closest.png"
            table = run.path / "evaluation" / f"{protocol.name}-texts"
            record = evaluate(
                model, data, protocol, seed=int(config.seed), context=context, picture=closest, table=table
            )
        except (ConfigError, CheckpointError) as error:  # weights that are not to be had must not fail a trained run
            lines.append(f"{protocol.name}: not evaluated: {error}")
        else:
            if trainer.is_global_zero:
                write_record(record, run.path / "evaluation" / f"{protocol.name}.json")
                recorder.write(trainer, model.samples_seen, rows_of(record))
                show_table(trainer.loggers, "texts_evaluated", record, table, model.samples_seen)
                lines += lines_of(record)
    ema.swap_out(model)
    if trainer.is_global_zero:
        with guarded(run.path / "curves.png"):
            curves(run.metrics, run.path / "curves.png")
        ignore_all()  # a signal must not make another thing of a run that is finished
        write_result(run, config, recorder, model.samples_seen)
        run.set_status(
            "finished",
            samples=model.samples_seen,
            finished_at=model.samples_seen,
            metrics_offset=recorder.file.offset(),
        )
        close_loggers(trainer)  # the result is there, however long a server keeps W&B waiting
        _report(run, recorder, lines, time.time() - began)


def write_result(run: RunDirectory, config: DictConfig, recorder: Recorder, samples: int, pruned: bool = False) -> None:
    """RUN/result.json: the last value of every metric, and the monitored one that sweeps compare."""
    metrics = {name: value if math.isfinite(value) else None for name, value in recorder.latest.items()}
    value = metrics.get(config.callbacks.checkpoint.monitor or "")
    result = {"value": value, "samples": samples, "metrics": metrics, **({"pruned": True} if pruned else {})}
    write_json(run.path / "result.json", result)


def close_loggers(trainer: pl.Trainer, code: int = 0) -> None:
    """Ends the loggers: with the run's exit code where they have an `end_run`, else as Lightning does (and did before
    the final evaluation)."""
    for logger in trainer.loggers:
        if callable(end_run := getattr(logger, "end_run", None)):
            end_run(code)
        else:
            logger.finalize("failed" if code else "success")


def rows_of(record: dict[str, Any]) -> dict[str, float]:
    """The values of a metric record under the keys that metrics.jsonl uses."""
    return {f"test/{key}": value for key, value in record["values"].items() if value is not None}


def _report(run: RunDirectory, recorder: Recorder, lines: list[str], seconds: float) -> None:
    print(f"\nrun        {run.path}")
    for name, value in recorder.latest.items():
        if name.startswith("val/"):
            print(f"           {name}  {value:.5g}")
    for line in lines:
        print(f"           {line}")
    folder = run.path / "samples"
    pictures = [*sorted(folder.glob("final.*")), *folder.glob("reconstructions.png")]
    for path in [*pictures, run.path / "curves.png"]:
        print(f"see        {path}")
    print(f"time       {seconds:.0f} s", flush=True)
