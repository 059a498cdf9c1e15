"""Metrics of images and the captions that belong to them: retrieval, and how generated pictures fit what was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from genlab.data.sources import Source
from genlab.errors import ConfigError
from genlab.evaluation import likelihood
from genlab.evaluation.metrics.base import Items, Metric, NotApplicable
from genlab.evaluation.metrics.given import Given, Rows
from genlab.evaluation.sharding import sharded
from genlab.judges import CaptionJudge
from genlab.objectives.contrastive import keys_of

BLOCK = 1000  # rows of similarities at a time


def places(rows: Tensor, columns: Tensor, right: Tensor) -> Tensor:
    """The place of the nearest right column of each row, from 1. Of equally near columns the wrong ones stand first, so
    that vectors which are all alike find nothing.

    Args:
        rows: vectors, float [R, E].
        columns: likewise, [C, E].
        right: bool [R, C], at least one a row.

    Returns:
        int64 [R].
    """
    found = []
    for some, wanted in zip(rows.split(BLOCK), right.split(BLOCK), strict=True):
        near = some @ columns.T
        best = near.masked_fill(~wanted, -torch.inf).amax(1, keepdim=True)
        found.append(1 + ((near >= best) & ~wanted).sum(1))
    return torch.cat(found)


def distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct keys, and where each comes first."""
    names, which = keys.unique(return_inverse=True)
    first = torch.full_like(names, len(keys))
    return names, first.scatter_reduce(0, which, torch.arange(len(keys)), "amin")


class Retrieval(Given):
    """Shares of images whose caption is the nearest, or among the five nearest, of all distinct captions
    (image_to_text_r1, _r5), and of distinct captions of the split of which a picture is (text_to_image_r1, _r5). For
    ties see `places`.

    Args:
        captions: among which an image's is sought: those of the split, or of all splits of the data.
        batch: items in one call of the model.
    """

    key, capability = "retrieval", likelihood.PairFeatures
    outputs = ("image_to_text_r1", "image_to_text_r5", "text_to_image_r1", "text_to_image_r5")

    def __init__(self, captions: Literal["split", "all"] = "split", batch: Annotated[int, "ge 1"] = 100) -> None:
        super().__init__(batch, captions=captions)

    def name_parts(self) -> list[str]:
        return ["all"] if self.captions == "all" else []

    def check(self, model: Any, data: Any, protocol: Any) -> None:
        super().check(model, data, protocol)
        check_captions(data, protocol)

    def score(self, model: likelihood.PairFeatures, batch: Mapping[str, Tensor]) -> Rows:
        image, text = model.image_features(batch["image"]), model.text_features(batch["caption"])
        return {"image": image.float(), "text": text.float(), "key": keys_of(batch["caption"])}

    def read(
        self, model: Any, data: Any, protocol: Any, device: torch.device, done: Callable[[int], Any] = lambda n: None
    ) -> Rows:
        """Also the captions of other splits, as "texts" and "keys"."""
        rows = super().read(model, data, protocol, device, done)
        parts = [{"keys": rows["key"], "texts": rows["text"]}]
        for split in data.manifest.splits if self.captions == "all" else ():
            source = data.source(split)

            def work(start: int, stop: int, source: Source = source) -> Rows:
                ids = torch.arange(start, stop)
                caption = source.batch(ids, torch.zeros_like(ids))["caption"].to(device)
                return {"keys": keys_of(caption).cpu(), "texts": model.text_features(caption).float().cpu()}

            with torch.no_grad():
                parts.append(sharded(len(source), 1, self.batch, work))
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.facts["captions"] = len(whole["keys"].unique())
        return rows | whole

    def describe(self, rows: Rows, of: int, model: Any, data: Any, protocol: Any) -> dict[str, Any]:
        return {"items": len(rows["key"]), "of": of}

    def compute(self) -> dict[str, float]:
        rows = self.judged.data
        names, first = distinct(rows["keys"])
        own, own_first = distinct(rows["key"])
        ways = {
            "image_to_text": places(rows["image"], rows["texts"][first], rows["key"][:, None] == names),
            "text_to_image": places(rows["text"][own_first], rows["image"], own[:, None] == rows["key"]),
        }
        return {f"{way}_r{k}": float((found <= k).double().mean()) for way, found in ways.items() for k in (1, 5)}


