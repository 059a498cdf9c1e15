"""Sound files as clips of one rate: decoded and resampled once, cut or padded to one length when they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from genlab.data.manifest import digest
from genlab.data.sources import Batch, Source, keyed
from genlab.errors import ConfigError, DataError
from genlab.files import cache_root, made_once, read_json, sha256_of, write_json
from genlab.noise import Stream, bits
from genlab.sound import read_samples, to_full_scale

EXTENSIONS = {".wav", ".flac", ".ogg"}
CLIPPED = 3  # so many samples on end at full scale are taken for a clip that was recorded too loud
RATES = 1_000, 768_000  # Hz, lowest and highest
FULL = 0.9999  # from here on a sample is at full scale


class FaultyClip(DataError):
    """A file that cannot be a clip.

    Attributes:
        cause: in a word or two, to be counted.
    """

    def __init__(self, cause: str, words: str) -> None:
        super().__init__(words)
        self.cause = cause


@dataclass(frozen=True)
class DecodeClip:
    """File -> float32 [C, n] in [-1, 1], whatever n is.

    Args:
        sample_rate: of the clip, in Hz.
        channels: 1: the mean of the file's; 2: a file of one channel is heard on both.
        resample: bring files of another rate to this one, by a polyphase filter (scipy.signal.resample_poly), which
            gives the same numbers each time; False: they are refused.
        shortest: in seconds; a shorter one is a fault.
    """

    sample_rate: int
    channels: int
    resample: bool
    shortest: float

    def __call__(self, path: Path) -> np.ndarray:
        """Reads a file.

        Raises:
            FaultyClip: broken, empty, too short, not finite, beyond [-1, 1], or of too many channels.
            ConfigError: of another rate, where that is refused; or soundfile is needed and not installed.
        """
        try:
            values, rate = read_samples(path)
        except DataError as error:
            raise FaultyClip("broken", str(error)) from None
        self._check(path, values, rate)
        if rate != self.sample_rate and not self.resample:
            raise ConfigError(
                f"{path}: {rate} Hz, data.sample_rate is {self.sample_rate}; set data.resample=true or "
                f"data.sample_rate={rate}"
            )
        if len(values) > self.channels and self.channels > 1:
            words = f"{path}: {len(values)} channels, data.channels is {self.channels}; mix it down"
            raise FaultyClip("channels", words)
        sound = to_full_scale(values).numpy()
        if self.channels == 1:
            sound = sound.mean(0, keepdims=True)
        sound = resampled(np.broadcast_to(sound, (self.channels, sound.shape[1])), rate, self.sample_rate)
        if sound.shape[1] < (least := math.ceil(self.shortest * self.sample_rate)):
            seconds = sound.shape[1] / self.sample_rate
            words = f"{path}: {seconds:.3f} s ({sound.shape[1]} samples) are too short, {least} are the least"
            raise FaultyClip("too short", f"{words}; remove it or lower data.shortest")
        return sound

    def _check(self, path: Path, values: Tensor, rate: int) -> None:
        if not RATES[0] <= rate <= RATES[1]:  # a filter for it would not fit in memory
            raise FaultyClip("broken", f"{path}: {rate} Hz is no rate of a sound; repair or remove it")
        if values.shape[1] == 0:
            raise FaultyClip("empty", f"{path}: empty, 0 samples; remove it")
        if len(bad := (~values.isfinite()).nonzero()):
            where = f"sample {int(bad[0, 1])} is {values[tuple(bad[0])].item()}"
            raise FaultyClip("not finite", f"{path}: {where}; repair or remove it")
        if (peak := float(values.abs().max())) > 1:
            raise FaultyClip("beyond [-1, 1]", f"{path}: floats up to {peak:.4g}, beyond [-1, 1]; scale it down")

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "filter": "scipy.signal.resample_poly", "crop": "random in training, else the middle"}


def resampled(sound: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Brings float32 [C, n] in [-1, 1] from one rate in Hz to another: float32 [C, ceil(n wanted / rate)], clamped."""
    if rate == wanted:
        return np.ascontiguousarray(sound)
    from scipy.signal import resample_poly

    divisor = math.gcd(rate, wanted)
    out = resample_poly(sound.astype(np.float64), wanted // divisor, rate // divisor, axis=1)
    return np.clip(out, -1, 1).astype(np.float32)


def is_clipped(sound: np.ndarray) -> bool:
    """Whether a channel of [C, n] has CLIPPED samples on end at full scale."""
    loud = np.abs(sound) >= FULL
    if sound.shape[1] < CLIPPED or not loud.any():
        return False
    return bool(np.lib.stride_tricks.sliding_window_view(loud, CLIPPED, axis=1).all(-1).any())


class Clips(Source):
    """Clips of any length, one after another in one array; an item is `length` samples of one.

    A longer clip is cut: where there is a seed at a place by (seed, epoch, id), else in the middle. A shorter one has
    zeros after its end.

    Args:
        samples: float32 [M, C], in memory or memory-mapped.
        spans: int64 [2, N]: first sample of each clip, and how many it has.
        length: samples of an item, T.
        known: int64 [N] rows by name, such as "label" and "speaker".
        facts: what else is known of each, its "file" among it.
        origin: where they come from.

    Attributes:
        seed: of the run, for the train split.
    """

    seed: int | None = None

    def __init__(
        self,
        samples: Tensor,
        spans: Tensor,
        length: int,
        known: Mapping[str, Tensor],
        facts: Sequence[Mapping[str, Any]],
        origin: str,
    ) -> None:
        assert samples.dtype == torch.float32, f"expected float32 [M, C], got {samples.dtype}"
        assert samples.ndim == 2, f"expected float32 [M, C], got {tuple(samples.shape)}"
        self.samples, self.spans, self.length = samples, spans, length
        self._known, self.facts, self.origin = dict(known), facts, origin

    def __len__(self) -> int:
        return self.spans.shape[1]

    def batch(self, ids: Tensor, epochs: Tensor) -> Batch:
        first, count = self.spans[:, ids]
        spare = (count - self.length).clamp(min=0)
        start = spare // 2
        if self.seed is not None:
            start = bits(keyed(ids, self.seed), (Stream.WINDOW, epochs), 1)[:, 0] % (spare + 1)
        at = start[:, None] + torch.arange(self.length, device=ids.device)
        inside = at < count[:, None]
        rows = torch.where(inside, first[:, None] + at, 0)
        audio = self.samples[rows] * inside[..., None]
        return {"audio": audio.transpose(1, 2).contiguous(), **{name: rows[ids] for name, rows in self._known.items()}}

    @property
    def nbytes(self) -> int:
        return 4 * self.samples.shape[1] * int(self.spans[1].sum()) + 8 * len(self) * len(self._known)

    def to(self, device: torch.device) -> Clips:
        if device == self.samples.device:
            return self
        counts = self.spans[1]
        spans = torch.stack([counts.cumsum(0) - counts, counts])
        samples = torch.cat([self.samples[first : first + count] for first, count in self.spans.T.tolist()])
        known = {name: rows.to(device) for name, rows in self._known.items()}
        other = Clips(samples.to(device), spans.to(device), self.length, known, self.facts, self.origin)
        other.seed = self.seed
        return other

    def select(self, ids: np.ndarray) -> Clips:
        rows = torch.from_numpy(ids)
        known = {name: values[rows] for name, values in self._known.items()}
        return Clips(self.samples, self.spans[:, rows], self.length, known, [self.facts[i] for i in ids], self.origin)

    @property
    def labels(self) -> Tensor | None:
        return self._known.get("label")

    @property
    def known(self) -> Mapping[str, Tensor]:
        return self._known


@dataclass(frozen=True)
class Decoded:
    """Clips that were decoded once.

    Attributes:
        samples: float32 [M, C], memory-mapped.
        spans: int64 [2, N], as of `Clips`.
        kept: places of the N clips in the list of files.
        facts: of each: its file, sha256 of its samples, whether it is clipped.
        dropped: file and cause of each that is left out.
        sha256: of names and contents of the files that are kept.
    """

    samples: Tensor
    spans: Tensor
    kept: list[int]
    facts: list[dict[str, Any]]
    dropped: list[tuple[str, str]]
    sha256: str


def decoded_clips(
    paths: Sequence[Path], folder: Path, name: str, decode: DecodeClip, faulty: Literal["refuse", "drop"]
) -> Decoded:
    """Decodes files once into a memory-mapped array in the cache, which appears whole or not at all.

    Args:
        paths: below `folder`.
        name: of the data set.
        faulty: "refuse": an error that says what is wrong with a file; "drop": it is left out.

    Raises:
        DataError: a file that cannot be a clip, where that is refused.
        ConfigError: as `DecodeClip`.
        StorageError: the cache cannot be written.
    """
    names = [path.relative_to(folder).as_posix() for path in paths]
    stats = [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = digest([str(folder.resolve()), names, stats, decode.describe(), faulty])

    def make(target: Path) -> None:
        facts: list[dict[str, Any]] = []
        dropped: list[tuple[str, str]] = []
        with open(target / "samples.float32", "wb") as file:
            for place, path in enumerate(tqdm(paths, desc=f"decoding {name}", unit="clip")):
                try:
                    sound = decode(path)
                except FaultyClip as error:
                    if faulty == "refuse":
                        raise DataError(f"{error}; data.faulty=drop leaves it out") from None
                    dropped.append((names[place], error.cause))
                    continue
                content = np.ascontiguousarray(sound.T, "<f4").tobytes()
                file.write(content)
                own = {"file": names[place], "sha256": digest(content), "clipped": is_clipped(sound)}
                facts.append({**own, "place": place, "samples": sound.shape[1], "source": sha256_of(path)})
        write_json(target / "clips.json", {"facts": facts, "dropped": dropped})

    stored = made_once(cache_root() / "folders" / f"{name}-{key[:16]}", make)
    known = read_json(stored / "clips.json")
    facts, dropped = known["facts"], [(name, cause) for name, cause in known["dropped"]]
    counts = torch.tensor([fact["samples"] for fact in facts], dtype=torch.int64)
    size = (int(counts.sum()), decode.channels)
    samples = torch.zeros(size)
    if len(facts):
        samples = torch.from_numpy(np.memmap(stored / "samples.float32", dtype="<f4", mode="c", shape=size))
    return Decoded(
        samples,
        torch.stack([counts.cumsum(0) - counts, counts]),
        [fact["place"] for fact in facts],
        [{key: fact[key] for key in ("file", "sha256", "clipped")} for fact in facts],
        dropped,
        digest([[fact["file"], fact["source"]] for fact in facts]),
    )
