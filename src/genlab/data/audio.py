"""Sets of sounds: folders of yours, with classes or captions, and the spoken digits."""

from __future__ import annotations

import collections
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

import torch
from torch import Tensor
from tqdm import tqdm

from genlab.data.archive import unpack
from genlab.data.caption_files import CaptionFiles
from genlab.data.captioned import Captioned, caption_vocabulary
from genlab.data.clips import EXTENSIONS, Clips, DecodeClip, Decoded, decoded_clips
from genlab.data.fetch import fetch
from genlab.data.folder import class_folders, list_images, split_folders
from genlab.data.held_out import Items, with_held_out
from genlab.data.manifest import Manifest, digest
from genlab.data.module import SPLITS, Common, DataModule, Positive, Split
from genlab.data.sources import Source, check_label
from genlab.data.vocabulary import Kind, encoder, vocabulary_digest
from genlab.errors import ConfigError, DataError
from genlab.files import cache_root, made_once
from genlab.settings import check_settings

DIGITS = "spoken_digits"  # what scripts/fetch_data.py calls them
RECORDING = re.compile(r"(\d)_([^_]+)_(\d+)\.wav")  # DIGIT_SPEAKER_INDEX.wav
TEST_INDICES = 5  # indices below this are the official test split
LIMIT = 500_000_000  # bytes that an archive of spoken digits may unpack to


class AudioOptions(Common, total=False):
    """The options of every set of sounds; see `AudioData`."""

    samples: Positive
    channels: Annotated[int, "ge 1, le 2"]
    sample_rate: Positive
    resample: bool
    shortest: Annotated[float, "ge 0"]
    faulty: Literal["refuse", "drop"]
    num_classes: Positive | None
    val_fraction: Annotated[float, "ge 0, lt 1"]
    modality: Literal["audio"]


