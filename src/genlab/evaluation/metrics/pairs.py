"""Metrics of texts that answer a source and have references: translations and summaries."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from genlab.data.functions import joined, modules_of_functions, parsed
from genlab.errors import ConfigError
from genlab.evaluation.doctests import has_doctest, passes_doctest
from genlab.evaluation.metrics.base import Items, NotApplicable
from genlab.evaluation.metrics.generated import Sentences, TextMetric, Tokenize
from genlab.evaluation.overlap import BLEU, CHRF, KINDS, ROUGE, split_sentences

NO_SOURCES = "the texts have no sources"


class PairMetric(TextMetric):
    """Base class: texts against their references, in the light of their sources."""

    needs = frozenset({"pairs"})

    def update(self, judged: Items, reference: Items | None = None) -> None:
        if judged.references is None:
            raise NotApplicable("the texts have no references")
        super().update(judged)

    def bleu(self, rows: Sequence[int] | None = None, lowercase: bool = False) -> BLEU:
        """BLEU that has read the texts, or those of some rows."""
        metric = BLEU(self.tokenize, lowercase=lowercase, sync_on_compute=False)  # one rank computes
        rows = range(len(self.judged.data)) if rows is None else rows
        metric.update([self.judged.data[i] for i in rows], [self.judged.references[i] for i in rows])
        return metric


class Translation(PairMetric):
    """BLEU (sacreBLEU's, 0 to 100), the same of lower-cased text, BLEU by length of the source, chrF, and the texts'
    tokens over those of the references.

    Args:
        tokenize: as sacreBLEU's: "13a" (European languages), "intl", "zh", "char", "none" (at spaces).
        source_words: ascending bounds of the lengths of sources, in words between white space: to 10, 11 to 20, ...
    """

    key = "translation"

    def __init__(self, tokenize: Tokenize = "13a", source_words: Sequence[int] = (10, 20, 30)) -> None:
        super().__init__()
        self.keep(tokenize=tokenize, source_words=tuple(source_words))
        bounds = [0, *self.source_words]
        if sorted(set(bounds)) != bounds:
            raise ConfigError(f"evaluation.metrics.{self.key}.source_words={bounds[1:]}: must ascend, from 1")
        self.lengths = {f"bleu_source_to_{last}": (before + 1.0, last) for before, last in pairwise(bounds)}
        self.lengths[f"bleu_source_over_{bounds[-1]}"] = (bounds[-1] + 1.0, math.inf)
        self.outputs = ("bleu", "bleu_lower", "chrf", "length_ratio", *self.lengths)

    def compute(self) -> dict[str, float]:
        cased, lower, chrf = self.bleu(), self.bleu(lowercase=True), CHRF(sync_on_compute=False)
        chrf.update(self.judged.data, self.judged.references)
        metrics = {"bleu": cased, "bleu_lower": lower, "chrf": chrf}
        values = {name: metric.compute().item() for name, metric in metrics.items()}
        values["length_ratio"] = cased.length_ratio
        self.signatures = dict.fromkeys(self.outputs, cased.signature())
        self.signatures |= {name: metric.signature() for name, metric in metrics.items()}
        words = None if self.judged.prompts is None else [len(text.split()) for text in self.judged.prompts]
        for name, (first, last) in self.lengths.items():
            rows = [i for i, count in enumerate(words or ()) if first <= max(1, count) <= last]
            values[name] = self.bleu(rows).compute().item() if rows else math.nan
            if not rows:
                self.missing[name] = NO_SOURCES if words is None else "no source of such a length"
        return values


class Summarisation(PairMetric):
    """F-measures of ROUGE (rouge-score's, 0 to 1) of summaries; `lead_`: of the first sentence of the source in their
    place, which a summary must beat; and the texts' tokens over those of the references.

    Args:
        tokenize: see genlab.evaluation.overlap.ROUGE; "13a" for English.
        sentences: what ends a sentence, for rougeLsum and the lead: "punctuation" or "newline".
    """

    key = "summarisation"
    outputs = (*KINDS, *(f"lead_{kind}" for kind in KINDS), "length_ratio")

    def __init__(self, tokenize: Tokenize = "13a", sentences: Sentences = "punctuation") -> None:
        super().__init__()
        self.keep(tokenize=tokenize, sentences=sentences)

    def compute(self) -> dict[str, float]:
        bleu = self.bleu()
        values = self._rouge(self.judged.data)
        values["length_ratio"] = bleu.length_ratio
        self.signatures["length_ratio"] = bleu.signature()
        if self.judged.prompts is None:
            leads = dict.fromkeys((f"lead_{kind}" for kind in KINDS), math.nan)
            self.missing = dict.fromkeys(leads, NO_SOURCES)
            return values | leads
        sentences = (split_sentences(source.strip(), self.sentences) for source in self.judged.prompts)
        return values | self._rouge([next(iter(own), "") for own in sentences], "lead_")

    def _rouge(self, texts: Sequence[str], prefix: str = "") -> dict[str, float]:
        rouge = ROUGE(self.tokenize, self.sentences, sync_on_compute=False)
        rouge.update(texts, self.judged.references)
        self.signatures |= {prefix + kind: rouge.signature(kind) for kind in KINDS}
        return {prefix + kind: value.item() for kind, value in rouge.compute().items() if kind in KINDS}


class PythonFunctions(PairMetric):
    """Bodies of Python functions for their signatures and docstrings (data=python_functions): function_parses, the
    share that with the source are one function and nothing else; function_doctests, of those whose docstring has
    examples, the share that give what these say.

    A function is judged by its examples where its true body passes them, and one that says nothing does not: others
    cannot be run alone, or show something else. There are few, and how many is in the signature.

    Args:
        doctests: whether what was generated is run, see genlab.evaluation.doctests.
        seconds: of processor time a function.
    """

    key, outputs = "python_functions", ("function_parses", "function_doctests")

    def __init__(self, doctests: bool = False, seconds: Annotated[float, "gt 0"] = 5.0) -> None:
        super().__init__()
        self.keep(doctests=doctests, seconds=seconds)

    def compute(self) -> dict[str, float]:
        sources = self.judged.prompts
        if sources is None:
            raise NotApplicable(NO_SOURCES)
        bodies = [self.judged.data, [real[0] for real in self.judged.references], ["pass"] * len(sources)]
        ours, real, bare = ([joined(*pair) for pair in zip(sources, texts, strict=True)] for texts in bodies)
        parses = [parsed(text) is not None for text in ours]
        columns: list[bool | None] = [None] * len(ours)
        shown = [i for i, source in enumerate(sources) if has_doctest(source)] if self.doctests else []
        modules = modules_of_functions() if shown else {}
        for i in shown:
            module = modules.get(sources[i], "")
            if self._passes(real[i], module) and not self._passes(bare[i], module):
                columns[i] = self._passes(ours[i], module)
        judged = [passed for passed in columns if passed is not None]
        self.columns = {"parses": parses, "doctest": columns}
        version = f"python-{platform.python_version()}"
        self.signatures = {"function_parses": version, "function_doctests": f"{version}|judged:{len(judged)}"}
        if not judged:
            self.missing["function_doctests"] = "none of these functions has examples that judge it"
        share = sum(judged) / len(judged) if judged else math.nan
        return {"function_parses": sum(parses) / len(parses), "function_doctests": share}

    def _passes(self, text: str, module: str) -> bool:
        function = parsed(text)
        return function is not None and passes_doctest(text, function.name, module, self.seconds)
