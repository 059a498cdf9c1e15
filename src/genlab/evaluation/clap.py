"""CLAP's embedding of sounds as features, from a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.evaluation.sounds import SoundExtractor
from genlab.files import sha256_of
from genlab.folders import load_folder

WEIGHTS, SETTINGS = "model.safetensors", "preprocessor_config.json"


class _Hearing(nn.Module):
    """float32 [B, 1, T] -> (embedding float32 [B, D],): log-mels as the folder says, network."""

    def __init__(self, network: Any, listener: Any) -> None:
        super().__init__()
        self.network, self.listener = network, listener
        self.sample_rate = int(listener.sampling_rate)
        self.longest = int(listener.max_length_s * listener.sampling_rate)  # of a longer one it would take any part

    def forward(self, sounds: Tensor) -> tuple[Tensor]:
        heard = self.listener(
            list(sounds[:, 0, : self.longest].cpu().numpy()), sampling_rate=self.sample_rate, return_tensors="pt"
        )
        heard["is_longer"] = torch.zeros(len(sounds), 1, dtype=torch.bool)  # of a fused one it would say so of any clip
        out = self.network(**{name: value.to(sounds.device) for name, value in heard.items()})
        return (out.audio_embeds,)


class ClapExtractor(SoundExtractor):
    """An Extractor around CLAP; of sounds of its own rate, of longer ones their beginning."""

    def __init__(self, network: _Hearing, sha256: str, batch: int, device: torch.device | str) -> None:
        seconds = network.longest / network.sample_rate
        super().__init__("clap", network, sha256, 0, batch, device)
        self.has_logits, self.resize = False, f"the first {seconds:g} s, repeated where shorter (inside the extractor)"


def clap(name: str, batch: int | None, device: torch.device | str, path: str | None) -> ClapExtractor:
    """CLAP's projected embedding of sounds (Wu et al. 2023, arXiv 2211.06687), not normalised: features for a Frechet
    audio distance that hears more than speech (Gui et al. 2023, arXiv 2311.01616).

    Args:
        path: folder with config.json, model.safetensors and preprocessor_config.json of a ClapModel.

    Raises:
        ConfigError: no folder is given, or it is not such a model.
    """
    import transformers

    if not path:
        raise ConfigError(
            f"evaluation.extractor={name}: set evaluation.extractor.path to the folder of a Hugging Face ClapModel "
            f"(config.json, {WEIGHTS}, {SETTINGS}); nothing is downloaded"
        )
    folder, where = Path(path), f"evaluation.extractor={name} evaluation.extractor.path={path}"
    kind: Any = transformers.ClapAudioModelWithProjection
    network: Any = load_folder(folder, kind, where, ("clap", "clap_audio_model"))
    if not (folder / SETTINGS).is_file():
        raise ConfigError(f"{where}: no {SETTINGS} in {folder}, which ClapProcessor.save_pretrained would have written")
    listener = transformers.ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    if (listener.truncation == "fusion") != bool(network.config.enable_fusion):
        raise ConfigError(
            f"{where}: truncation is {listener.truncation!r} in {SETTINGS}, enable_fusion is "
            f"{network.config.enable_fusion} in config.json: take both from one model"
        )
    return ClapExtractor(_Hearing(network, listener), sha256_of(folder / WEIGHTS), batch or 10, device)
