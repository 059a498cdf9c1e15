"""Metrics of captions against the names of pictures: of a model's own, and of a captioner's for generated pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genlab.errors import ConfigError
from genlab.evaluation.metrics.base import Items, Metric, NotApplicable
from genlab.evaluation.metrics.generated import Tokenize
from genlab.evaluation.metrics.pairs import PairMetric
from genlab.evaluation.overlap import KINDS, ROUGE
from genlab.modality import to_float
from genlab.picture_conditions import Picture


def is_name(text: str, names: Sequence[str]) -> bool:
    """Whether a text is one of the names, case and white space aside."""

    def plain(words: str) -> str:
        return " ".join(words.casefold().split())

    return plain(text) in map(plain, names)


class Captioning(PairMetric):
    """Captions against the names of their pictures: exact_name, the share that are one of them, case and white space
    aside; and F-measures of ROUGE (rouge-score's, 0 to 1), each by the best of the names.

    Args:
        tokenize: see genlab.evaluation.overlap.ROUGE; "13a" for English.
    """

    key, outputs = "captioning", ("exact_name", *KINDS[:3])

    def __init__(self, tokenize: Tokenize = "13a") -> None:
        super().__init__()
        self.keep(tokenize=tokenize)

    def compute(self) -> dict[str, float]:
        texts, names = self.judged.data, self.judged.references
        exact, rouge = list(map(is_name, texts, names)), ROUGE(self.tokenize, sync_on_compute=False)
        rouge.update(texts, names)
        self.columns["exact"] = exact
        self.signatures = {"exact_name": f"nrefs:{rouge.nrefs}|case:lc|space:one"}
        self.signatures |= {kind: rouge.signature(kind) for kind in self.outputs[1:]}
        scores = {kind: value.item() for kind, value in rouge.compute().items() if kind in self.outputs}
        return {"exact_name": sum(exact) / len(exact), **scores}


class Cycle(Metric):
    """From a text to a picture to a text: what a captioner calls generated pictures, against the names of those that
    they were to be, as `Captioning` judges it; `cycle_real_`: of the real pictures of the reference split.

    Args:
        captioner: a run that is told a picture and writes a text, as a genlab.parts.FrozenPart; the record has its
            sha256. It writes by its own sampler.
        tokenize: see Captioning.

    Raises:
        ConfigError: it is no such run; or, beforehand, its pictures have another shape.
    """

    key, modality = "cycle", "image"
    needs = frozenset({"samples", "reference", "pairs"})
    outputs = ("cycle_exact_name", "cycle_rougeL", "cycle_real_exact_name", "cycle_real_rougeL")

    def __init__(self, captioner: Any, tokenize: Tokenize = "13a") -> None:
        super().__init__()
        self.keep(captioner=captioner, tokenize=tokenize)
        told = getattr(captioner.on("cpu"), "conditions", ()) if hasattr(captioner, "on") else ()
        self._shapes = [tuple(known.shape) for known in told if isinstance(known, Picture)]
        if not isinstance(captioner, str):  # which it is in a stored record
            self._check_captioner()

    def _check_captioner(self) -> None:
        if len(self._shapes) != 1 or self.captioner.on("cpu").modality.name != "text":
            source = getattr(self.captioner, "source", self.captioner)
            raise ConfigError(
                f"evaluation.metrics.{self.key}.captioner: {source} makes no texts of pictures; give a run of "
                "model=captioner"
            )

    def check(self, model: Any, data: Any, protocol: Any) -> None:
        """Also that the captioner reads pictures of this shape."""
        super().check(model, data, protocol)
        self._check_captioner()
        if (shape := tuple(data.manifest.facts.get("shape", self._shapes[0]))) != self._shapes[0]:
            raise ConfigError(
                f"evaluation.metrics.{self.key}.captioner: {self.captioner.source} reads pictures of "
                f"{list(self._shapes[0])}, these are {list(shape)}; give another"
            )

    def compute(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for prefix, items in (("cycle_", self.judged), ("cycle_real_", self.reference)):
            if items.references is None:
                raise NotApplicable("the pictures have no names")
            captioning = Captioning(self.tokenize)
            captioning.update(Items(self._captions(items.data), references=items.references))
            values |= {prefix + name: value for name, value in captioning.compute().items()}
        return {name: values[name] for name in self.outputs}

    def _captions(self, images: Tensor) -> list[str]:
        """Of uint8 [N, C, H, W]."""
        captioner = self.captioner.on(self.device)
        return captioner.sample(torch.arange(len(images)), {"image": to_float(images)}).data