class AudioData(DataModule):
    """Base of the sets of sounds. A batch has "audio" float32 [B, C, T] in [-1, 1] and, where there are labels, "label"
    int64 [B].

    Counted in the manifest and said, with the first names: clips that are left out, by cause; clips that seem to be
    recorded too loud (three samples on end at full scale); clips whose samples are those of one before it, of this
    split or of one before it (train, val, test); clips that are longer than T.

    Args:
        samples: T, of every item; longer clips are cut (in training at a place by (seed, epoch, id), else in the
            middle), shorter ones have zeros after their end.
        channels: C.
        sample_rate: in Hz.
        resample: bring files of another rate to this one; False: they are refused.
        shortest: in seconds; a clip that is shorter is a fault.
        faulty: files that cannot be (broken, empty, too short, NaN, beyond [-1, 1]). "refuse": an error that names it;
            "drop": it is left out and counted.
        num_classes: labels lie in [0, num_classes); asserted. None: any.
        val_fraction: this part of train, chosen once for all seeds, becomes val and leaves train; 0: there is a val or
            a test split.
    """

    modality = "audio"

    def __init__(
        self,
        name: str,
        *,
        samples: Positive,
        sample_rate: Positive,
        channels: Annotated[int, "ge 1, le 2"] = 1,
        resample: bool = True,
        shortest: Annotated[float, "ge 0"] = 0.02,
        faulty: Literal["refuse", "drop"] = "refuse",
        num_classes: Positive | None = None,
        val_fraction: Annotated[float, "ge 0, lt 1"] = 0.0,
        modality: Literal["audio"] = "audio",
        **common: Unpack[Common],
    ) -> None:
        check_settings(AudioData.__init__, locals(), "data.")
        super().__init__(name, **common)
        self.samples = samples
        self.sample_rate, self.num_classes, self.val_fraction = sample_rate, num_classes, val_fraction
        self.faulty: Literal["refuse", "drop"] = faulty
        self.decode = DecodeClip(sample_rate, channels, resample, shortest)
        self.dropped: collections.Counter[str] = collections.Counter()  # how many are left out, by cause

    @abstractmethod
    def parts(self) -> Items:
        """'train' and, where the data set has them, 'val' and 'test', of Clips or Captioned clips."""

    def own_facts(self) -> dict[str, Any]:
        """What else the manifest says of the set."""
        return {}

    def encode(self, items: Items) -> dict[Split, dict[str, Any]]:
        """Makes the tokens of captions, where there are some; returns what the manifest says of them by split."""
        return {}

    def facts(self, split: Split) -> list[dict[str, Any]]:
        """What is known of each item: its file, sha256 of its samples, whether it is clipped."""
        return [dict(fact) for fact in clips_of(self.source(split)).facts]

    def clips(self, paths: Sequence[Path], folder: Path, known: Mapping[str, Tensor]) -> tuple[Clips, Decoded]:
        """Decodes files below a folder, with int64 [N] rows of what is known of each file."""
        decoded = decoded_clips(paths, folder, self.name, self.decode, self.faulty)
        if not decoded.kept:
            raise ConfigError(f"{folder}: holds 0 clips ({', '.join(sorted(EXTENSIONS))}) that can be read")
        for cause in sorted({cause for _, cause in decoded.dropped}):
            files = [name for name, other in decoded.dropped if other == cause]
            self.dropped[cause] += len(files)
            self._say(f"left out, {cause}", files)
        rows = {name: values[decoded.kept] for name, values in known.items()}
        return Clips(decoded.samples, decoded.spans, self.samples, rows, decoded.facts, str(folder)), decoded

    def load(self) -> tuple[dict[Split, Source], Manifest]:
        items = with_held_out(self.name, self.parts(), self.val_fraction)
        sources = {split: source for split, (source, _, _) in items.items()}
        clips_of(sources["train"]).seed = self.seed
        self._check_labels(sources)
        captions, counts = self.encode(items), self._counts(sources)
        splits = {
            str(split): {**counts[source], **captions.get(split, {}), "count": len(source), "sha256": sha, "from": note}
            for split, (source, sha, note) in items.items()
        }
        shape = [self.decode.channels, self.samples]
        facts = {"shape": shape, "sample_rate": self.sample_rate, "num_classes": self.num_classes}
        done = {**self.decode.describe(), "dropped": dict(self.dropped)}
        return sources, Manifest(self.name, self.modality, facts | self.own_facts(), splits, done)

    def _check_labels(self, sources: Mapping[Split, Source]) -> None:
        for source in sources.values():
            if self.num_classes is not None and (labels := source.labels) is not None and len(labels):
                check_label(int(labels.max()), self.num_classes, source.origin)

    def _counts(self, sources: Mapping[Split, Source]) -> dict[Source, dict[str, int]]:
        """Counts of what is odd in the clips of each split; names of it are said."""
        counts: dict[Source, dict[str, int]] = {}
        seen: set[str] = set()
        for split in SPLITS:
            if (source := sources[split]) in counts:  # an alias is what it stands for
                continue
            clips = clips_of(source)
            loud = [fact["file"] for fact in clips.facts if fact["clipped"]]
            same = []
            for fact in clips.facts:
                if fact["sha256"] in seen:
                    same.append(fact["file"])
                seen.add(fact["sha256"])
            self._say(f"{split}: recorded too loud (clipped)", loud)
            self._say(f"{split}: equal to one before them, of this split or of one before it", same)
            longer = int((clips.spans[1] > clips.length).sum())
            counts[source] = {"clipped": len(loud), "same_clips": len(same), "longer": longer}
        return counts

    def _say(self, words: str, files: Sequence[str]) -> None:
        if files:
            more = f" and {len(files) - 3} more" if len(files) > 3 else ""
            tqdm.write(f"{self.name}: {words}: {', '.join(files[:3])}{more}")


def clips_of(source: Source) -> Clips:
    """The clips of a source, with captions or not."""
    clips = source.images if isinstance(source, Captioned) else source
    assert isinstance(clips, Clips)
    return clips


