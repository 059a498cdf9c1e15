"""Metrics of models that answer: how likely they find held-out answers, and how well they still read a plain page."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from genlab.data.vocabulary import encode, end_token
from genlab.data.windows import Windows
from genlab.errors import ConfigError
from genlab.evaluation import likelihood
from genlab.evaluation.metrics.given import Count, Given, Rows, exponential
from genlab.evaluation.sharding import sharded

PAGE = Path(__file__).parent.parent / "page.txt"


class AnswerLikelihood(Given):
    """How likely the answers of a split are, given what is asked: of pairs the targets and their ends, of conversations
    the assistant's turns. Gives answer_nats_per_token, answer_bits_per_token and answer_perplexity, over all tokens.

    Args:
        batch: items in one call of the model.
    """

    key, modality, capability = "answer_likelihood", "text", likelihood.LogLikelihood
    outputs = ("answer_nats_per_token", "answer_bits_per_token", "answer_perplexity")

    def __init__(self, batch: Count = 8) -> None:
        super().__init__(batch)

    def score(self, model: likelihood.LogLikelihood, batch: Mapping[str, Tensor]) -> Rows:
        sums, counts = model.log_likelihood(batch)
        return {"nats": -sums.double(), "tokens": counts.long()}

    def describe(self, rows: Rows, of: int, model: Any, data: Any, protocol: Any) -> dict[str, Any]:
        return super().describe(rows, of, model, data, protocol) | {"tokens": int(rows["tokens"].sum())}

    def compute(self) -> dict[str, float]:
        rows = self.judged.data
        nats = float(rows["nats"].sum() / rows["tokens"].sum())
        return dict(zip(self.outputs, (nats, nats / math.log(2), exponential(nats)), strict=True))


class Forgetting(Given):
    """How well a model still reads a plain page: page_bits_per_byte, and page_nats_per_token. To be compared with what
    the model was before it was tuned (another run, or base=true), in windows of one context for both.

    Args:
        path: a text file, UTF-8; None: the page of this package, English prose that was written for it.
        context: tokens that a token is predicted from at most; a window begins every half of it.
        batch: windows in one call of the model.
    """

    key, modality, capability = "forgetting", "text", likelihood.TextLogLikelihood
    outputs, split_in_name = ("page_bits_per_byte", "page_nats_per_token"), False
    needs, reads_data = frozenset[str](), False

    def __init__(self, path: str | None = None, context: Annotated[int, "ge 2"] = 512, batch: Count = 1) -> None:
        super().__init__(batch, path=path, context=context)

    def check(self, model: Any, data: Any, protocol: Any) -> None:
        """Also that there is a page, and that the model can read so much of it at a time."""
        super().check(model, data, protocol)
        self.text()
        if (limit := getattr(model, "context", None)) is not None and self.context > limit:
            at = f"evaluation.metrics.{self.key}.context"
            raise ConfigError(f"{at}={self.context}: the model reads at most {limit} tokens; set {at}={limit}")

    def text(self) -> str:
        """The page.

        Raises:
            ConfigError: no such file; not UTF-8; nothing in it.
        """
        path = PAGE if self.path is None else Path(self.path).expanduser()
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"evaluation.metrics.{self.key}.path={path}: not a text ({error})") from None
        if not text:
            raise ConfigError(f"evaluation.metrics.{self.key}.path={path}: it is empty")
        return text

    def source(self, model: Any, data: Any, protocol: Any) -> Windows:
        """Windows of the page, after the token that ends a text where the vocabulary has one."""
        end = end_token(model.tokenizer)
        ids = encode(model.tokenizer, self.text(), special_tokens=False)
        ids = ids if end is None else [model.tokenizer.token_to_id(end), *ids]
        return Windows(torch.tensor(ids, dtype=torch.int32), self.context, "the page", stride=max(1, self.context // 2))

    def read(
        self, model: Any, data: Any, protocol: Any, device: torch.device, done: Callable[[int], Any] = lambda n: None
    ) -> Rows:
        source = self.source(model, data, protocol)

        def work(start: int, stop: int) -> Rows:
            ids = torch.arange(start, stop)
            batch = {key: rows.to(device) for key, rows in source.batch(ids, torch.zeros_like(ids)).items()}
            sums, counts = model.text_log_likelihood(batch)
            return {"nats": -sums.double().cpu(), "tokens": counts.long().cpu()}

        with torch.no_grad():
            rows = sharded(len(source), 1, self.batch, work, done)
        first = 0 if end_token(model.tokenizer) is not None else 1  # nothing predicts the first token
        size = len(model.tokenizer.decode(encode(model.tokenizer, self.text(), False)[first:]).encode())
        digest = hashlib.sha256(self.text().encode()).hexdigest()
        self.facts = {
            "page_sha256": digest,
            "bytes": size,
            "tokens": int(rows["tokens"].sum()),
            "context": self.context,
        }
        return rows

    def compute(self) -> dict[str, float]:
        nats = float(self.judged.data["nats"].sum())
        bits = nats / math.log(2) / self.facts["bytes"]
        return dict(zip(self.outputs, (bits, nats / self.facts["tokens"]), strict=True))
