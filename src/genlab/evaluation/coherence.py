"""Coherence: how near neighbouring sentences are in meaning, by a local sentence encoder. English only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genlab.data.documents import script_shares
from genlab.errors import ConfigError
from genlab.evaluation.overlap import HAN, split_sentences
from genlab.evaluation.reference import SUBSET_SEED
from genlab.evaluation.sharding import sharded
from genlab.files import cache_root, sha256_of
from genlab.folders import load_folder

OUTPUTS = ("coherence", "coherence_shuffled")
FILES = ("config.json", "tokenizer.json", "model.safetensors")
LONGEST = 256  # tokens of a sentence that are read, the model's own limit
BATCH = 64  # sentences in one call; the same whatever the number of processes
ENGLISH = 0.5  # share of Latin letters below which texts are not judged


def sentences_of(text: str, sentences: str = "punctuation") -> list[str]:
    """Sentences of a text, without those that have no letter or digit.

    Args:
        sentences: "newline": each line is one (verse). "punctuation": they end after . ! ? … before white space, after
            。！？, and at blank lines; a single line end is a space, as prose is wrapped (nothing between Chinese
            characters). See overlap.split_sentences.
    """
    if sentences == "punctuation":
        text = re.sub(rf"(?<=[{HAN}，、；：])[ \t]*\n[ \t]*(?=[{HAN}])", "", text)
        text = re.sub(r"(?<!\n)\n(?!\n)", " ", text)
    return [part for line in split_sentences(text, sentences) if re.search(r"[^\W_]", part := line.strip())]


def encoder_folder(path: str | None = None) -> Path:
    """The folder of a sentence encoder: `path`, else minilm in the cache.

    Raises:
        ConfigError: one of FILES is not there.
    """
    folder = Path(path).expanduser() if path else cache_root() / "minilm"
    absent = [name for name in FILES if not (folder / name).is_file()]
    if absent:
        raise ConfigError(
            f"evaluation.metrics.text_coherence.sentence_encoder: no {' and no '.join(absent)} in {folder}: run "
            f"`python scripts/fetch_data.py minilm`, or give evaluation.metrics.text_coherence.sentence_encoder=FOLDER"
        )
    return folder


class SentenceEncoder:
    """all-MiniLM-L6-v2 (Reimers and Gurevych 2019, Sentence-BERT; Wang et al. 2020, MiniLM), or another BERT that is
    used so: the mean of the last hidden states over the tokens, of length 1.

    Args:
        path: folder with config.json, tokenizer.json and model.safetensors; None: `minilm` in the cache.
        device: where it runs, in float32.

    Raises:
        ConfigError: there is no such folder, or it holds no BERT.
    """

    def __init__(self, path: str | None = None, device: torch.device | str = "cpu") -> None:
        from tokenizers import Tokenizer
        from transformers import BertModel

        folder, where = encoder_folder(path), "evaluation.metrics.text_coherence.sentence_encoder"
        network: Any = load_folder(folder, BertModel, f"{where}={folder}", ("bert",), unused="pooler")
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises Exception itself
            raise ConfigError(f"{where}={folder}: tokenizer.json cannot be read: {str(error)[:200]}") from error
        self.network: nn.Module = network.to(device)
        self.tokenizer.enable_truncation(LONGEST)
        self.tokenizer.enable_padding(pad_id=network.config.pad_token_id or 0)
        self.device, self.dimension = torch.device(device), int(network.config.hidden_size)
        self.sha256 = sha256_of(folder / FILES[2])

    @torch.no_grad()
    def encode(self, sentences: Sequence[str]) -> Tensor:
        """float32 [N, D] of length 1 each, on the CPU, for N sentences in one call of the network."""
        found = self.tokenizer.encode_batch(list(sentences))
        ids = torch.tensor([one.ids for one in found], device=self.device)
        mask = torch.tensor([one.attention_mask for one in found], device=self.device)
        hidden = self.network(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1)
        return nn.functional.normalize(mean, dim=1).cpu()


def embedded(encoder: SentenceEncoder, sentences: Sequence[str]) -> Tensor:
    """float32 [N, D], shared over the ranks; the same sentences stand in a batch whatever their number, those of like
    length together, as all are padded to the longest."""
    if not sentences:
        return torch.zeros(0, encoder.dimension)
    order = sorted(range(len(sentences)), key=lambda i: (len(sentences[i]), i))
    ordered = [sentences[i] for i in order]
    rows = sharded(len(order), BATCH, BATCH, lambda a, b: {"of": encoder.encode(ordered[a:b])})["of"]
    return rows[torch.tensor(order).argsort()]


def neighbouring(embeddings: Tensor, lengths: Sequence[int]) -> tuple[float, int]:
    """Mean cosine of all pairs of sentences that follow one another in a text, and the number of pairs.

    Args:
        embeddings: of all sentences, text after text, [N, D], each of length 1.
        lengths: sentences of each text; their sum is N.

    Returns:
        In -1..1; nan without a pair.
    """
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    pairs = owner[:-1] == owner[1:]
    cosines = (embeddings[:-1].double() * embeddings[1:].double()).sum(1)[pairs]
    return (float(cosines.mean()) if len(cosines) else float("nan")), len(cosines)


def coherence(
    texts: Sequence[str], encoder: SentenceEncoder, sentences: str = "punctuation"
) -> tuple[dict[str, float], int, list[float]]:
    """Coherence of texts, and of the same sentences in a random order over all texts (a fixed one).

    Every rank must call it.

    Returns:
        OUTPUTS; pairs of neighbours; the mean over each text's pairs, nan where it has none.
    """
    split = [sentences_of(text, sentences) for text in texts]
    lengths = [len(parts) for parts in split]
    found = embedded(encoder, [sentence for parts in split for sentence in parts])
    order = np.random.Generator(np.random.Philox(key=SUBSET_SEED)).permutation(len(found))
    value, pairs = neighbouring(found, lengths)
    shuffled, _ = neighbouring(found[torch.from_numpy(order)], lengths)
    each = [neighbouring(part, [len(part)])[0] for part in found.split(lengths)]
    return {"coherence": value, "coherence_shuffled": shuffled}, pairs, each


def not_english(texts: Sequence[str]) -> str | None:
    """Why these texts have no coherence by an English encoder, in one line; None where they may."""
    shares = script_shares("\n".join(texts))
    if shares["latin"] >= ENGLISH:
        return None
    most = max(shares, key=lambda name: shares[name]) if any(shares.values()) else "no letters"
    return f"the sentence encoder reads English only, and {shares['latin']:.0%} of the letters are Latin (most: {most})"
