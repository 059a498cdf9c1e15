"""Facts of a folder of images or of an .npz, for configurations that leave them open. Free of torch."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

MOST = 1 << 28  # bytes of labels that are read


def class_names(root: str | Path) -> list[str] | None:
    """Names of the class folders of ROOT/train, or of ROOT, in alphabetical order; None where there are none."""
    folder = Path(root).expanduser()
    folder = folder / "train" if (folder / "train").is_dir() else folder
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(name for name in names if name[0] != ".") or None


def npz_facts(path: str | Path) -> dict[str, Any]:
    """The images' "shape" [C, H, W], and "num_classes", one more than the largest label; without what cannot be read,
    which is told when the file is."""
    import numpy as np  # slow, and a mistake elsewhere is told without it

    facts: dict[str, Any] = {}
    try:
        with np.load(Path(path).expanduser(), allow_pickle=False) as file:
            members = {info.filename: info for info in file.zip.infolist()}
            image, label = ("image", "label") if "image" in file else ("arr_0", "arr_1")
            with file.zip.open(f"{image}.npy") as content:
                np.lib.format.read_magic(content)
                sides = [1, *np.lib.format.read_array_header_1_0(content)[0][1:]][-3:]
            facts["shape"] = [sides[2], *sides[:2]] if sides[2] in (1, 3, 4) else sides
            if f"{label}.npy" in members and members[f"{label}.npy"].file_size < MOST:
                facts["num_classes"] = int(file[label].max()) + 1
    except (OSError, ValueError, KeyError, AttributeError, TypeError, EOFError, zipfile.BadZipFile):
        return facts  # without what cannot be read
    return facts
