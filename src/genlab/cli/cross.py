"""What must fit together across nodes of a configuration. Each check names both keys, and knows no family by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from genlab.cli.problem import Problem

Plain = dict[str, Any]
CHECKS: list[Callable[[Plain], None]] = []


def register(function: Callable[[Plain], None]) -> Callable[[Plain], None]:
    """Adds a check: it gets the resolved configuration as plain dicts and raises a Problem."""
    CHECKS.append(function)
    return function


def check(plain: Plain) -> None:
    for function in CHECKS:
        function(plain)


def _get(plain: Any, key: str) -> Any:
    """The value at a dotted key, or None."""
    for part in key.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return plain


def _find(value: Any, names: set[str], key: str) -> Iterator[tuple[str, str, Any]]:
    """(key, name, value) of every field below `value` whose name is one of `names`."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in names and inner is not None:
                yield f"{key}.{name}", name, inner
            yield from _find(inner, names, f"{key}.{name}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@register
def batch_divides(plain: Plain) -> None:
    """data.batch_size is global: every rank must get the same whole share in every micro-batch."""
    batch, devices = _get(plain, "data.batch_size"), _get(plain, "trainer.devices")
    devices = len(devices) if isinstance(devices, list) else devices
    if not _is_int(batch):
        return
    share = 1
    for key, value in (
        ("trainer.devices", devices),
        ("trainer.num_nodes", _get(plain, "trainer.num_nodes")),
        ("trainer.accumulate_grad_batches", _get(plain, "trainer.accumulate_grad_batches")),
    ):
        if _is_int(value) and value > 0:
            share *= value
            if batch % share:
                raise Problem(
                    f"data.batch_size={batch} cannot be split over trainer.devices x trainer.num_nodes x "
                    f"trainer.accumulate_grad_batches (up to {key}: {share})",
                    "data.batch_size",
                    f"Set data.batch_size to a multiple of {share}, such as {-(-batch // share) * share}",
                )


@register
def labels_exist(plain: Plain) -> None:
    """A model that is conditioned on classes needs a data set that has them, and as many."""
    classes = _get(plain, "data.num_classes")
    for key, _, value in _find(_get(plain, "model"), {"num_classes", "num_class_embeds"}, "model"):
        if not _is_int(value):
            continue
        if "num_classes" in (plain.get("data") or {}) and not classes:
            raise Problem(
                f"{key}={value} asks for class labels, but the data set has none (data.num_classes={classes})",
                key,
                f"Set {key}=null, or choose a data set with labels",
            )
        if _is_int(classes) and value < classes:
            raise Problem(
                f"{key}={value} is less than data.num_classes={classes}", key, f"Set {key}=${{data.num_classes}}"
            )


@register
def image_fits(plain: Plain) -> None:
    """A network made for one image size cannot read another."""
    shape = _get(plain, "data.shape")
    if not (isinstance(shape, list) and len(shape) == 3):
        return
    for key, _, value in _find(_get(plain, "model"), {"sample_size", "image_size"}, "model"):
        sizes = value if isinstance(value, list) else [value, value]
        if len(sizes) == 2 and all(map(_is_int, sizes)) and sizes != shape[1:]:
            raise Problem(
                f"{key}={value} does not fit data.shape={shape} ([channels, height, width])",
                key,
                f"Set {key}={shape[1]}, or choose other data",
            )
