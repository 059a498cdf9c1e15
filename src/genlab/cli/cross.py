"""What must fit together across nodes of a configuration. Each check names both keys, and knows no family by name."""

from __future__ import annotations

import ast
import math
from typing import Any

from genlab.cli.problem import Problem, walk
from genlab.cli.signature import Definition, assigned, find, look_up
from genlab.kinds import KINDS, sampler_misfit

Plain = dict[str, Any]


def check(plain: Plain) -> None:
    """Raises a Problem for the first fault of a resolved configuration, plain dicts."""
    batch_divides(plain)
    windows_go_on(plain)
    labels_exist(plain)
    image_fits(plain)
    sampler_fits(plain)
    metrics_fit(plain)
    network_fits(plain)


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


def _class(node: Any) -> Definition | None:
    """The class that a node names, where its source can be read."""
    target = node.get("_target_") if isinstance(node, dict) else None
    found = find(target) if isinstance(target, str) else None
    return found if isinstance(found, Definition) and found.is_class else None


def _fact(definition: Definition, name: str) -> Any:
    """A class attribute that is text, or an object of a class whose `name` is; None where there is none, or where the
    class inherits it and each object has its own."""
    value, own = assigned(definition, name), list(ast.walk(definition.node))
    stored = any(isinstance(n, ast.Attribute) and n.attr == name and isinstance(n.ctx, ast.Store) for n in own)
    if value is None or (stored and value.node not in own):
        return None
    match value.node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Call(func=ast.Name(id=made)):
            kind = look_up(value.module, made)
            return _fact(kind, "name") if isinstance(kind, Definition) and kind.is_class else None
    return None


def sampler_fits(plain: Plain) -> None:
    """A sampler is for models of one kind."""
    sampler, model = _class(_get(plain, "sampler")), _class(_get(plain, "model"))
    if model is None or (wanted := _fact(model, "sampled_by")) is None:
        return
    if plain.get("sampler") is None and "resume" in plain:  # of training
        raise Problem(f"is not there, and {model.node.name} is sampled by {KINDS[wanted][0]}", "sampler",
                      f"Take sampler={KINDS[wanted][1]}")  # fmt: skip
    kind = None if sampler is None else _fact(sampler, "kind")
    misfit = None if sampler is None else sampler_misfit(sampler.node.name, kind, model.node.name, wanted)
    if misfit is not None:
        raise Problem(misfit[0], "sampler", misfit[1])


def metrics_fit(plain: Plain) -> None:
    """A metric judges items of one modality."""
    model = _class(_get(plain, "model"))
    made = None if model is None else _fact(model, "modality")
    for name, node in (_get(plain, "evaluation.metrics") or {}).items():
        metric = _class(node)
        judged = None if metric is None else _fact(metric, "modality")
        if made and judged and made != judged:
            raise Problem(
                f"judges {judged}, {model and model.node.name} makes {made}",
                f"evaluation.metrics.{name}",
                "Take evaluation=none, or another protocol",
            )


# Width of a transformer, its heads, in the names that transformers has for them.
HEADS = (
    ("n_embd", "n_head"),
    ("hidden_size", "num_attention_heads"),
    ("d_model", "encoder_attention_heads"),
    ("d_model", "decoder_attention_heads"),
    ("num_attention_heads", "num_key_value_heads"),
)


def network_fits(plain: Plain) -> None:
    """Heads divide the width; a network knows all tokens of the data, and as many positions as it is given tokens."""
    for key, node in walk(_get(plain, "model"), "model"):
        if not isinstance(node, dict):
            continue
        for width, heads in HEADS:
            whole, count = (size if isinstance(size := node.get(name), int) else 0 for name in (width, heads))
            if whole > 0 and count > 0 and whole % count:
                best = max(n for n in range(1, count + 1) if whole % n == 0)
                raise Problem(f"is {count}, which does not divide {width}={whole}", f"{key}.{heads}", f"Take {best}")
    tokens = _get(plain, "data.vocab_size")
    for key, _, value in _fields(plain, "vocab_size"):
        if _is_int(value) and _is_int(tokens) and value < tokens:
            raise Problem(f"is {value}, less than data.vocab_size={tokens}", key, f"Set {key}={tokens}")
    read = {key: size for key in ("data.block_size", "model.block_size") if _is_int(size := _get(plain, key))}
    for key, _, value in _fields(plain, "n_positions", "max_position_embeddings"):
        for source, size in read.items():
            if _is_int(value) and value < size:
                raise Problem(f"is {value}, less than {source}={size}", key, f"Set {key}={size}, or {source}={value}")
