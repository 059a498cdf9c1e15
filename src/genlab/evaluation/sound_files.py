"""A folder of sounds of another program, in the place of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genlab.data.clips import EXTENSIONS, Clips, DecodeClip
from genlab.data.folder import list_images
from genlab.data.manifest import Manifest, digest
from genlab.errors import ConfigError
from genlab.files import sha256_of
from genlab.modality import Audio
from genlab.sound import read_samples


class SoundFolder:
    """A folder of sound files with one split called "folder": of one channel, of one rate and length.

    Class folders are labels, their places in alphabetical order; without any there are none.

    Args:
        path: of the folder.
        like: a data set of sounds, or another SoundFolder, that says the rate and the length; None: the rate is the
            first file's, the length that of the longest.

    Raises:
        ConfigError: no folder; nothing in it.
        DataError: a file that cannot be a clip, or lies beside class folders.
    """

    def __init__(self, path: Path, like: Any = None) -> None:
        if not path.is_dir():
            raise ConfigError(f"{path}: expected a folder of sounds")
        classes = sorted(own.name for own in path.iterdir() if own.is_dir() and own.name[0] != ".")
        files, labels = list_images(path, classes, EXTENSIONS, "clip")
        if not files:
            raise ConfigError(f"{path}: holds 0 sounds ({', '.join(sorted(EXTENSIONS))})")
        facts = like.manifest.facts if like is not None and like.manifest.modality == Audio.name else {}
        rate = facts.get("sample_rate") or read_samples(files[0])[1]
        decode = DecodeClip(rate, 1, True, 0.0)
        clips = [torch.tensor(decode(file)[0]) for file in files]
        counts = torch.tensor([len(clip) for clip in clips])
        length = facts["shape"][1] if facts else int(counts.max())
        spans = torch.stack([counts.cumsum(0) - counts, counts])
        known = {"label": torch.tensor(labels)} if labels else {}
        names = [{"file": file.relative_to(path).as_posix()} for file in files]
        self._source = Clips(torch.cat(clips)[:, None], spans, length, known, names, str(path))
        sha = digest([[name["file"], sha256_of(file)] for name, file in zip(names, files, strict=True)])
        own = {"shape": [1, length], "sample_rate": rate, "num_classes": len(classes) or None}
        splits = {"folder": {"count": len(files), "sha256": sha}}
        self.manifest = Manifest(path.name, Audio.name, own, splits, decode.describe())

    def source(self, split: str) -> Clips:
        """The clips."""
        return self._source