class AudioFolder(AudioData):
    """Sound files in class folders, ROOT/CLASS, or ROOT/train/CLASS with ROOT/val and ROOT/test; or with captions.

    WAV needs no extra, FLAC and OGG need soundfile. Labels are the places of the class folders in alphabetical order.

    Args:
        root: the folder.
        captions: None: there are none, and class folders are labels. "beside": each file has a .txt of the same stem, a
            caption a line. Else the name of a table, .jsonl or .csv, in the folder of each split. A batch has "caption"
            then, as `genlab.data.captioned.Captioned` says, and no label.
        file_field: of the table.
        caption_field: likewise.
        vocabulary: see `genlab.data.captioned.CaptionedImages`, as the next three.
    """

    def __init__(
        self,
        name: str,
        *,
        root: str,
        captions: str | None = None,
        file_field: str = "file",
        caption_field: str = "caption",
        vocabulary: str | None = None,
        tokenizer: Kind = "characters",
        vocab_size: Positive | None = None,
        max_caption: Positive = 64,
        **options: Unpack[AudioOptions],
    ) -> None:
        check_settings(AudioFolder.__init__, locals(), "data.")
        super().__init__(name, **options)
        self.captions: CaptionFiles | None = None
        if captions is not None:
            table = None if captions == "beside" else captions
            self.captions = CaptionFiles(table, (file_field, caption_field), self.faulty, EXTENSIONS, "beside")
        if captions is not None and vocab_size is None:
            raise ConfigError("data.vocab_size=null: captions need a vocabulary, give the number of its tokens")
        self.root, self.vocabulary, self.kind = Path(root).expanduser(), vocabulary, tokenizer
        self.vocab_size, self.max_caption = vocab_size, max_caption
        self.classes: list[str] = []

    def own_facts(self) -> dict[str, Any]:
        if self.captions is None:
            return {"classes": self.classes}
        return {"vocab_size": self.vocab_size, "vocabulary_sha256": vocabulary_digest(self.tokenizer)}

    def parts(self) -> Items:
        folders = split_folders(self.root)
        if self.captions is None:
            self.classes = class_folders(folders["train"], self.num_classes)
        items: Items = {}
        for split, folder in folders.items():
            texts = None if self.captions is None else self.captions.read(folder)
            paths, labels = list_images(folder, self.classes, EXTENSIONS, "clip")
            paths = paths if texts is None else sorted(texts)
            known = {"label": torch.tensor(labels)} if labels else {}
            clips, decoded = self.clips(paths, folder, known)
            if texts is None:
                items[split] = clips, digest([decoded.sha256, labels]), "own"
                continue
            several = [texts[paths[place]] for place in decoded.kept]
            items[split] = Captioned(clips, several, clips.facts), digest([decoded.sha256, several]), "own"
        if self.captions is not None:
            for cause, count in self.captions.dropped.items():
                self.dropped[cause] += count
                tqdm.write(f"{self.name}: left out, {cause}: {count} of {self.root}")
        return items

    def encode(self, items: Items) -> dict[Split, dict[str, Any]]:
        if self.captions is None:
            return {}
        assert self.vocab_size is not None
        self.tokenizer, counts = encode_captions(
            self.name, items, self.kind, self.vocabulary, self.vocab_size, self.max_caption, self.seed
        )
        return counts


def encode_captions(
    name: str, items: Items, kind: Kind, vocabulary: str | None, vocab_size: int, longest: int, seed: int
) -> tuple[Any, dict[Split, dict[str, Any]]]:
    """Makes the tokens of Captioned clips: the tokenizer, and what the manifest says of each split.

    Args:
        name: of the data.
        items: of all splits.
        kind: of the tokenizer, as the next three `genlab.data.captioned.CaptionedImages` has them.
        longest: most tokens of a caption.
        seed: by which train draws one of several captions.
    """
    sources = {split: source for split, (source, _, _) in items.items() if isinstance(source, Captioned)}
    tokenizer = caption_vocabulary(name, sources, kind, vocabulary, vocab_size)
    tokens_of = encoder(kind if vocabulary is None else "byte_bpe", tokenizer)
    sources["train"].seed = seed
    counts = {source: source.encode(tokens_of, longest) for source in {*sources.values()}}
    return tokenizer, {split: counts[source] for split, source in sources.items()}


