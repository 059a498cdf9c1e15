"""A recogniser of speech that was not trained with anything here: pocketsphinx, for single words of a list."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from torch import Tensor

from genlab.errors import ConfigError
from genlab.evaluation.reference import at_rate
from genlab.sound import FULL_SCALE

RATE = 16_000  # Hz, of its English model
SILENCE = 0.2  # seconds of it that it hears before and after a clip


@functools.lru_cache(maxsize=1)
def recogniser(words: tuple[str, ...], key: str = "words") -> Recogniser:
    """See Recogniser; the one of the last words is kept, as its model takes a second to load."""
    return Recogniser(words, key)


class Recogniser:
    """pocketsphinx (Huggins-Daines et al. 2006) with its English model and a grammar of one word.

    Cepstral means are those of the clip itself and its front end begins anew, so no clip depends on those before it.

    Args:
        words: of the grammar, lower case; each must stand in its dictionary.
        key: of the configuration that names the words, for messages.

    Raises:
        ConfigError: pocketsphinx is not installed; a word that it does not know.
    """

    def __init__(self, words: Sequence[str], key: str = "words") -> None:
        try:
            import pocketsphinx
        except ImportError:
            raise ConfigError(f'{key}: recognition needs pocketsphinx: pip install "genlab[audio]"') from None
        self.decoder: Any = pocketsphinx.Decoder(samprate=RATE, cmn="batch", loglevel="FATAL")
        if unknown := [word for word in words if self.decoder.lookup_word(word) is None]:
            raise ConfigError(f"{key}: pocketsphinx does not know the word {unknown[0]!r}; give English words")
        grammar = f"#JSGF V1.0; grammar words; public <word> = {' | '.join(words)} ;"
        self.decoder.add_jsgf_string("words", grammar)
        self.decoder.activate_search("words")
        self.name = f"pocketsphinx-{version('pocketsphinx')}|cmn:batch|silence:{SILENCE}|words:{','.join(words)}"

    def words(self, sounds: Tensor, rate: int) -> list[str]:
        """What it hears in sounds float32 [N, C, T] in [-1, 1] of a rate in Hz: a word each, "" where it hears none."""
        mono = at_rate(sounds.mean(1, keepdim=True), rate, RATE)[:, 0].cpu().numpy()
        return [self._word(np.pad(sound, int(SILENCE * RATE))) for sound in mono]

    def _word(self, sound: np.ndarray) -> str:
        decoder = self.decoder
        decoder.reinit_feat()
        decoder.start_utt()
        decoder.process_raw((sound * FULL_SCALE).round().astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        heard = decoder.hyp()
        return "" if heard is None else heard.hypstr
