"""Vocabularies trained on a text: bytes, subwords, words or characters, through the `tokenizers` library.

What a kind does with text that it has not seen:

byte_bpe    byte-pair encoding on bytes (GPT-2's): nothing is unknown, any text comes back as it was
bpe         byte-pair encoding on characters (Sennrich et al. 2016): a character of no document is unknown
unigram     the pieces of a unigram model (Kudo 2018): likewise
characters  likewise
words       the most frequent words, a space before a word being part of it; all others are [UNK], so it loses text

There is no normaliser: a text is normalised when it is prepared. In all but `words`, decoding is the inverse of
encoding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from genlab.data.characters import Alphabet
from genlab.data.manifest import digest
from genlab.data.registry import DATASETS
from genlab.errors import ConfigError, DataError
from genlab.files import folder_or_cached, read_json

Kind = Literal["byte_bpe", "bpe", "unigram", "words", "characters"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LOSSLESS: tuple[Kind, ...] = ("byte_bpe", "bpe", "unigram", "characters")
END, PAD, MASK, UNKNOWN = "<|endoftext|>", "[PAD]", "[MASK]", "[UNK]"
ENDS = (END, "</s>")  # what ends a text; the second is of T5's and BART's vocabularies
OPTIONAL = (PAD, MASK)
# GPT-2's split into words, numbers, punctuation and spaces (openai/gpt-2, src/encoder.py).
PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def end_token(tokenizer: Tokenizer) -> str | None:
    """The token that ends a text; None: the vocabulary has none."""
    return next((token for token in ENDS if tokenizer.token_to_id(token) is not None), None)


def condition_token(field: str, value: str) -> str:
    """The token that says a document's property before its text, e.g. <|form=五言绝句|>."""
    return f"<|{field}={value}|>"


def special_tokens(kind: Kind, optional: Sequence[str], conditions: Mapping[str, Sequence[str]]) -> list[str]:
    """Tokens that no text is made of, in the order of their ids from 0: the end of a document, what is unknown,
    [PAD], [MASK], then each field's conditions, which so have one range of ids."""
    for name in optional:
        if name not in OPTIONAL:
            raise ConfigError(f"data.special_tokens: no token {name!r}; known: {', '.join(OPTIONAL)}")
    tokens = [END, *([UNKNOWN] if kind == "words" else []), *(name for name in OPTIONAL if name in optional)]
    return tokens + [condition_token(field, value) for field, values in conditions.items() for value in values]


def train_tokenizer(
    kind: Kind, vocab_size: int, texts: Iterable[str], alphabet: Sequence[str], special: Sequence[str]
) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens; a function of its arguments, but for the order of the texts.

    Args:
        vocab_size: special tokens included. "characters" takes all of the alphabet whatever it says.
        texts: to train on.
        alphabet: characters that must have a token, also where the texts lack them (those of the held-out splits).
            "byte_bpe" and "words" do not need it.
        special: ids 0, 1, ...

    Raises:
        ConfigError: vocab_size is too small for the special tokens and the alphabet.
    """
    base = {"byte_bpe": 256, "words": 0, "characters": 0}.get(kind, len(alphabet))
    if kind != "characters" and vocab_size < base + len(special) + 1:
        what = {"byte_bpe": "256 bytes", "words": "one word"}.get(kind, f"{base} characters")
        raise ConfigError(
            f"data.vocab_size={vocab_size} is too small for {what} and {len(special)} special tokens; "
            f"set at least {base + len(special) + 1}"
        )
    options: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": list(special), "show_progress": False}
    trainer: trainers.Trainer
    if kind == "characters":
        ids = {token: i for i, token in enumerate([*special, *sorted(alphabet)])}
        tokenizer = Tokenizer(models.WordLevel(ids))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens(list(special))
        return tokenizer
    if kind == "byte_bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(**options, initial_alphabet=alphabet)
    else:
        model = {"bpe": models.BPE, "unigram": models.Unigram}.get(kind)
        tokenizer = Tokenizer(model() if model else models.WordLevel(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
        tokenizer.decoder = decoders.Fuse()
        if kind == "bpe":
            trainer = trainers.BpeTrainer(**options, initial_alphabet=list(alphabet))
        elif kind == "unigram":
            trainer = trainers.UnigramTrainer(**options, initial_alphabet=list(alphabet))
        else:
            trainer = trainers.WordLevelTrainer(**options)
    tokenizer.train_from_iterator(texts, trainer)
    return _settled(tokenizer, len(special)) if kind == "unigram" else tokenizer


def _settled(tokenizer: Tokenizer, special: int) -> Tokenizer:
    """A unigram vocabulary without what changes from run to run of the library, which goes through hash maps.

    Sums differ by 1e-14, so scores are rounded; pieces of one score are in any order, so they are sorted; characters
    that training has not kept get scores 0.0001 apart in any order above the least one, so they get that one.
    """
    content = json.loads(tokenizer.to_str())
    pieces = content["model"]["vocab"]
    least = min(score for _, score in pieces)

    def score_of(piece: str, score: float) -> float:
        steps = (score - least) * 1e4
        given = len(piece) == 1 and steps < len(pieces) and abs(steps - round(steps)) < 1e-6
        return round(least if given else score, 8)

    rest = [(piece, score_of(piece, score)) for piece, score in pieces[special:]]
    content["model"]["vocab"] = pieces[:special] + sorted(rest, key=lambda pair: (-pair[1], pair[0]))
    return Tokenizer.from_str(json.dumps(content))


def read_vocabulary(given: str, vocab_size: int) -> Tokenizer:
    """The vocabulary of a pretrained model, without the cuts and padding that its file may ask for.

    Args:
        given: a tokenizer.json, a folder with one, or a name that scripts/fetch_data.py knows.
        vocab_size: its tokens, special ones included; asserted.

    Raises:
        ConfigError: no such file, or another number of tokens.
        DataError: the file is broken.
    """
    if is_clip(folder_or_cached(given)):
        tokenizer = folder_tokenizer(folder_or_cached(given))[0]
        check_size(tokenizer, vocab_size, given, "tokens")
        return tokenizer
    path = folder_or_cached(given)
    path = path / "tokenizer.json" if not path.is_file() else path
    if not path.is_file():
        name = given if given in DATASETS else "smollm2"
        raise ConfigError(f"no vocabulary {path}; fetch it (python scripts/fetch_data.py {name}), or name another")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise DataError(f"{path}: not a tokenizer ({str(error)[:200]})") from error
    tokenizer.no_truncation()  # that of sentence encoders: each text would have 128 tokens
    tokenizer.no_padding()
    check_size(tokenizer, vocab_size, f"{path}", "tokens")
    return tokenizer


def is_clip(folder: Path) -> bool:
    """Whether a folder holds CLIP's tokenizer: tokenizer_config.json says so, or there is no tokenizer.json."""
    facts = read_json(folder / "tokenizer_config.json")
    bare = (folder / "merges.txt").is_file() and not (folder / "tokenizer.json").is_file()
    return bare or (isinstance(facts, dict) and str(facts.get("tokenizer_class")).startswith("CLIPTokenizer"))


