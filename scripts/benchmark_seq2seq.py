"""The row `seq2seq` of benchmark.py: GenLab's loop against transformers' Seq2SeqTrainer."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.utils.data import SequentialSampler

from genlab.cli.build import build_data, build_model
from genlab.cli.compose import compose_config
from genlab.cli.session import train_session
from genlab.data.order import Order
from genlab.models.seq2seq import Seq2Seq
from genlab.runs.directory import create_run

ROOT = Path(__file__).resolve().parent.parent
FEW, MANY = 20, 220  # updates; what lies between is measured


class Loop:
    """Trainings of the experiment for some updates, by either loop; each gives its training losses, one in ten updates.

    Args:
        path: the files of Multi30k.
    """

    def __init__(self, path: Path) -> None:
        options = ["experiment=marian_multi30k_cpu", f"data.path={path.resolve()}", "evaluation=none", "logger=none"]
        self.config = config = compose_config(ROOT / "conf", "train", options)
        config.pop("debug", None)
        config.update({"name": "seq2seq", "threads": 1})
        config.schedule.update({"eval_every": 0, "save_every": 0, "log_every": 10 * config.data.batch_size})
        config.callbacks.samples.count = config.callbacks.final.count = 0
        config.trainer.enable_progress_bar, config.data.limit_val = False, 64
        self.data, self.size = build_data(config), int(config.data.batch_size)
        self.data.setup()

    def genlab(self, updates: int) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            self.config.update({"runs_dir": folder})
            self.config.schedule.max_samples = updates * self.size
            run = create_run(Path(folder), "seq2seq", "0")
            OmegaConf.save(self.config, run.config, resolve=True)
            train_session(run)
            rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
            return [row["train/loss"] for row in rows if "train/loss" in row]

    def transformers(self, updates: int) -> list[float]:
        from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments  # after genlab, whose import hook it needs

        model, source = build_model(self.config), self.data.source("train")
        assert isinstance(model, Seq2Seq)
        model.tokenizer = self.data.tokenizer
        order = Order(len(source), self.data.seed, lengths=source.lengths, batch_size=self.size)
        ids = order.ids(0, updates * self.size).tolist()

        def collated(part: list[int]) -> dict[str, Any]:
            batch = source.batch(torch.tensor(part), torch.zeros(len(part), dtype=torch.int64))
            return {**model.inputs(batch), "labels": batch["labels"]}

        class Trainer(Seq2SeqTrainer):
            def _get_train_sampler(self, dataset: Any = None) -> Any:
                return SequentialSampler(ids)

        schedule = instantiate(self.config.schedule)
        adam = instantiate(self.config.optimizer)(model.decayed_groups(model.parameters()))
        rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda update: schedule.lr_factor(update * self.size))
        with tempfile.TemporaryDirectory() as folder:
            options = Seq2SeqTrainingArguments(
                folder, per_device_train_batch_size=self.size, max_steps=updates, max_grad_norm=1.0,
                label_smoothing_factor=model.label_smoothing, logging_steps=10, save_strategy="no", report_to="none",
                use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
            )  # fmt: skip
            trainer = Trainer(model.network, options, collated, ids, optimizers=(adam, rate))  # type: ignore[arg-type]
            trainer.train()
        return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def compared(repeats: int, path: Path) -> dict[str, Any]:
    """CPU time of an update, from trainings of FEW and of MANY updates, and the losses of the last of them."""
    torch.set_num_threads(1)
    loop = Loop(path)
    speeds: dict[str, list[float]] = {"genlab": [], "transformers": []}
    losses: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, found in speeds.items():
            moments = []
            for updates in (FEW, MANY):
                began = time.process_time()
                losses[name] = getattr(loop, name)(updates)
                moments.append(time.process_time() - began)
            found.append((MANY - FEW) / (moments[1] - moments[0]))
            print(f"{name}: {found[-1]:.3f} updates a CPU second", flush=True)
    ratios = [ours / theirs for ours, theirs in zip(speeds["genlab"], speeds["transformers"], strict=True)]
    ratio = {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "pairs": len(ratios)}
    return {"updates a CPU second": speeds, "genlab over transformers": ratio, "losses": losses}
