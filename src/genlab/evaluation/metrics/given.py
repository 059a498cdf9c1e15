"""Metrics of given items: perplexity and bits a byte of text; bounds, likelihoods, latents, reconstructions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from genlab import noise
from genlab.data.windows import Windows
from genlab.errors import ConfigError
from genlab.evaluation import likelihood
from genlab.evaluation.metrics.base import Metric
from genlab.evaluation.reference import read_items, subset
from genlab.evaluation.sharding import from_first_rank, sharded
from genlab.objectives import elbo

Count = Annotated[int, "ge 1"]
Rows = dict[str, Tensor]


class Given(Metric):
    """Of items of the reference split, which the model reads.

    Attributes:
        batch: items in one call of the model.
        facts: what was read, for the record.
    """

    needs = frozenset({"reference"})

    def __init__(self, batch: int, **settings: Any) -> None:
        super().__init__()
        self.keep(batch=batch, **settings)
        self.facts: dict[str, Any] = {}

    def check_model(self, model: Any, protocol: Any) -> None:
        """Also that the model has the capability."""
        super().check_model(model, protocol)
        assert self.capability is not None
        if not isinstance(model, self.capability):
            gives = next(name for name in vars(self.capability) if not name.startswith("_"))
            raise ConfigError(
                f"evaluation={protocol.name}: {type(model).__name__} cannot give a {self.key.replace('_', ' ')}, it "
                f"has no {gives}(); choose another protocol"
            )

    def source(self, model: Any, data: Any, protocol: Any) -> Any:
        """What is read; its `rows` are windows that must be read side by side and in order, or None."""
        return data.source(protocol.reference_split)

    def score(self, model: Any, batch: Mapping[str, Tensor]) -> Rows:
        """By name, a number an item, [B] each."""
        raise NotImplementedError

    def read(
        self, model: Any, data: Any, protocol: Any, device: torch.device, done: Callable[[int], Any] = lambda n: None
    ) -> Rows:
        """`score` of protocol.n items (a fixed random choice; None: all), in order. Every rank must call it."""
        split, source = protocol.reference_split, self.source(model, data, protocol)
        ids = torch.from_numpy(subset(len(source), protocol.n))
        together = getattr(source, "rows", None)
        if together is not None and protocol.n is not None:
            raise ConfigError("evaluation.n: contiguous windows are read from the first to the last; leave it null")

        def work(start: int, stop: int) -> Rows:
            rows = self.score(model, read_items(data, source, ids[start:stop], device))
            return {key: value.cpu() for key, value in rows.items()}

        with torch.no_grad():
            if together is None:
                rows = sharded(len(ids), 1, self.batch, work, done)
            else:  # all on every rank, so that a model that carries its state has all of a row
                parts = []
                for start in range(0, len(ids), together):
                    parts.append(work(start, start + together))
                    done(together)
                rows = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        identity = {"data": data.manifest.name, "split": split, "sha256": data.manifest.identity(split)}
        self.facts = {**identity, **self.describe(rows, len(source), model, data, protocol)}
        return rows

    def describe(self, rows: Rows, of: int, model: Any, data: Any, protocol: Any) -> dict[str, Any]:
        """What was read, of `of` items that there are, and a standard error of the first mean."""
        first = next(iter(rows))
        n = len(rows[first])
        error = float(rows[first].std() / math.sqrt(n)) if n > 1 else None
        return {"items": n, "of": of, "standard_error": error, "standard_error_of": first}

    def compute(self) -> dict[str, float]:
        """Means over the items."""
        return {key: float(value.mean()) for key, value in self.judged.data.items()}


class Nats(Given):
    """Of items of any modality, first what is -log p(x) or a bound of it; of texts its share of a token beside it, over
    all tokens, and exp of that."""

    def compute(self) -> dict[str, float]:
        rows = dict(self.judged.data)
        first, tokens = next(iter(rows)), rows.pop("tokens", None)
        values = {key: float(value.mean()) for key, value in rows.items()}
        if tokens is not None:
            nats = float(rows[first].sum() / tokens.sum())
            values |= {f"{first}_per_token": nats, f"{first}_perplexity": exponential(nats)}
        return values


class VariationalNLL(Nats):
    """The model's own upper bound of -log p(x), and its terms.

    Args:
        terms: how many of the L_{t-1} of a diffusion model are computed an item, at random times; None: all.
        batch: items in one call of the model.
    """

    key, capability = "variational_bound", likelihood.VariationalBound

    def __init__(self, terms: Count | None = None, batch: Count = 100) -> None:
        super().__init__(batch, terms=terms)

    def score(self, model: likelihood.VariationalBound, batch: Mapping[str, Tensor]) -> Rows:
        return model.variational_bound(batch, terms=self.terms)


class ImportanceWeightedNLL(Nats):
    """The model's own estimate of -log p(x), under names that say how many draws: nll_iw200.

    Args:
        draws: importance samples an item.
        batch: items in one call of the model.
    """

    key, capability = "importance_nll", likelihood.ImportanceNLL

    def __init__(self, draws: Count = 200, batch: Count = 100) -> None:
        super().__init__(batch, draws=draws)

    def score(self, model: likelihood.ImportanceNLL, batch: Mapping[str, Tensor]) -> Rows:
        found = model.importance_nll(batch, self.draws)
        return {name if name == "tokens" else f"{name}_iw{self.draws}": rows for name, rows in found.items()}


class LatentUsage(Given):
    """How much of its latents a model uses: the mean kl of its posteriors in nats; active_units, dimensions whose mean
    varies over the items by more than 0.01 (Burda et al. 2016, arXiv 1509.00519, section 5.2); mutual_information of
    latent and item in nats (`elbo.mutual_information`), an estimate that cannot exceed log of the number of items.

    Args:
        batch: items in one call of the model.
    """

    key, capability = "latent_usage", likelihood.Posterior

    def __init__(self, batch: Count = 100) -> None:
        super().__init__(batch)

    def score(self, model: likelihood.Posterior, batch: Mapping[str, Tensor]) -> Rows:
        mu, logvar = model.posterior(batch)
        z = mu + (0.5 * logvar).exp() * noise.normal(batch["id"], (noise.Stream.POSTERIOR, 0), mu.shape[1:])
        return {"kl": elbo.gaussian_kl(mu, logvar).double().sum(1), "z": z, "mu": mu, "logvar": logvar}

    def describe(self, rows: Rows, of: int, model: Any, data: Any, protocol: Any) -> dict[str, Any]:
        """Also the dimensions, and what the estimate of the mutual information cannot exceed."""
        limits = {"dimensions": rows["mu"].shape[1], "mutual_information_at_most": math.log(len(rows["mu"]))}
        return super().describe(rows, of, model, data, protocol) | limits

    def compute(self) -> dict[str, float]:
        rows = self.judged.data
        active = rows["mu"].double().var(0, correction=0) > 0.01
        information = elbo.mutual_information(rows["z"], rows["mu"], rows["logvar"])
        kl = float(rows["kl"].mean())
        return {"kl": kl, "active_units": float(active.sum()), "mutual_information": information}


class Reconstruction(Given):
    """Of pixels in [0, 1]: mse; psnr in dB, the mean over images; ssim (Wang et al. 2004) by torchmetrics.

    Args:
        batch: images in one call of the model.
    """

    key, modality, capability = "reconstruction", "image", likelihood.Reconstructs

    def __init__(self, batch: Count = 100) -> None:
        super().__init__(batch)

    def score(self, model: likelihood.Reconstructs, batch: Mapping[str, Tensor]) -> Rows:
        from torchmetrics.functional.image import structural_similarity_index_measure

        shown, back = (x.float().clamp(-1, 1).add(1).div(2) for x in model.reconstruct(batch))
        mse = (shown - back).double().square().flatten(1).mean(1)
        ssim = structural_similarity_index_measure(back, shown, data_range=1.0, reduction="none")
        assert isinstance(ssim, Tensor)
        return {"mse": mse, "psnr": -10 * mse.clamp(min=1e-10).log10(), "ssim": ssim.double().view(-1)}


class TextLikelihood(Given):
    """How likely the windows of a split are: the data's own, one after another, or those of `context` and `stride`.

    A token is predicted from what stands before it in its window (of a masked model, from any part of it), so without
    overlap the first tokens of a window have little context. Gives nats_per_token; perplexity = exp(nats_per_token);
    nats_per_document where each item is one; of the text, whatever its vocabulary: bits_per_byte, bits_per_character,
    and word_perplexity = exp(nats of the split / words between white space) (none of the three where the data has
    unknown words, the last not in scripts without spaces).

    Args:
        context: inputs a window; None: those of the data's own windows.
        stride: tokens that are new in each window, see genlab.data.windows.Windows; None: no overlap.
        batch: windows in one call of the model.
    """

    key, modality, named = "text_likelihood", "text", "{}"  # what is no likelihood says so
    capability: ClassVar[type | None] = likelihood.LogLikelihood

    def __init__(self, context: Count | None = None, stride: Count | None = None, batch: Count = 100) -> None:
        super().__init__(batch, context=context, stride=stride)

    def name_parts(self) -> list[str]:
        return [f"{key}{value}" for key in ("context", "stride") if (value := getattr(self, key)) is not None]

    def scores(self, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sum of log p in nats, float [B], and number of its tokens, int64 [B]."""
        return model.log_likelihood(batch)

    def score(self, model: Any, batch: Mapping[str, Tensor]) -> Rows:
        sums, counts = self.scores(model, batch)
        context = torch.full((len(counts),), batch["input_ids"].shape[1])
        return {"sum": sums.double(), "tokens": counts.long(), "context": context}

    def source(self, model: Any, data: Any, protocol: Any) -> Any:
        """The data's own windows, or those of context and stride where one is stated.

        Raises:
            ConfigError: the split is no stream of tokens; the context is more than the model can read, the stride more
                than the context.
        """
        at, source = f"evaluation.metrics.{self.key}", data.source(protocol.reference_split)
        if self.context is None and self.stride is None:
            return source
        if source.rows is not None:
            raise ConfigError(
                f"{at}.stride: contiguous windows have a context of their own; leave stride and context out"
            )
        if not isinstance(source, Windows) or source.documents is not None:
            raise ConfigError(
                f"{at}.stride: each item is a document of its own, which is read from its beginning; "
                "take data.documents=packed, or leave stride and context out"
            )
        context, limit = self.context or source.length, getattr(model, "context", None)
        if limit is not None and context > limit:
            raise ConfigError(f"{at}.context={context}: the model reads at most {limit} tokens")
        if (self.stride or 0) > context:
            raise ConfigError(f"{at}.stride={self.stride}: must be at most the context, {context} tokens")
        return Windows(
            source.tokens, context, source.origin, stride=self.stride or context, condition_ids=source.condition_ids
        )

    def describe(self, rows: Rows, of: int, model: Any, data: Any, protocol: Any) -> dict[str, Any]:
        """Windows, tokens, bytes, characters and words a token, context and stride in tokens."""
        units = from_first_rank(lambda: data.units_per_token(protocol.reference_split)) or {}
        source, longest = self.source(model, data, protocol), int(rows["context"].max())
        carried = getattr(model, "carried", None) is not None
        return {
            "windows": len(rows["sum"]),
            "of": of,
            "documents": getattr(source, "documents", None) is not None,
            "tokens": int(rows["tokens"].sum()),
            **{f"{unit}s_per_token": units.get(unit) for unit in ("byte", "character", "word")},
            "context": longest,
            "stride": self.stride or longest,  # the data's own follow one another without overlap
            **({} if source.rows is None else {"rows": source.rows, "carried": carried}),
        }

    def compute(self) -> dict[str, float]:
        facts = self.facts
        nats = -self.judged.data["sum"].sum().item() / max(facts["tokens"], 1)
        values = {"nats_per_token": nats, "perplexity": exponential(nats)}
        if facts["documents"]:  # one an item
            values["nats_per_document"] = nats * facts["tokens"] / facts["windows"]
        for unit in ("byte", "character"):
            if facts[f"{unit}s_per_token"] is not None:
                values[f"bits_per_{unit}"] = nats / math.log(2) / facts[f"{unit}s_per_token"]
        if facts["words_per_token"] is not None:
            values["word_perplexity"] = exponential(nats / facts["words_per_token"])
        return {self.named.format(name): value for name, value in values.items()}


