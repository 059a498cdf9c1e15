"""Stored configurations and records read as of today: classes of data before a text was one class, protocols before
metrics were objects.

Protocols had `metrics: [fid, kid]`, and the settings of all metrics side by side (`kid_subsets: 100`). Now they have
`metrics: {fid: {_target_: ...FID}, kid: {_target_: ...KID, subsets: 100}}`, and what feature metrics share under
`extractor`. Nothing new is added to these tables. No torch is imported, as configs are checked without it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from genlab.cli.signature import defaults

TEXT = "genlab.data.text.Text"
# Old target: arguments that have another name now, and those that say which rule it was.
OLD: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "genlab.data.text.CharacterText": ({}, {"split": "share", "tokenizer": "characters"}),
    "genlab.data.text.TokenizedText": ({"tokenizer": "vocabulary"}, {"split": "share", "tokenizer": "characters"}),
    "genlab.data.words.WordText": ({}, {"split": "files", "tokenizer": "words"}),
    "genlab.data.corpus.Corpus": ({}, {"split": "documents"}),
    "genlab.data.corpus.PythonLibrary": ({}, {"split": "documents", "path": "python:stdlib"}),
}
PROTOCOL = "genlab.evaluation.protocol.Protocol"
# Old name: class, and how the values of other names begin that it gave.
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fid": ("FID", ()),
    "kid": ("KID", ()),
    "precision_recall": ("PrecisionRecall", ("precision", "recall")),
    "density_coverage": ("DensityCoverage", ("density", "coverage")),
    "intra_fid": ("IntraFID", ()),
    "nearest_neighbours": ("NearestNeighbours", ("nearest_distance", "authenticity", "near_duplicates")),
    "inception_score": ("InceptionScore", ()),
    "label_accuracy": ("LabelAccuracy", ()),
    "confident_09": ("Confidence", ()),
    "text_quality": ("TextQuality", ("distinct", "self_bleu", "rep_", "zipf", "mean_length", "duplicates", "sacrebleu",
                                     "bleu", "chrf", "rouge")),
    "text_coherence": ("TextCoherence", ("coherence",)),
    "text_copying": ("TextCopying", ("longest_match", "seen_", "nearest_jaccard", "near_copies")),
    "text_harm": ("TextHarm", ("listed_", "classifier_")),
    "code_validity": ("CodeValidity", ("code_valid",)),
    "verse_form": ("VerseForm", ()),
    "text_likelihood": ("TextLikelihood", ()),
    "text_bound": ("TextBound", ()),
    "text_pseudo_likelihood": ("TextPseudoLikelihood", ()),
    "variational_bound": ("VariationalNLL", ()),
    "importance_nll": ("ImportanceWeightedNLL", ()),
    "reconstruction": ("Reconstruction", ()),
}  # fmt: skip
_WINDOWS = ("text_likelihood", "text_bound", "text_pseudo_likelihood")
_GIVEN = (*_WINDOWS, "variational_bound", "importance_nll", "reconstruction")
# Old field: the name of the setting, and the metrics that have it.
SETTINGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "kid_subsets": ("subsets", ("kid",)),
    "kid_subset_size": ("subset_size", ("kid",)),
    "neighbours": ("neighbours", ("precision_recall",)),
    "density_neighbours": ("neighbours", ("density_coverage",)),
    "splits": ("splits", ("inception_score",)),
    "draws": ("draws", ("importance_nll",)),
    "terms": ("terms", ("variational_bound", "text_bound")),
    "tokenize": ("tokenize", ("text_quality",)),
    "sentences": ("sentences", ("text_quality", "text_coherence")),
    "context": ("context", _WINDOWS),
    "stride": ("stride", _WINDOWS),
    "ngrams": ("ngrams", ("text_copying",)),
    "sentence_encoder": ("sentence_encoder", ("text_coherence",)),
    "words": ("words", ("text_harm",)),
    "classifier": ("classifier", ("text_harm",)),
    "threshold": ("threshold", ("text_harm",)),
    "batch": ("batch", _GIVEN),
}
CONDITIONS = {"prompt": ["condition.prompt"], "prompts": ["conditions"]}  # keys of sample.py, of the same time
SHARED = {"extractor": "name", "extractor_path": "path", "resize": "resize", "batch": "batch"}  # of the extractor


def new_form(node: Any) -> Any:
    """A protocol's node of a config, or `protocol` of a record, in the new form; one that has it comes back as it is.

    Args:
        node: plain containers. Fields of the old form that the metrics of the node do not have are left out.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("metrics"), list):
        return node
    metrics: dict[str, Any] = {  # an unknown name stays, and is refused where the protocol is built
        str(name): {"_target_": f"genlab.evaluation.metrics.{METRICS[name][0]}"} if str(name) in METRICS else name
        for name in node["metrics"]
    }
    given = any(name in _GIVEN for name in metrics)
    kept = {key: value for key, value in node.items() if key not in SETTINGS and key not in SHARED and key != "metrics"}
    extractor = {
        new: node[old] for old, new in SHARED.items() if node.get(old) is not None and not (given and old == "batch")
    }
    for old, (setting, owners) in SETTINGS.items():
        for owner in owners:
            if owner in metrics and old in node and not (old == "batch" and node[old] is None):
                metrics[owner][setting] = node[old]
    return {**kept, "metrics": metrics, "extractor": extractor}


