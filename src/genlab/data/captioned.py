"""Images with words: a caption or several an image, in the vocabulary of a text encoder or in one trained on them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from genlab.data.caption_files import CaptionFiles
from genlab.data.documents import fingerprint
from genlab.data.folder import EXTENSIONS, Crop, Decode, ImageFiles, Resize, cached, split_folders
from genlab.data.images import ImageData, ImageOptions, Parts
from genlab.data.manifest import Manifest, digest
from genlab.data.module import SPLITS, Positive, Split
from genlab.data.pairs import ENDED
from genlab.data.sources import Batch, Source, keyed
from genlab.data.vocabulary import (
    PAD,
    UNKNOWN,
    Kind,
    check_size,
    encoder,
    read_vocabulary,
    special_tokens,
    train_tokenizer,
    vocabulary_digest,
)
from genlab.errors import ConfigError, DataError
from genlab.files import cache_root, made_once, read_json, write_json
from genlab.noise import Stream, bits
from genlab.settings import check_settings


class Captioned(Source):
    """Images and their captions; items have "caption", int64 [B, L], -1 after the end, beside what the images have.

    L is the longest of all. An image's first caption is read; where there is a seed, one drawn by (seed, epoch, id).

    Args:
        images: whose items these are.
        captions: of each, at least one.
        facts: what else is known of each; its "other", a list, are further right names, which are never read.
    """

    tokens: Tensor  # int32 [M, L], all captions of all images; after `encode`, as the next
    spans: Tensor  # int64 [2, N]: first caption of each image, and how many it has
    seed: int | None = None

    def __init__(self, images: Source, captions: Sequence[Sequence[str]], facts: Sequence[Mapping[str, Any]]) -> None:
        self.images, self.captions, self.facts, self.origin = images, captions, facts, images.origin

    def encode(self, tokens_of: Callable[[list[str]], list[np.ndarray]], longest: int) -> dict[str, int]:
        """Makes the tokens; a caption of more than `longest` is cut. Returns how many captions there are, how many
        were cut, and L."""
        ids = tokens_of([text for several in self.captions for text in several])
        width = min(longest, max(map(len, ids)))
        tokens = np.full((len(ids), width), ENDED, np.int32)
        for row, own in zip(tokens, ids, strict=True):
            row[: len(own)] = own[:width]
        counts = torch.tensor([len(several) for several in self.captions])
        self.tokens, self.spans = torch.from_numpy(tokens), torch.stack([counts.cumsum(0) - counts, counts])
        return {"captions": len(ids), "cut": sum(len(own) > width for own in ids), "longest_caption": width}

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def one_caption(self) -> bool:
        """Whether each item has one caption, so that it always comes with the same."""
        return bool((self.spans[1] == 1).all())

    def batch(self, ids: Tensor, epochs: Tensor) -> Batch:
        first, count = self.spans[:, ids]
        if self.seed is not None:
            first = first + bits(keyed(ids, self.seed), (Stream.WINDOW, epochs), 1)[:, 0] % count
        return {**self.images.batch(ids, epochs), "caption": self.tokens[first].to(torch.int64)}

    def references(self, ids: Tensor) -> list[list[str]]:
        return [[*self.captions[i], *self.facts[i].get("other", ())] for i in ids.tolist()]

    @property
    def nbytes(self) -> int | None:
        return None if self.images.nbytes is None else self.images.nbytes + self.tokens.nbytes + self.spans.nbytes

    def to(self, device: torch.device) -> Captioned:
        other = copy.copy(self)
        other.images, other.tokens, other.spans = self.images.to(device), self.tokens.to(device), self.spans.to(device)
        return other

    def select(self, ids: np.ndarray) -> Captioned:
        other = Captioned(self.images.select(ids), [self.captions[i] for i in ids], [self.facts[i] for i in ids])
        if hasattr(self, "tokens"):
            other.tokens, other.spans, other.seed = self.tokens, self.spans[:, torch.from_numpy(ids)], self.seed
        return other

    @property
    def labels(self) -> Tensor | None:
        return self.images.labels


class CaptionOptions(ImageOptions, total=False):
    """The options of all sets of images with words; see `CaptionedImages`."""

    vocab_size: Positive
    vocabulary: str | None
    tokenizer: Kind
    max_caption: Positive


class CaptionedImages(ImageData):
    """Base of the sets of images with words; `parts` gives Captioned sources. A batch is an image set's, and "caption"
    as `Captioned` says; in training, one of the captions is drawn.

    Pictures that are equal byte for byte are counted in the manifest and said: of a split, those that stood before, in
    it or in a split before it (train, val, test); None where the pictures are more than resident_max. Equal first
    captions likewise.

    Args:
        vocab_size: tokens of the vocabulary, special ones included; asserted.
        vocabulary: of a pretrained model, in the place of a made one; see `genlab.data.text.Text`.
        tokenizer: trained on the captions of train; see `genlab.data.vocabulary`.
        max_caption: tokens of a caption; how many are longer, and cut, is said and stands in the manifest.

    Raises:
        ConfigError: another size of the vocabulary.
    """

    def __init__(
        self,
        name: str,
        *,
        vocab_size: Positive,
        vocabulary: str | None = None,
        tokenizer: Kind = "byte_bpe",
        max_caption: Positive = 64,
        **options: Unpack[ImageOptions],
    ) -> None:
        check_settings(CaptionedImages.__init__, locals(), "data.")
        super().__init__(name, **options)
        self.vocab_size, self.vocabulary, self.kind, self.max_caption = vocab_size, vocabulary, tokenizer, max_caption

    def facts(self, split: Split) -> list[dict[str, Any]]:
        """What is known of each item, beside its caption."""
        source = self.source(split)
        assert isinstance(source, Captioned)
        return [dict(facts) for facts in source.facts]

    def load(self) -> tuple[dict[Split, Source], Manifest]:
        sources, manifest = super().load()
        own = {split: source for split, source in sources.items() if isinstance(source, Captioned)}
        own["train"].seed = self.seed
        self.tokenizer = caption_vocabulary(self.name, own, self.kind, self.vocabulary, self.vocab_size)
        tokens_of = encoder(self.kind if self.vocabulary is None else "byte_bpe", self.tokenizer)
        unknown = self.tokenizer.token_to_id(UNKNOWN)
        counts: dict[Source, dict[str, Any]] = {}
        pictures: set[bytes] = set()
        names: set[str] = set()
        for split in SPLITS:
            if (source := own[split]) not in counts:  # an alias is what it stands for
                counts[source] = source.encode(tokens_of, self.max_caption) | {
                    "unknown": 0 if unknown is None else int((source.tokens == unknown).sum()),
                    "same_pictures": self._same_pictures(source, pictures),
                    "same_captions": repeated((several[0] for several in source.captions), names),
                }
                self._say(split, len(source), counts[source])
        splits = {str(split): {**manifest.splits[split], **counts[own[split]]} for split in SPLITS}
        facts = {
            **manifest.facts,
            "vocab_size": self.vocab_size,
            "vocabulary_sha256": vocabulary_digest(self.tokenizer),
            "longest_caption": max(count["longest_caption"] for count in counts.values()),
        }
        return sources, replace(manifest, facts=facts, splits=splits)

    def _same_pictures(self, source: Captioned, seen: set[bytes]) -> int | None:
        if source.nbytes is None or source.nbytes > self.resident_max:
            return None
        parts = (source.images.batch(ids, ids)["image"].numpy() for ids in torch.arange(len(source)).split(512))
        return repeated((hashlib.sha256(picture.tobytes()).digest() for part in parts for picture in part), seen)

    def _say(self, split: Split, size: int, counts: Mapping[str, Any]) -> None:
        if counts["cut"]:
            words = f"have more than data.max_caption={self.max_caption} tokens and are cut"
            tqdm.write(f"{self.name} ({split}): {counts['cut']} of {counts['captions']} captions {words}")
        if counts["same_pictures"]:
            words = "are equal to one before them, of this split or of one before it"
            tqdm.write(f"{self.name} ({split}): {counts['same_pictures']} of {size} pictures {words}")

    def _check(self, source: Source) -> None:
        super()._check(source.images if isinstance(source, Captioned) else source)


def caption_vocabulary(
    name: str, sources: Mapping[Split, Captioned], kind: Kind, vocabulary: str | None, vocab_size: int
) -> Any:
    """The tokenizer of captions: a pretrained model's, or one trained on those of train.

    Raises:
        ConfigError: another size of the vocabulary.
    """
    if vocabulary is not None:
        return read_vocabulary(vocabulary, vocab_size)
    texts = {s: [text for several in source.captions for text in several] for s, source in sources.items()}
    alphabet = sorted({character for several in texts.values() for text in several for character in text})
    special = special_tokens(kind, (PAD,), {})
    tokenizer = train_tokenizer(kind, vocab_size, texts["train"], alphabet, special)
    check_size(tokenizer, vocab_size, f"{name}: the {kind} vocabulary", "tokens")
    return tokenizer


def repeated(items: Iterable[Hashable], seen: set[Any]) -> int:
    """How many of the items have been seen; all are, after that."""
    count = 0
    for item in items:
        count += item in seen
        seen.add(item)
    return count


class CaptionedFolder(CaptionedImages):
    """Image files with their captions: ROOT, or ROOT/train with ROOT/val and ROOT/test; folders in these are read too.

    Each image has a .txt of the same stem beside it, a caption a line. Or a table in the folder of each split names
    files (from that folder) and captions: .jsonl, an object a line, whose caption may be a list, or .csv with a header;
    further rows of a file are further captions of it.

    Args:
        root: the folder.
        captions: name of the table; None: .txt files.
        file_field: of the table.
        caption_field: likewise.
        faulty: what cannot be: an image that cannot be read, is not there or has no caption, two images of one .txt, a
            broken row, an empty caption, a caption that the image has already. "refuse": an error that says where;
            "drop": it is left out, and how many there are by cause is said and stands in the manifest.
        resize: see `genlab.data.folder.ImageFolder`, as the next two.
    """

    def __init__(
        self,
        name: str,
        *,
        root: str,
        captions: str | None = None,
        file_field: str = "file",
        caption_field: str = "caption",
        faulty: Literal["refuse", "drop"] = "refuse",
        resize: Resize = "lanczos",
        crop: Crop = "center",
        cache_max: int = 20_000_000_000,
        **options: Unpack[CaptionOptions],
    ) -> None:
        check_settings(CaptionedFolder.__init__, locals(), "data.")
        super().__init__(name, **options)
        self.root, self.cache_max, self.decode = Path(root).expanduser(), cache_max, Decode(self.shape, resize, crop)
        self.files = CaptionFiles(captions, (file_field, caption_field), faulty, EXTENSIONS)

    def filter(self) -> dict[str, Any]:
        return self.decode.describe() | {"dropped": dict(self.files.dropped)}

    def parts(self) -> Parts:
        out: Parts = {}
        for split, folder in split_folders(self.root).items():
            items = self.files.read(folder)
            paths = sorted(items) if self.files.faulty == "refuse" else self._readable(folder, sorted(items))
            if not paths:
                raise ConfigError(f"{folder}: holds 0 images with a caption; see docs/data.md for what is read")
            captions, files = [items[path] for path in paths], ImageFiles(paths, None, self.decode, str(folder))
            images, sha256 = cached(files, folder, self.name, self.cache_max)
            facts = [{"file": path.relative_to(folder).as_posix()} for path in paths]
            out[split] = Captioned(images, captions, facts), digest([sha256, captions])
        if self.files.dropped:
            words = ", ".join(f"{cause} {count}" for cause, count in self.files.dropped.items())
            tqdm.write(f"{self.name}: left out of {self.root}: {words}")
        return out

    def _readable(self, folder: Path, paths: list[Path]) -> list[Path]:
        """The images that can be decoded; which these are is looked at once, and remembered."""

        def is_broken(path: Path) -> bool:
            try:
                self.decode(path)
            except DataError:
                return True
            return False

        def make(target: Path) -> None:
            bar = tqdm(paths, desc=f"looking at {folder.name}", unit="image")
            write_json(target / "broken.json", [place for place, path in enumerate(bar) if is_broken(path)])

        key = digest([str(folder.resolve()), fingerprint(folder, paths), self.decode.shape, self.decode.describe()])
        stored = made_once(cache_root() / "folders" / f"readable-{key[:24]}", make) / "broken.json"
        if broken := {*read_json(stored)}:
            self.files.dropped["broken image"] += len(broken)
        return [path for place, path in enumerate(paths) if place not in broken]
