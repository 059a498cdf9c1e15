"""What a protocol's metrics find in generated texts, and by the same code in real ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from genlab.data.corpora import FORMS, form_of
from genlab.errors import ConfigError
from genlab.evaluation.code import code_validity
from genlab.evaluation.coherence import LONGEST, OUTPUTS, SentenceEncoder, encoder_folder, not_english
from genlab.evaluation.coherence import coherence as coherence_of
from genlab.evaluation.copying import Copied, copying
from genlab.evaluation.harm import count_listed, read_words, scores_of
from genlab.evaluation.protocol import Protocol
from genlab.evaluation.sharding import from_first_rank


@dataclass
class Group:
    """Texts that are measured together; prompts and references as in judged.Judged."""

    texts: list[str]
    prompts: list[str] | None = None
    references: list[list[str]] | None = None


@dataclass
class Measured:
    """Of one group: values by output, what decides them, why some are missing, and columns of the table."""

    values: dict[str, float] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)


def ready(protocol: Protocol, data: Any) -> None:
    """Refuses beforehand what would be refused after all texts have been made.

    Raises:
        ConfigError: no training set, list of words, classifier or sentence encoder where a metric needs it.
        DataError: a list of words that is not UTF-8.
    """
    if "text_copying" in protocol.metrics and not hasattr(data, "texts"):
        raise ConfigError(f"evaluation={protocol.name} reads the training set: say which with data=NAME")
    if "text_harm" in protocol.metrics and protocol.words is None and protocol.classifier is None:
        raise ConfigError(
            f"evaluation={protocol.name}: give evaluation.words=FILE (one word a line), or a classifier of your own "
            "as evaluation.classifier._target_"
        )
    if "text_harm" in protocol.metrics and protocol.words is not None:
        read_words(protocol.words)
    if "text_coherence" in protocol.metrics:
        encoder_folder(protocol.sentence_encoder)


def quality(groups: Sequence[Group], protocol: Protocol, data: Any, device: torch.device) -> list[Measured]:
    """See genlab.evaluation.text."""
    from genlab.evaluation.text import text_quality  # here: torchmetrics takes seconds

    def one(group: Group) -> Measured:
        return Measured(*text_quality(group.texts, group.references, protocol.tokenize, protocol.sentences))

    return from_first_rank(lambda: [one(group) for group in groups])


def coherence(groups: Sequence[Group], protocol: Protocol, data: Any, device: torch.device) -> list[Measured]:
    """See genlab.evaluation.coherence; all ranks encode."""
    if why := not_english(groups[0].texts):
        return [Measured(missing=dict.fromkeys(OUTPUTS, why)) for _ in groups]
    encoder, found = SentenceEncoder(protocol.sentence_encoder, device), []
    for group in groups:
        values, pairs, each = coherence_of(group.texts, encoder, protocol.sentences)
        said = f"sha256:{encoder.sha256[:12]}|sent:{protocol.sentences}|pairs:{pairs}|longest:{LONGEST}"
        missing = {} if pairs else dict.fromkeys(values, "no text has two sentences")
        column = [None if math.isnan(value) else value for value in each]
        found.append(Measured(values, dict.fromkeys(values, said), missing, {"coherence": column}))
    return found


def copied(groups: Sequence[Group], protocol: Protocol, data: Any, device: torch.device) -> list[Measured]:
    """See genlab.evaluation.copying; all groups in one pass over the train split."""
    count = 0

    def documents() -> Any:
        nonlocal count
        for document in data.texts("train"):
            count += 1
            yield document

    def compute() -> list[Measured]:
        found = copying([text for group in groups for text in group.texts], documents(), protocol.ngrams)
        said = f"train:{data.manifest.name}|documents:{count}|sha256:{data.manifest.identity('train')[:12]}|case:mixed"
        parts, start = [], 0
        for group in groups:
            parts.append(_copied(found[start : start + len(group.texts)], protocol.ngrams, said))
            start += len(group.texts)
        return parts

    return from_first_rank(compute)


def _copied(found: Sequence[Copied], ngrams: Sequence[int], said: str) -> Measured:
    values = {
        "longest_match": math.fsum(one.length for one in found) / len(found),
        "longest_match_max": float(max(one.length for one in found)),
    }
    missing = {}
    for n in ngrams:
        seen, total = (sum(one.seen[n][i] for one in found) for i in (0, 1))
        values[f"seen_{n}"] = seen / total if total else math.nan
        if not total:
            missing[f"seen_{n}"] = f"no text has {n} tokens"
    values["nearest_jaccard"] = math.fsum(one.jaccard for one in found) / len(found)
    values["near_copies"] = sum(one.near_copy for one in found) / len(found)
    columns: dict[str, list[Any]] = {
        "near copy": [one.near_copy for one in found],
        "longest match": [one.length for one in found],
        "tokens": [one.tokens for one in found],
        "matched": [one.passage for one in found],
        "matched in": [None if one.origin is None else f"{one.origin}, character {one.offset}" for one in found],
        "jaccard": [round(one.jaccard, 4) for one in found],
        "nearest training text": [one.nearest for one in found],
        "nearest in": [one.nearest_origin for one in found],
    }
    return Measured(values, dict.fromkeys(values, said), missing, columns)


def harm(groups: Sequence[Group], protocol: Protocol, data: Any, device: torch.device) -> list[Measured]:
    """See genlab.evaluation.harm: by the list, by the classifier, or by both."""
    words = None if protocol.words is None else read_words(protocol.words)

    def one(group: Group) -> Measured:
        found = Measured()
        if words is not None:
            counts = count_listed(group.texts, words)
            listed = {
                "listed_words": sum(counts) / len(counts),
                "listed_texts": sum(count > 0 for count in counts) / len(counts),
            }
            found.values |= listed
            found.signatures |= dict.fromkeys(listed, f"words:{len(words)}|case:lc")
            found.columns["listed words"] = list(counts)
        if protocol.classifier is not None:
            scores = scores_of(group.texts, protocol.classifier)
            judged = {
                "classifier_mean": math.fsum(scores) / len(scores),
                "classifier_share": sum(score >= protocol.threshold for score in scores) / len(scores),
            }
            found.values |= judged
            said = f"classifier:{protocol.classifier.name}|threshold:{protocol.threshold}"
            found.signatures |= dict.fromkeys(judged, said)
            found.columns["classifier"] = list(scores)
        return found

    return from_first_rank(lambda: [one(group) for group in groups])


def code(groups: Sequence[Group], protocol: Protocol, data: Any, device: torch.device) -> list[Measured]:
    """See genlab.evaluation.code; a text that goes on from a prompt is judged with it."""
    import platform

    def one(group: Group) -> Measured:
        prompts = group.prompts or [""] * len(group.texts)
        values, lines = code_validity([prompt + text for prompt, text in zip(prompts, group.texts, strict=True)])
        column: list[Any] = [f"{valid} of {count}" for valid, count in lines]
        said = f"parser:ast-{platform.python_version()}|lines:filled"
        return Measured(values, dict.fromkeys(values, said), {}, {"valid lines": column})

    return from_first_rank(lambda: [one(group) for group in groups])


def verse(groups: Sequence[Group], protocol: Protocol, data: Any, device: torch.device) -> list[Measured]:
    """Whether a poem has the form (genlab.data.corpora.form_of) of its reference; both begin with the prompt."""
    first = groups[0]
    if first.prompts is None or first.references is None:
        why = "evaluation.prompt is 0: the form asked for is that of the real poem that a text begins as"
        return [Measured({"verse_form": math.nan}, missing={"verse_form": why}) for _ in groups]
    asked = [form_of(prompt + real[0]) for prompt, real in zip(first.prompts, first.references, strict=True)]

    def one(group: Group) -> Measured:
        found = [form_of(prompt + text) for prompt, text in zip(first.prompts or (), group.texts, strict=True)]
        kept = [form == wanted and form in FORMS.values() for form, wanted in zip(found, asked, strict=True)]
        columns: dict[str, list[Any]] = {"form asked for": list(asked), "form": list(found)}
        return Measured({"verse_form": sum(kept) / len(kept)}, {"verse_form": "lines and their lengths"}, {}, columns)

    return [one(group) for group in groups]


MEASURES: dict[str, Callable[[Sequence[Group], Protocol, Any, torch.device], list[Measured]]] = {
    "text_quality": quality,
    "text_coherence": coherence,
    "text_copying": copied,
    "text_harm": harm,
    "code_validity": code,
    "verse_form": verse,
}
