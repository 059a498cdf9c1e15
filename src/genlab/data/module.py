"""DataModule: one data set as the trainer sees it, with a resumable stream of positions. See `genlab.data.order`."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, TypedDict

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from genlab import signals
from genlab.data.manifest import Manifest
from genlab.data.order import Order, micro_batches, shards, share
from genlab.data.sources import Batch, Source
from genlab.errors import ConfigError, GenlabError, LoaderError
from genlab.settings import check_settings

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPLIT = "_split"  # key that says which split a batch comes from, until `finish`
Index = tuple[Batch, Tensor]  # "id", "position" (and "weight") of a batch; epochs, int64 [B]
Positive = Annotated[int, "ge 1"]
Count = Annotated[int, "ge 0"]


class Common(TypedDict, total=False):
    """The options of every data module."""

    batch_size: Positive  # items an optimizer step, over all devices and accumulated micro-batches
    val_batch_size: Positive | None  # items a validation batch, over all devices; None = batch_size
    limit_val: Positive | None  # validate on the first items only
    resident_max: Count  # bytes; a split up to this size lives on the device, a larger one comes through a loader
    num_workers: Count  # processes of that loader; 0 = in the main process
    seed: int


class _Items(Dataset):
    """The loader's view of a source: index -> a whole raw batch. An expected error comes back as the item."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, index: Index) -> Batch | GenlabError:
        known, epochs = index
        try:
            return {**known, **self.source.batch(known["id"], epochs)}
        except GenlabError as error:
            return error


class _Plan(Sampler):
    """Indices of the batches to come; read anew at each iteration."""

    def __init__(self, indices: Callable[[], Iterator[Index]], length: Callable[[], int]) -> None:
        self.indices, self.length = indices, length

    def __iter__(self) -> Iterator[Index]:
        return self.indices()

    def __len__(self) -> int:
        return self.length()


def _identity(item: Any) -> Any:
    return item


def _begin_worker(number: int) -> None:
    """Ends a loader worker with its reader, and lets its thread that hands over tensors end in silence then.

    The reader says why it ended: where another worker has died, in the midst of taking a tensor from this one.
    """

    signals.die_with_parent()

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, ConnectionError | EOFError):
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook


class Loader:
    """One rank's batches of one split: {"id", "position"} if the source is resident, else with the raw tensors too.

    In training, where items differ in the number of tokens that a loss counts, there is also "weight", float32 [B]:
    what each of the row's tokens weighs in its micro-batch's loss. So the mean of these losses over micro-batches and
    ranks is the mean over all tokens of the optimizer step, as if one process had read them at once.

    `len` is the number of batches; iterating again starts anew (training: at the position reached by then).
    """

    def __init__(self, source: Source, split: Split, plan: _Plan, resident: bool, workers: int, pin: bool) -> None:
        self.split, self.plan = split, plan
        self.loader: DataLoader | None = None
        if not resident:
            # Its own generator: DataLoader draws a seed at each iteration, else from torch's global generator.
            self.loader = DataLoader(
                _Items(source),
                batch_size=None,
                sampler=plan,
                num_workers=workers,
                collate_fn=_identity,
                worker_init_fn=_begin_worker,
                pin_memory=pin,
                persistent_workers=workers > 0 and split != "train",
                generator=torch.Generator(),
            )

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.loader is None:
            for known, _ in self.plan:
                yield {**known, SPLIT: self.split}
            return
        batches = iter(self.loader)
        while True:
            try:
                item = next(batches, None)
            except (RuntimeError, OSError, EOFError) as error:  # what it is depends on what the worker was doing
                lost = lost_worker(batches)
                if lost is None:
                    raise
                raise lost from error
            if item is None:
                return
            if isinstance(item, GenlabError):
                raise item
            yield {**item, SPLIT: self.split}


def lost_worker(batches: Any) -> LoaderError | None:
    """The error of a loader one of whose worker processes has died; None where all live."""
    workers = getattr(batches, "_workers", [])
    for worker in workers:
        worker.join(1.0 / len(workers))  # the system may take a moment to tell
    dead = [f"{worker.pid} (exit code {worker.exitcode})" for worker in workers if not worker.is_alive()]
    if not dead:
        return None
    return LoaderError(", ".join(dead))


