"""What decides a value of a metric record, in three parts, and how records of the same name differ in it.

measured: reference, extractor, resizing, number of samples, settings of the metric, torch-fidelity. Values that differ
    here do not compare.
sampled: weights, sampler, network evaluations, guidance, labels. Values that differ here compare model and sampler
    together.
incidental: machine, dtype, ranks, chunks, other libraries. They move the last digits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genlab.cli.comparison.differences import ABSENT, TARGET, differences, same
from genlab.cli.comparison.numbers import shown
from genlab.cli.old_forms import record_in_new_form
from genlab.runs.keys import LOSS_NEUTRAL, without

# Fields of the protocol that another part of the record states as it was in fact.
STATED = {
    "generated": ("n", "labels"),
    "model": ("weights",),
    "extractor": ("extractor",),
    "reference": ("reference_split", "reference_n"),
}
NOT_DECISIVE = ("metrics", "name", "floor", "chunk")
RESULTS = ("standard_error",)  # of the reference part: measured, not chosen
COMPUTING = ("batch", "dtype", "tf32", "autocast")  # of the extractor, and of a metric that calls the model
TIMES = ("seconds", "per_second")
PACKAGE = "torch-fidelity"
Owner = tuple[int, str]  # an entry's number and a run's seed
SPLIT = re.compile(r"_(train|val|test)\d*k?(\.proxy)?$")  # see evaluation.protocol: names of values with a reference


@dataclass(frozen=True)
class Facts:
    """The three parts, nested dicts of primitives without None."""

    measured: dict[str, Any]
    sampled: dict[str, Any]
    incidental: dict[str, Any]

    def same_protocol(self, other: Facts) -> bool:
        """Whether two values can be averaged."""
        return same(self.measured, other.measured) and same(self.sampled, other.sampled)


def facts(record: Mapping[str, Any], name: str) -> Facts:
    """What decides the value `name` of a record: what all metrics share, and the settings of its own one. Unknown
    fields count as decisive; one that an older record does not have is its default."""
    record = record_in_new_form(record)
    parts = {key: mapping(record.get(key)) for key in ("protocol", "reference", "extractor", "resize", "generated")}
    model, versions, generated = mapping(record.get("model")), mapping(record.get("versions")), parts["generated"]
    stated = {field for part, fields in STATED.items() if record.get(part) for field in fields}
    metric = mapping(mapping(parts["protocol"].get("metrics")).get(record["metric_of"].get(name)))
    protocol = {**_less(parts["protocol"], (*NOT_DECISIVE, *stated)), "metric": _less(metric, COMPUTING)}
    batches = [mapping(parts["protocol"].get("extractor")).get("batch"), metric.get("batch")]
    measured = {
        "protocol": protocol,
        "reference": _less(parts["reference"], RESULTS) if SPLIT.search(name) else None,
        "extractor": _less(parts["extractor"], COMPUTING),
        "resize": parts["resize"],
        "samples": generated.get("n"),
        "versions": {PACKAGE: versions.get(PACKAGE)} if parts["extractor"] else None,
    }
    sampled = {"weights": model.get("weights"), **_less(generated, ("n", "seeds", "chunk_size", *TIMES))}
    if "guidance_scale" in mapping(sampled.get("sampler")):
        sampled.pop("guidance_scale", None)  # the same number again
    incidental = {
        "dtype": model.get("dtype"),
        "machine": record.get("machine"),
        "chunk_size": generated.get("chunk_size"),
        "protocol": {"batch": batches[parts["extractor"] == {}], "chunk": parts["protocol"].get("chunk")},
        "extractor": {field: parts["extractor"].get(field) for field in COMPUTING},
        "versions": _less(versions, (PACKAGE, "python")),
    }
    return Facts(*(_without_none(part) for part in (measured, sampled, incidental)))


def changes(own: Facts, other: Facts) -> list[str]:
    """How another record of the same run was made: 'guidance_scale=1', 'sampler=DDIM', 'weights=raw'."""
    found = differences([{**own.sampled, **own.measured}, {**other.sampled, **other.measured}])
    if any(key.split(".")[0] == "sampler" for key in found):
        found.pop("nfe", None)  # it follows from the sampler
    return [f"{key.removeprefix('sampler.')}={_value(values[1])}" for key, values in found.items()]


def loss_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the meaning of val/loss: the data and the objective; not the network or how it is trained."""
    left = without({node: mapping(config.get(node)) for node in ("model", "data")}, LOSS_NEUTRAL)
    networks = ("genlab.networks.", "diffusers.", "transformers.", "torch.nn.")
    model = {
        key: value
        for key, value in left["model"].items()
        if not str(mapping(value).get(TARGET, "")).startswith(networks)
    }
    return {"model": model, "data": left["data"]}


def described(nodes: Sequence[Any], owners: Sequence[Owner]) -> list[str]:
    """Each field that differs with all its values and whose they are: 'nfe: 20 (1), 40 (2, 3)'."""
    lines = []
    for key, values in differences(nodes).items():
        by_value: dict[str, list[Owner]] = {}
        for value, owner in zip(values, owners, strict=True):
            by_value.setdefault(_value(value), []).append(owner)
        lines.append(f"{key}: " + ", ".join(f"{value} ({_named(some, owners)})" for value, some in by_value.items()))
    return lines


def _named(some: Sequence[Owner], owners: Sequence[Owner]) -> str:
    """Owners in words: '1-3, 5'; only some runs of a group: '4 [seeds 0, 2]'."""
    words: list[str] = []
    whole: list[int] = []
    for number in dict.fromkeys(number for number, _ in some):
        seeds = list(dict.fromkeys(seed for n, seed in some if n == number))
        if len(seeds) == len({owner for owner in owners if owner[0] == number}):
            whole.append(number)
        else:
            words.append(f"{number} [seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}]")
    return ", ".join([ranges(whole), *words] if whole else words)


def ranges(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 5] -> '1-3, 5'."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _value(value: Any) -> str:
    return "none" if value is ABSENT else shown(value)


def mapping(value: Any) -> dict[str, Any]:
    """The value as a dict; {} for anything else, for a damaged record must not stop a comparison."""
    return dict(value) if isinstance(value, Mapping) else {}


def _less(node: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in keys}


def _without_none(node: Any) -> Any:
    """A field that is not there and one that is null say the same."""
    if not isinstance(node, Mapping):
        return node
    kept = {str(key): _without_none(value) for key, value in node.items() if value is not None}
    return {key: value for key, value in kept.items() if value != {}}
