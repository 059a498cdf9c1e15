"""Characters as tokens: the alphabet of a file, its tokenizer, and the file as token ids.

Policy for unknown characters: there is no [UNK]. The alphabet is that of the whole file, so its text has none; a prompt
with a character that the file does not have is refused with the character and its place
(`genlab.data.vocabulary.encode`).
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from genlab.data.archive import BROKEN
from genlab.data.documents import fingerprint
from genlab.data.manifest import digest
from genlab.errors import ConfigError, DataError
from genlab.files import made_once, read_json, write_json

BLOCK = 1 << 24  # bytes read at a time
IN_MEMORY = 1 << 22  # bytes of text up to which a start reads the file, and keeps its ids in memory
META = "characters.json"


class Alphabet:
    """Sorted characters; a character's id is its place, as in nanoGPT."""

    def __init__(self, characters: Sequence[str]) -> None:
        if len(characters) > 1 << 16:
            raise DataError(f"{len(characters)} distinct characters; at most {1 << 16} fit")
        self.characters = sorted(characters)
        self.points = np.array([ord(c) for c in self.characters], dtype=np.int64)
        self._table = np.zeros(0x110000, dtype=np.uint16)
        self._table[self.points] = np.arange(len(self.points))

    def __len__(self) -> int:
        return len(self.characters)

    def ids(self, text: str) -> np.ndarray:
        """uint16 [len(text)]; every character must be of the alphabet."""
        return self._table[code_points(text)]

    def tokenizer(self) -> Tokenizer:
        """The same as a `tokenizers.Tokenizer`; `decode(encode(x).ids) == x`."""
        tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(self.characters)}))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        tokenizer.decoder = decoders.Fuse()
        return tokenizer


def code_points(text: str) -> np.ndarray:
    """uint32 [len(text)]."""
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def text_blocks(path: Path, digest: hashlib._Hash | None = None) -> Iterator[str]:
    """The text of a UTF-8 file, also of a .gz, block by block, without a byte order mark and newline translation.

    Raises:
        ConfigError: no such file.
        DataError: not UTF-8, with the offset and the line; corrupt, or unreadable.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = line = 0
    pending = b""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            while True:
                block = file.read(BLOCK)
                if digest is not None:
                    digest.update(block)
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    where = offset - len(pending) + error.start
                    line += (pending + block)[: error.start].count(b"\n") + 1
                    raise DataError(f"{path}: not UTF-8 at offset {where}, line {line}; convert the file") from None
                pending = decoder.getstate()[0]
                offset += len(block)
                line += block.count(b"\n")
                text = text.removeprefix("\ufeff") if offset == len(block) else text  # the mark of the first block
                if text:
                    yield text
                if not block:
                    return
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (data.path)") from None
    except BROKEN as error:
        raise DataError(f"{path}: corrupt ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def read_tokens(path: Path, cache: Path) -> tuple[Tensor, Alphabet, str]:
    """A text file as character ids: int16 [L] holding uint16 values, the alphabet, and the file's sha256.

    A file above IN_MEMORY bytes is read once and kept memory-mapped in a folder of `cache`. A later start compares its
    path, size and time of change, and reads nothing of it.

    Raises:
        ConfigError: no such file, or an empty one.
        DataError: not UTF-8, unreadable, or more than 65,536 distinct characters.
    """
    if not path.is_file() or path.stat().st_size <= IN_MEMORY:
        alphabet, sha256 = _survey(path)
        ids = np.concatenate([alphabet.ids(text) for text in text_blocks(path)])
        return torch.from_numpy(ids.view(np.int16)), alphabet, sha256

    def make(folder: Path) -> None:
        (alphabet, sha256), size = _survey(path), 0
        with open(folder / "tokens.uint16", "wb") as out:
            for text in text_blocks(path):
                size += out.write(alphabet.ids(text).tobytes())
        write_json(folder / META, {"characters": "".join(alphabet.characters), "sha256": sha256, "size": size})

    folder = made_once(cache / f"characters-{digest([str(path.resolve()), *fingerprint(path, [path])])[:24]}", make)
    meta, stored = read_json(folder / META), folder / "tokens.uint16"
    if not meta or not stored.is_file() or stored.stat().st_size != meta["size"]:
        raise DataError(f"{folder}: not whole; delete it, it is made again")
    return torch.from_numpy(np.memmap(stored, dtype=np.int16, mode="c")), Alphabet(meta["characters"]), meta["sha256"]


def _survey(path: Path) -> tuple[Alphabet, str]:
    sha = hashlib.sha256()
    characters: set[int] = set()
    for text in text_blocks(path, sha):
        characters.update(np.unique(code_points(text)).tolist())
    if not characters:
        raise ConfigError(f"{path}: empty, 0 characters")
    return Alphabet([chr(point) for point in characters]), sha.hexdigest()