class DataModule(pl.LightningDataModule, ABC):
    """Base of the data modules.

    A subclass gives `modality`, `load` and, where raw is not what the model reads, `finish`.

    Attributes:
        modality: 'image', 'text' or 'audio'.
        name: of the data set.
        manifest: after `setup`.
        tokenizer: text only (`tokenizers.Tokenizer`), after `setup`.
    """

    modality: str
    name: str
    manifest: Manifest
    tokenizer: Any = None

    def __init__(
        self,
        name: str,
        *,
        batch_size: Positive = 128,
        val_batch_size: Positive | None = None,
        limit_val: Positive | None = None,
        resident_max: Count = 2_000_000_000,
        num_workers: Count = 0,
        seed: int = 0,
    ) -> None:
        check_settings(DataModule.__init__, locals(), "data.")
        super().__init__()
        if Path(name).name != name or name == "..":  # it names folders of the cache
            raise ConfigError(f"data.name={name!r} must be a name, without / and not ..")
        self.name, self.seed = name, int(seed)
        self.batch_size, self.val_batch_size, self.limit_val = batch_size, val_batch_size or batch_size, limit_val
        self.resident_max, self.num_workers = resident_max, num_workers
        self._sources: dict[Split, Source] = {}
        self._resident: dict[tuple[Split, torch.device], Source] = {}
        self._order: Order | None = None
        self._attached: dict[Source, dict[str, Tensor]] = {}

    # ---- what a data set gives

    @abstractmethod
    def load(self) -> tuple[dict[Split, Source], Manifest]:
        """The three splits on the CPU and the manifest; fetches what is not there. Raises DataError or ConfigError."""

    def finish(self, batch: Batch, split: Split) -> Batch:
        """Raw tensors, on the device, to what the model reads: floats, augmentation in training. Row by row."""
        return batch

    def units_per_token(self, split: Split) -> dict[str, float] | None:
        """Of text: how many "byte" (in UTF-8), "character" and "word" a predicted token of the split stands for, on
        average; without "word" where the script puts no spaces between words. None where the tokens do not say the
        whole text, so that bits per byte has no meaning."""
        raise ConfigError(f"data {self.name!r} is {self.modality}: it has no units of text")

    def texts(self, split: Split) -> Iterator[tuple[str, str]]:
        """Of text: (where it is from, the text itself) of each document of a split, in order."""
        raise ConfigError(f"data {self.name!r} is {self.modality}: it has no texts")

    # ---- what the trainer calls

    def setup(self, stage: str | None = None) -> None:
        """Loads and checks all splits, once."""
        if self._sources:
            return
        sources, manifest = self.load()
        for split in SPLITS:
            if len(sources[split]) == 0:
                sizes = ", ".join(f"{name} {len(source)}" for name, source in sources.items())
                raise ConfigError(
                    f"the {split} split of data {self.name!r} ({sources[split].origin}) is empty: 0 items ({sizes}); "
                    "give it items, or set data.val_fraction"
                )
        if self.batch_size > len(sources["train"]):
            raise ConfigError(
                f"data.batch_size={self.batch_size} is larger than the train split of {self.name!r}, which has "
                f"{len(sources['train'])} items; lower data.batch_size"
            )
        self._sources, self.manifest = sources, manifest
        train = sources["train"]
        self._order = Order(len(train), self.seed, train.rows is None, train.lengths, self.batch_size)

    def source(self, split: Split) -> Source:
        """The raw items of a split, on the CPU."""
        self.setup()
        return self._sources[split]

    def train_dataloader(self) -> Loader:
        trainer = self._trainer()
        module: Any = trainer.lightning_module
        return self.train_loader(
            lambda: int(module.samples_seen),
            int(module.max_samples),
            accumulation=int(module.accumulation),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )

    def val_dataloader(self) -> Loader:
        trainer = self._trainer()
        return self.eval_loader("val", rank=trainer.global_rank, world_size=trainer.world_size)

    def test_dataloader(self) -> Loader:
        trainer = self._trainer()
        return self.eval_loader("test", rank=trainer.global_rank, world_size=trainer.world_size)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int = 0) -> Batch:
        """On the device: gathers the raw items of a resident split, then `finish`."""
        split = batch.pop(SPLIT)
        if self.resident(split):
            epochs = batch["position"] // len(self.source(split)) if split == "train" else torch.zeros_like(batch["id"])
            batch.update(self._on(split, batch["id"].device).batch(batch["id"], epochs))
        batch = self.finish(batch, split)
        for name, rows in (several := self._attached.get(self.source(split), {})).items():
            assert name not in batch, f"{name}: batches of {self.name} have that already"
            if rows.nbytes <= self.resident_max:  # larger ones stay where they are
                several[name] = rows = rows.to(batch["id"].device)
            batch[name] = rows[batch["id"].to(rows.device)].to(batch["id"].device)
        return batch

    # ---- the same without a trainer

    def train_loader(
        self, start: int | Callable[[], int], stop: int, *, accumulation: int = 1, rank: int = 0, world_size: int = 1
    ) -> Loader:
        """A rank's micro-batches of the positions from `start` to `stop` (rounded up to whole batches)."""
        source = self.source("train")
        order = self._order
        assert order is not None
        share(self.batch_size, accumulation, world_size)  # refuse now, not at the first batch
        first = start if callable(start) else lambda: start
        begun = [first()]

        def indices() -> Iterator[Index]:
            begun[0] = first()
            for position, count in micro_batches(begun[0], stop, self.batch_size, accumulation, rank, world_size):
                positions = torch.arange(position, position + count)
                known = {"id": order.ids(position, count), "position": positions}
                step = position - (position - begun[0]) % self.batch_size
                whole = torch.arange(step, step + self.batch_size)
                counted = source.counted(order.ids(step, self.batch_size), whole // order.n)
                if counted is not None:
                    mean = counted.sum().clamp(min=1) / (accumulation * world_size)  # tokens of a micro-batch
                    known["weight"] = (1 / mean).expand(count)
                yield known, positions // order.n

        def length() -> int:
            return accumulation * max(0, -(-(stop - begun[0]) // self.batch_size))

        return self._loader(source, "train", _Plan(indices, length))

    def eval_loader(self, split: Split, *, rank: int = 0, world_size: int = 1) -> Loader:
        """A rank's batches of a split, in order: every id once over all ranks. `limit_val` cuts 'val'."""
        source = self.source(split)
        n = len(source) if split != "val" or self.limit_val is None else min(len(source), self.limit_val)
        if n < world_size:
            raise ConfigError(f"the {split} split of {self.name!r} has {n} items for trainer.devices={world_size}")
        if source.rows is not None:  # whole batches, and each rank its own rows in all of them
            if world_size > source.rows:
                raise ConfigError(
                    f"data.val_batch_size={source.rows} contiguous rows for trainer.devices={world_size}; raise it"
                )
            n = max(source.rows, n // source.rows * source.rows)
        batches = shards(n, self.val_batch_size, rank, world_size)

        def indices() -> Iterator[Index]:
            for lo, hi in batches:
                ids = torch.arange(lo, hi)
                yield {"id": ids, "position": ids}, torch.zeros_like(ids)

        return self._loader(source, split, _Plan(indices, lambda: len(batches)))

    def batches(self, loader: Loader, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """The loader's batches as a model gets them, on a device."""
        for batch in loader:
            moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            yield self.on_after_batch_transfer(moved)

    def attach(self, split: Split, name: str, rows: Tensor) -> None:
        """Puts rows that were computed once (latents of a frozen first stage, states of a frozen text encoder) into
        every batch of a split from now on, under `name`. They are taken as they are: nothing is augmented.

        Args:
            rows: [N, ...], row i of item i, in memory or memory-mapped. What `data.resident_max` allows is moved to the
                device of the batches. A split that is an alias of this one has them too.
        """
        source = self.source(split)
        assert len(rows) == len(source), f"{name}: {len(rows)} rows for the {len(source)} items of {split}"
        self._attached.setdefault(source, {})[name] = rows

    def attached(self, split: Split) -> tuple[str, ...]:
        """Names of what is attached to a split."""
        return tuple(self._attached.get(self.source(split), ()))

    def resident(self, split: Split) -> bool:
        """True if the split lives on the device."""
        nbytes = self.source(split).nbytes
        return nbytes is not None and nbytes <= self.resident_max

    # ---- inside

    def _trainer(self) -> pl.Trainer:
        assert self.trainer is not None, "without a trainer use train_loader and eval_loader"
        return self.trainer

    def _loader(self, source: Source, split: Split, plan: _Plan) -> Loader:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return Loader(source, split, plan, self.resident(split), self.num_workers, pin=on_gpu)

    def _on(self, split: Split, device: torch.device) -> Source:
        key = (split, device)
        if key not in self._resident:
            source = self.source(split)
            twin = next(
                (s for (other, at), s in self._resident.items() if at == device and self._sources[other] is source),
                None,
            )
            self._resident[key] = twin or source.to(device)  # an alias shares its storage
        return self._resident[key]