def record_in_new_form(record: Mapping[str, Any]) -> dict[str, Any]:
    """A metric record in the new form: the protocol, every setting that it leaves at its default, and `metric_of`."""
    protocol, of = record.get("protocol"), record.get("metric_of")
    if isinstance(protocol, Mapping) and isinstance(protocol.get("metrics"), list):
        of = _owners(record)
        listed = [*protocol["metrics"], *(name for name in of.values() if name is not None)]
        protocol = new_form({**protocol, "metrics": listed})
    if not isinstance(protocol, Mapping):
        return {**record, "metric_of": {}}
    metrics = protocol.get("metrics")
    metrics = metrics if isinstance(metrics, Mapping) else {}
    filled = {
        **defaults(PROTOCOL),
        **protocol,
        "metrics": {
            name: {**defaults(node.get("_target_")), **node}
            for name, node in metrics.items()
            if isinstance(node, Mapping)
        },
    }
    return {**record, "protocol": filled, "metric_of": dict(of) if isinstance(of, Mapping) else {}}


def _owners(record: Mapping[str, Any]) -> dict[str, str | None]:
    """The metric that gave each value of a record of the old form."""
    protocol = record["protocol"]
    listed = [name for name in protocol["metrics"] if isinstance(name, str) and name in METRICS]
    if any(name in _GIVEN for name in listed):
        return dict.fromkeys(record["values"], listed[0])
    prefix = "r" if protocol.get("judged") == "reconstructions" else ""
    return {
        value: next(
            (m for m in (*listed, *METRICS) if value.removeprefix(prefix).startswith((m, *METRICS[m][1]))), None
        )
        for value in record["values"]
    }


def new_keys(key: str, known: Collection[str] = ()) -> list[str]:
    """The keys that have taken the place of an old one: evaluation.kid_subsets -> evaluation.metrics.kid.subsets.

    Args:
        known: keys of the configuration; of several new keys those whose node is there are meant.
    """
    group, _, field = key.partition(".")
    if group != "evaluation":
        return CONDITIONS.get(key, [])
    setting, owners = SETTINGS.get(field, ("", ()))
    new = [f"evaluation.extractor.{SHARED[field]}"] if field in SHARED else []
    new += [f"evaluation.metrics.{owner}.{setting}" for owner in owners]
    return [name for name in new if name.rpartition(".")[0] in known] or new


def successor(target: str) -> str:
    """What stands in the place of an old target, for whoever still writes it; "" of another."""
    names, rule = OLD.get(target, ({}, {}))
    changes = [f"{key}: {value}" for key, value in rule.items()] + [f"{new} for {old}" for old, new in names.items()]
    return f"{TEXT} with {', '.join(changes)}" if target in OLD else ""


def modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration, plain containers, whose data has its target of today; another comes back as it is."""
    data = config.get("data")
    if not isinstance(data, Mapping) or not isinstance(target := data.get("_target_"), str) or target not in OLD:
        return dict(config)
    names, rule = OLD[target]
    return {**config, "data": {**{names.get(k, k): v for k, v in data.items()}, **rule, "_target_": TEXT}}