class TextBound(TextLikelihood):
    """As TextLikelihood, of a lower bound on log p, as bounds: the tokens of a window together, given the one before.

    Args:
        terms: how many numbers of masked tokens, at random; None: all.
        context: see TextLikelihood.
        stride: see TextLikelihood.
        batch: see TextLikelihood.
    """

    key, named = "text_bound", "{}_bound"
    capability: ClassVar[type | None] = likelihood.LikelihoodBound

    def __init__(
        self, terms: Count | None = None, context: Count | None = None, stride: Count | None = None, batch: Count = 100
    ) -> None:
        super().__init__(context, stride, batch)
        self.keep(terms=terms)

    def scores(self, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return model.likelihood_bound(batch, self.terms)


class TextPseudoLikelihood(TextLikelihood):
    """As TextLikelihood, a token from all others of its window; no length of a code, so without bits a byte."""

    key, named = "text_pseudo_likelihood", "pseudo_{}"
    capability: ClassVar[type | None] = likelihood.PseudoLogLikelihood

    def scores(self, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return model.pseudo_log_likelihood(batch)

    def compute(self) -> dict[str, float]:
        return dict(list(super().compute().items())[:2])  # nats and perplexity


def exponential(nats: float) -> float:
    """exp, infinite where a float has no room."""
    return math.exp(nats) if nats < 700 else math.inf