def folder_tokenizer(folder: Path) -> tuple[Tokenizer, int | None, int]:
    """A tokenizer that transformers has saved, with the ids that it gives; its padding token, and how many tokens it
    cuts to. CLIP's may have vocab.json and merges.txt in the place of a tokenizer.json.

    Raises:
        DataError: it cannot be read.
    """
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast  # slow to import

    kind = CLIPTokenizer if is_clip(folder) else PreTrainedTokenizerFast
    try:
        loaded: Any = kind.from_pretrained(folder, local_files_only=True)
        tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # of many kinds
        raise DataError(f"{folder}: not a tokenizer ({' '.join(str(error).split())[:200]})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if is_clip(folder):  # whose words end with </w>
        parts = [decoders.ByteLevel(), decoders.Replace("</w>", " "), decoders.Strip(" ", 0, 1)]
        tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer, loaded.pad_token_id, int(loaded.model_max_length)


def check_size(tokenizer: Tokenizer, vocab_size: int, origin: str, what: str) -> None:
    """ConfigError with the right number where `vocab_size` is not that of the tokens, which are `what`."""
    if (size := tokenizer.get_vocab_size()) != vocab_size:
        raise ConfigError(f"{origin} has {size} {what}, data.vocab_size is {vocab_size}; set data.vocab_size={size}")


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """sha256 in hex of the tokens and their ids."""
    return digest(sorted(tokenizer.get_vocab().items()))


def encode(tokenizer: Tokenizer, text: str, special_tokens: bool = True) -> list[int]:
    """Ids of a text from outside, a prompt say; special tokens written in it are tokens, or as other text.

    Raises:
        DataError: the vocabulary lacks a character and has no [UNK]; says which, and where.
    """
    vocabulary = tokenizer.get_vocab()
    unknown = getattr(tokenizer.model, "unk_token", None) or UNKNOWN
    if unknown not in vocabulary and isinstance(tokenizer.decoder, decoders.Fuse):  # of characters as they stand
        special = "|".join(re.escape(token.content) for token in tokenizer.get_added_tokens_decoder().values())
        plain = re.sub(special, lambda found: "\0" * len(found[0]), text) if special and special_tokens else text
        for place, character in enumerate(plain):
            if character not in vocabulary and not (character == "\0" and text[place] != "\0"):
                raise DataError(
                    f"character {character!r} (U+{ord(character):04X}) at {place} of {text[:40]!r} is not in the "
                    "vocabulary"
                )
    tokenizer.encode_special_tokens = not special_tokens
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    finally:
        tokenizer.encode_special_tokens = False


def encoder(kind: Kind, tokenizer: Tokenizer) -> Callable[[list[str]], list[np.ndarray]]:
    """Texts -> ids, uint32 [length] each; what looks like a special token in a text is text."""
    if kind == "characters":
        special = len(tokenizer.get_added_tokens_decoder())
        alphabet = Alphabet([token for token, i in tokenizer.get_vocab().items() if i >= special])
        return lambda texts: [alphabet.ids(text).astype(np.uint32) + np.uint32(special) for text in texts]
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    return lambda texts: [
        np.array(found.ids, dtype=np.uint32) for found in plain.encode_batch_fast(texts, add_special_tokens=False)
    ]
