"""Text on its way: what can be shown of it while tokens come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from genlab.decoding.reading import ENDED, Decoded, Reader, lengths_of
from genlab.decoding.tokens import TokenSampler

INCOMPLETE = "\ufffd"  # what a tokenizer gives for bytes that are no whole UTF-8 character


@dataclass(frozen=True)
class Streamed:
    """A sampler that writes the first row of a batch, its prompt first, as its tokens come.

    A character whose bytes are spread over tokens is written once it is whole.

    Args:
        sampler: one that shows tokens as they come.
        tokenizer: of the library tokenizers.
        write: called with each new piece of text.
        answers_only: without the prompt.
    """

    sampler: TokenSampler
    tokenizer: Any
    write: Callable[[str], Any]
    answers_only: bool = False

    def decode(self, reader: Reader, prompt: Tensor, seeds: Tensor) -> Decoded:
        """See TokenSampler.decode."""
        written, first = 0, int(lengths_of(prompt)[0]) if self.answers_only else 0

        def show(tokens: Tensor, last: bool = False) -> None:
            nonlocal written
            text = self.tokenizer.decode([token for token in tokens[0, first:].tolist() if token != ENDED])
            end = len(text if last else text.rstrip(INCOMPLETE))
            if end > written:
                self.write(text[written:end])
                written = end

        decoded = self.sampler.decode(reader, prompt, seeds, show)
        show(decoded.tokens, last=True)
        self.write("\n")
        return decoded