class SpokenDigits(AudioData):
    """The free spoken digits of Jakobovski and others: English digits by six speakers, 8 kHz, DIGIT_SPEAKER_INDEX.wav.

    The label is the digit; a batch has "speaker" int64 [B] as well, the place of the speaker's name in alphabetical
    order. The official test split are the indices 0 to 4 of each digit and speaker.

    Args:
        path: an archive of the recordings (the repository's .tar.gz or .zip), or a folder with them; None: fetched.
        num_speakers: asserted.
    """

    def __init__(
        self, name: str, *, path: str | None = None, num_speakers: Positive = 6, **options: Unpack[AudioOptions]
    ) -> None:
        check_settings(SpokenDigits.__init__, locals(), "data.")
        super().__init__(name, **options)
        self.path = None if path is None else Path(path).expanduser()
        self.num_speakers = num_speakers
        self.speakers: list[str] = []

    def own_facts(self) -> dict[str, Any]:
        return {"num_speakers": self.num_speakers, "speakers": self.speakers}

    def parts(self) -> Items:
        folder = unpacked_recordings(self.name, self.path, DIGITS, "recordings.tar", LIMIT)
        wavs = sorted(path for path in folder.rglob("*.wav") if path.name[0] != ".")
        if not wavs:
            raise ConfigError(f"{self.path or folder}: holds 0 recordings DIGIT_SPEAKER_INDEX.wav (data.path)")
        names = [RECORDING.fullmatch(path.name) for path in wavs]
        if None in names:
            wrong = wavs[names.index(None)]
            raise DataError(f"{wrong}: expected DIGIT_SPEAKER_INDEX.wav; rename or remove it")
        recordings = [(int(m[1]), m[2], int(m[3])) for m in names if m]
        self.speakers = sorted({speaker for _, speaker, _ in recordings})
        if len(self.speakers) != self.num_speakers:
            raise ConfigError(
                f"{self.path or folder}: {len(self.speakers)} speakers ({', '.join(self.speakers[:6])}), "
                f"data.num_speakers is {self.num_speakers}; set data.num_speakers={len(self.speakers)}"
            )
        items: Items = {}
        for split in ("train", "test"):
            places = [i for i, (_, _, index) in enumerate(recordings) if (index < TEST_INDICES) == (split == "test")]
            if not places:
                raise ConfigError(f"{self.path or folder}: no recording for {split} (indices 0 to 4 are test)")
            rows = {
                "label": torch.tensor([recordings[i][0] for i in places]),
                "speaker": torch.tensor([self.speakers.index(recordings[i][1]) for i in places]),
            }
            clips, decoded = self.clips([wavs[i] for i in places], folder, rows)
            items[split] = clips, decoded.sha256, "official: indices 0 to 4 are test"
        return items


def unpacked_recordings(name: str, path: Path | None, fetched: str, file: str, limit: int) -> Path:
    """A folder of recordings, from an archive unpacked once into the cache.

    Args:
        name: of the data, in the cache.
        path: an archive or a folder (`data.path`); None: what the registry has.
        fetched: what the registry calls them. file: the archive that it has.
        limit: bytes that an archive may unpack to.

    Raises:
        ConfigError: there is no such path.
        DataError: they could not be fetched, or the archive is broken.
    """
    if path is None:
        try:
            path = fetch(fetched) / file
        except DataError as error:
            raise DataError(f"{error}, or set data.path to an archive or a folder of the recordings") from None
    if not path.exists():
        raise ConfigError(f"{path}: no such archive or folder (data.path); null fetches the recordings")
    if path.is_dir():
        return path
    stat = path.stat()
    key = digest([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    stored = cache_root() / "folders" / f"{name}-files-{key[:16]}"
    return made_once(stored, lambda folder: unpack(path, folder, None, limit))
