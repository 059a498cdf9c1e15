"""What must fit together across nodes of a configuration. Each check names both keys, and knows no family by name."""

from __future__ import annotations

import math
from typing import Any

from genlab.cli.problem import Problem, walk

Plain = dict[str, Any]


def check(plain: Plain) -> None:
    """Raises a Problem for the first fault of a resolved configuration, plain dicts."""
    batch_divides(plain)
    windows_go_on(plain)
    labels_exist(plain)
    image_fits(plain)


def _get(plain: Any, key: str) -> Any:
    """The value at a dotted key, or None."""
    for part in key.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return plain


def _fields(plain: Plain, *names: str) -> list[tuple[str, str, Any]]:
    """(key, name, value) of every field of the model whose name is one of `names`; lists are not entered."""
    found = [(key, key.rpartition(".")[2], value) for key, value in walk(_get(plain, "model"), "model")]
    return [(key, name, value) for key, name, value in found if name in names and value is not None and "[" not in key]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def batch_divides(plain: Plain) -> None:
    """data.batch_size is global: every rank must get the same whole share in every micro-batch."""
    batch, devices = _get(plain, "data.batch_size"), _get(plain, "trainer.devices")
    devices = len(devices) if isinstance(devices, list) else devices
    if not _is_int(batch):
        return
    shares = {"trainer.devices": devices}
    for key in ("trainer.num_nodes", "trainer.accumulate_grad_batches"):
        shares[key] = _get(plain, key)
    shares = {key: value for key, value in shares.items() if _is_int(value) and value > 1}
    share = math.prod(shares.values())
    if batch % share:
        raise Problem(
            f"must be a multiple of {' x '.join(shares)} = {share}, is {batch}",
            "data.batch_size",
            f"Take {max(batch // share, 1) * share} or {(batch // share + 1) * share}",
        )


def windows_go_on(plain: Plain) -> None:
    """A state is carried only between windows that follow one another."""
    windows = _get(plain, "data.windows")
    if _get(plain, "model.carried_state") is True and windows != "contiguous":
        raise Problem(
            f"is true, and data.windows={windows}: rows of a batch do not go on from those of the one before",
            "model.carried_state",
            "Set data.windows=contiguous",
        )


def labels_exist(plain: Plain) -> None:
    """A model that is conditioned on classes needs a data set that has them, and as many."""
    classes = _get(plain, "data.num_classes")
    for key, _, value in _fields(plain, "num_classes", "num_class_embeds"):
        if not _is_int(value) or not value:  # 0: an unconditional model
            continue
        if "num_classes" in (plain.get("data") or {}) and not classes:
            raise Problem(
                f"is {value}, but the data has no class labels: data.num_classes={classes}",
                key,
                f"Set {key}=0, or choose data with labels",
            )
        if _is_int(classes) and value < classes:
            raise Problem(f"is {value}, less than data.num_classes={classes}", key, f"Set {key}={classes}")


def image_fits(plain: Plain) -> None:
    """A network made for one image size cannot read another, and each level of a UNet halves what it sees."""
    shape = _get(plain, "data.shape")
    if not (isinstance(shape, list) and len(shape) == 3 and all(map(_is_int, shape))):
        return
    patch = math.prod(value for _, _, value in _fields(plain, "patch") if _is_int(value))
    for key, name, value in _fields(plain, "sample_size", "image_size", "down_block_types"):
        if name == "down_block_types":
            step = patch * 2 ** (len(value) - 1) if isinstance(value, list) else 1
            if any(side % step for side in shape[1:]):
                raise Problem(
                    f"has {len(value)} levels, for images whose sides are multiples of {step}, not data.shape={shape}",
                    key,
                    "Take fewer levels, or data of another size",
                )
            continue
        sizes = value if isinstance(value, list) else [value, value]
        whole = len(sizes) == 2 and all(_is_int(size) and size > 0 for size in sizes)
        if whole and any(side % size for side, size in zip(shape[1:], sizes, strict=True)):
            raise Problem(
                f"is {value}, which does not fit data.shape={shape} ([channels, height, width])",
                key,
                f"Set {key}={shape[1]}, or choose other data",
            )