class DualScore(Metric):
    """How pictures fit the captions that they were made for, by a judge that was not trained with the model.

    dual_score, the mean of the judge's numbers; dual_r1, the share of pictures to which their own caption is nearer
    than any other of the data set, all splits; where the data tells its facts, dual_shape and dual_tone, the shares
    whose nearest caption has the right name without its tone, and the right tone (of those that are to have one). After
    "real_" the same of the reference split's own pictures: what can be reached. By a folder of CLIP the values are
    called clip_score and so on.

    Args:
        judge: such as genlab.dual_judge.DualJudge.
    """

    key, modality = "dual_score", "image"
    needs = frozenset({"samples", "reference", "pairs"})

    def __init__(self, judge: CaptionJudge) -> None:
        super().__init__()
        self.keep(judge=judge)
        kind = getattr(judge, "kind", str(judge).split(" ")[0])  # of a stored record: the judge's name alone
        own = tuple(f"{kind}_{part}" for part in ("score", "r1", "shape", "tone"))
        self.outputs = (*own, *(f"real_{name}" for name in own))
        self.names: dict[str, dict[str, Any]] = {}

    def check(self, model: Any, data: Any, protocol: Any) -> None:
        super().check(model, data, protocol)
        check_captions(data, protocol)
        assert self.judge.name  # a judge that is not there is told now, not after all pictures are made

    def prepare(self, data: Any, groups: list[Items]) -> None:
        """Reads the distinct captions of all splits, each with its facts."""
        self.names = {}
        for split in data.manifest.splits:
            source = data.source(split)
            captions = source.references(torch.arange(len(source)))
            facts = data.facts(split) if hasattr(data, "facts") else [{}] * len(source)
            for several, own in zip(captions, facts, strict=True):
                self.names.setdefault(several[0], own)

    def compute(self) -> dict[str, float]:
        texts = self.judge.text_features(list(self.names))
        values: dict[str, float] = {}
        for prefix, items in (("", self.judged), ("real_", self.reference)):
            for part, value in self._values(items, texts).items():
                values[f"{prefix}{self.judge.kind}_{part}"] = value
        self.missing = dict.fromkeys(set(self.outputs) - set(values), "the data tells nothing of it")
        return values | dict.fromkeys(self.missing, float("nan"))

    def _values(self, items: Items, texts: Tensor) -> dict[str, float]:
        if items is None or items.references is None or items.data is None:
            raise NotApplicable("the pictures have no captions")
        place = {name: i for i, name in enumerate(self.names)}
        asked = torch.tensor([place[several[0]] for several in items.references])
        images = self.judge.image_features(items.data)
        right = asked[:, None] == torch.arange(len(texts))
        values = {
            "score": float(self.judge.scores(images, texts[asked]).double().mean()),
            "r1": float((places(images, texts, right) == 1).double().mean()),
        }
        known = list(self.names.values())
        nearest = torch.cat([(part @ texts.T).argmax(1) for part in images.split(BLOCK)])
        pairs = [(known[i], known[j]) for i, j in zip(nearest.tolist(), asked.tolist(), strict=True)]
        for part, fact in (("shape", "name"), ("tone", "tone")):
            kept = [a.get(fact) == b[fact] for a, b in pairs if b.get(fact)]
            values |= {part: sum(kept) / len(kept)} if kept else {}
        return values

    def notes(self, n: int, dimensions: int | None) -> list[str]:
        """Among how many captions, and by which judge."""
        return [f"{self.key}: among {len(self.names)} captions, by a {self.judge.name}"]


def check_captions(data: Any, protocol: Any) -> None:
    """Refuses pictures without captions.

    Raises:
        ConfigError: says what has some.
    """
    if data.source(protocol.reference_split).references(torch.zeros(1, dtype=torch.int64)) is None:
        raise ConfigError(
            f"evaluation={protocol.name}: the pictures of {data.manifest.name} have no captions; take data that have, "
            "such as data=emoji"
        )
