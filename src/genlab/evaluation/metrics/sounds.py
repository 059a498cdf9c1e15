"""Metrics of sounds: how near they are to real ones, what judges and a recogniser hear, and what a round trip costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Annotated, Any

import torch
from torch import Tensor

from genlab.errors import ConfigError
from genlab.evaluation import likelihood
from genlab.evaluation.extractors import load_extractor
from genlab.evaluation.metrics.base import Items, Metric, NotApplicable
from genlab.evaluation.metrics.fidelity import FID, NearestNeighbours, label_accuracy
from genlab.evaluation.metrics.given import Given, Rows
from genlab.evaluation.neighbours import distances, memorisation
from genlab.evaluation.recognition import Recogniser, recogniser
from genlab.evaluation.reference import at_rate, data_modality
from genlab.evaluation.sounds import SoundExtractor
from genlab.networks.mel import LogMel

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LOUD = -6.0  # log-mels of a clip above this count as sound in mel_distance_loud


class FrechetAudio(FID):
    """Frechet audio distance (Kilgour et al. 2019, arXiv 1812.08466, equation 1): FID's formula, of an extractor of
    sounds, whose name the value carries. Theirs is VGGish, so values compare only with those of the same name."""

    key, modality, outputs, extractor_in_name = "frechet_audio", "audio", ("frechet_audio",), True


class NearestSounds(NearestNeighbours):
    """See neighbours.Memorisation, of an extractor of sounds; with a picture and a page of the closest pairs.

    Beside them nearest_ratio and nearest_ratio_05, the median and the lowest twentieth over the samples of the distance
    to the nearest real clip over that clip's distance to its own nearest: about 1 and not far below for what is new,
    near 0 for copies. A clip that has a duplicate in the reference has no ratio.
    """

    key, modality, extractor_in_name = "nearest_sounds", "audio", True
    outputs = (*NearestNeighbours.outputs, "nearest_ratio", "nearest_ratio_05")

    def compute(self) -> tuple[float, ...]:
        generated, real = self.features()
        distance, own = distances(generated, real)
        ratio = (distance / own)[own > 0]
        low = [float(ratio.quantile(q)) if len(ratio) else float("nan") for q in (0.5, 0.05)]
        return (*astuple(memorisation(generated, real)), *low)


class SoundMetric(Metric):
    """Of sounds, beside the same of the reference split's own clips under "real_": what can be reached."""

    modality = "audio"
    needs = frozenset({"samples", "reference"})

    def right(self, items: Items) -> float:
        """Share of items that are heard as what they should be."""
        raise NotImplementedError

    def compute(self) -> tuple[float, ...]:
        real = self.right(self.reference)
        try:
            return self.right(self.judged), real
        except NotApplicable as reason:
            self.missing = {self.outputs[0]: str(reason)}
            return float("nan"), real

    def asked(self, items: Items, condition: str) -> Tensor:
        """What each item should be, int64 [N].

        Raises:
            NotApplicable: that is not known.
        """
        if condition not in items.condition:
            raise NotApplicable(f"the sounds were not made for a {condition}")
        return items.condition[condition]

    def check_condition(self, condition: str, classes: int, data: Any, protocol: Any, what: str) -> None:
        """Refuses a data set whose clips are not told apart so, or into another number of classes.

        Raises:
            ConfigError: says how to leave the metric out.
        """
        check_classes(self.key, condition, classes, data, protocol, what, f"evaluation.metrics.{self.key}=null")


def check_classes(key: str, condition: str, classes: int, data: Any, protocol: Any, what: str, leave: str) -> None:
    """See SoundMetric.check_condition; `leave` is what leaves it out."""
    at, name = f"evaluation.metrics.{key}", data.manifest.name
    if condition not in data.source(protocol.reference_split).known:
        raise ConfigError(f"{at}: the clips of {name} have no {condition}; leave it out with {leave}")
    there = data.manifest.facts.get("num_classes" if condition == "label" else f"num_{condition}s")
    if there not in (None, classes):
        raise ConfigError(f"{at}: {what} tells {classes} apart, {name} has {there}; leave it out with {leave}")


class JudgedAs(SoundMetric):
    """Share of sounds that a judge hears as what they were asked to be: label_accuracy, speaker_accuracy, ...

    Args:
        condition: by whose name the sounds were told: "label", "speaker".
        judge: an extractor of sounds whose logits are that condition's values, in order.
        path: of its weights; None: the shipped ones.
    """

    def __init__(self, condition: str, judge: str, path: str | None = None) -> None:
        super().__init__()
        self.keep(condition=condition, judge=judge, path=path)
        self.outputs = (f"{condition}_accuracy", f"real_{condition}_accuracy")

    def check(self, model: Any, data: Any, protocol: Any) -> None:
        super().check(model, data, protocol)
        self.check_condition(self.condition, self.extractor().labels, data, protocol, self.judge)

    def extractor(self) -> SoundExtractor:
        """The judge, on the device of the metric."""
        return load_judge(self.judge, self.device, self.path, self.key)

    def right(self, items: Items) -> float:
        asked, judge = self.asked(items, self.condition), self.extractor()
        assert items.modality is not None
        heard = judge.features(at_rate(items.data, items.modality.sample_rate, judge.sample_rate))  # type: ignore[attr-defined]
        self.signatures = dict.fromkeys(self.outputs, f"{judge.name}, sha256 {judge.sha256[:12]}")
        return label_accuracy(heard["logits"], asked)


def load_judge(name: str, device: Any, path: str | None, key: str) -> SoundExtractor:
    """An extractor that tells sounds apart.

    Raises:
        ConfigError: it reads no sounds, or tells nothing apart.
    """
    judge = load_extractor(name, device=device, path=path)
    if not isinstance(judge, SoundExtractor) or not judge.labels:
        raise ConfigError(
            f"evaluation.metrics.{key}.judge={name} tells no sounds apart: take spoken-digits-cnn or "
            "spoken-speakers-cnn"
        )
    return judge


class Recognition(SoundMetric):
    """Share of clips in which pocketsphinx, told that it hears one of these words, hears the label's.

    It was made of other speech, so what it says does not come from the training set; it makes mistakes of its own,
    which real_recognition shows.

    Args:
        words: of the labels, in order; English.
    """

    key, outputs = "recognition", ("recognition", "real_recognition")

    def __init__(self, words: Sequence[str] = DIGITS) -> None:
        super().__init__()
        self.keep(words=tuple(words))

    def check(self, model: Any, data: Any, protocol: Any) -> None:
        """Also that there is a recogniser, which knows the words."""
        super().check(model, data, protocol)
        self.check_condition("label", len(self.words), data, protocol, f"a list of {len(self.words)} words")
        self.recogniser()

    def recogniser(self) -> Recogniser:
        """Of these words."""
        return recogniser(self.words, f"evaluation.metrics.{self.key}.words")

    def right(self, items: Items) -> float:
        asked, ear = self.asked(items, "label"), self.recogniser()
        assert items.modality is not None
        heard = ear.words(items.data, items.modality.sample_rate)  # type: ignore[attr-defined]
        self.signatures = dict.fromkeys(self.outputs, ear.name)
        return sum(word == self.words[i] for word, i in zip(heard, asked.tolist(), strict=True)) / len(heard)


class SoundReconstruction(Given):
    """What is left of a clip after a model's round trip (a codec, a vocoder).

    si_sdr, in dB: the scale-invariant signal-to-distortion ratio (Le Roux et al. 2019, arXiv 1811.02508, equation 4),
    by torchmetrics; it hears phases, so a vocoder, which makes its own, has a low one. mel_distance: the mean absolute
    difference of log-mels (`LogMel`); mel_distance_loud: where the clip's own are above -6 only. With a judge also
    label_accuracy of what came back, and real_label_accuracy of the clips themselves.

    Args:
        judge: an extractor of sounds whose logits are the labels; None: none.
        batch: clips in one call of the model.
        levels: of a codec, numbers of levels that clips come back through as well, in names: si_sdr_3_levels.
    """

    key, modality, capability = "sound_reconstruction", "audio", likelihood.Reconstructs

    def __init__(
        self,
        judge: str | None = "spoken-digits-cnn",
        batch: Annotated[int, "ge 1"] = 20,
        levels: Sequence[int] = (),
    ) -> None:
        super().__init__(batch, judge=judge, levels=tuple(levels))
        names = ("si_sdr", "mel_distance", "mel_distance_loud", *(("label_accuracy",) if judge else ()))
        self.outputs = (*names, *(("real_label_accuracy",) if judge else ()))
        self.outputs += tuple(f"{name}_{count}_levels" for count in levels for name in names)
        self.rate = 0
        self.ear: SoundExtractor | None = None
        self.mel: LogMel | None = None

    def check(self, model: Any, data: Any, protocol: Any) -> None:
        super().check(model, data, protocol)
        most = getattr(model, "levels", 0)
        if wrong := [count for count in self.levels if not 1 <= count <= most]:
            there = f"1 to {most}" if most else "none"
            raise ConfigError(f"evaluation.metrics.{self.key}.levels: {wrong[0]}, but the model has {there}")
        if self.judge is not None:
            judge, leave = load_judge(self.judge, self.device, None, self.key), f"evaluation.metrics.{self.key}.judge="
            check_classes(self.key, "label", judge.labels, data, protocol, self.judge, f"{leave}null")

    def read(self, model: Any, data: Any, protocol: Any, device: torch.device, done: Any = lambda n: None) -> Rows:
        self.rate = data_modality(data).sample_rate  # type: ignore[attr-defined]
        self.mel = LogMel(self.rate, high=min(8000.0, self.rate / 2)).to(device)
        self.ear = None if self.judge is None else load_judge(self.judge, device, None, self.key)
        return super().read(model, data, protocol, device, done)

    def score(self, model: Any, batch: Mapping[str, Tensor]) -> Rows:
        real, back = model.reconstruct(batch)
        rows = self.compared(back, real, batch)
        if self.ear is not None:
            rows["real_label_accuracy"] = self.heard(real, batch)
        for count in self.levels:
            some = self.compared(model.reconstruct(batch, levels=count)[1], real, batch)
            rows |= {f"{name}_{count}_levels": values for name, values in some.items()}
        return rows

    def compared(self, back: Tensor, real: Tensor, batch: Mapping[str, Tensor]) -> Rows:
        """Clips that came back, float [B, C, T], against themselves."""
        if real.shape != back.shape:
            raise ConfigError(f"evaluation: reconstruct gave {list(back.shape)} for {list(real.shape)}")
        back, real = back.float().clamp(-1, 1), real.float().clamp(-1, 1)
        assert self.mel is not None
        rows = {"si_sdr": si_sdr(back, real), **mel_distances(self.mel, back, real)}
        return rows if self.ear is None else rows | {"label_accuracy": self.heard(back, batch)}

    def heard(self, sounds: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Whether the judge reads each as its label, float64 [B]."""
        assert self.ear is not None
        sounds = at_rate(sounds.float().clamp(-1, 1).cpu(), self.rate, self.ear.sample_rate)
        return (self.ear.features(sounds)["logits"].argmax(1) == batch["label"].cpu()).double()


def si_sdr(back: Tensor, real: Tensor) -> Tensor:
    """See SoundReconstruction. float [B, C, T] each -> float64 [B], the mean over channels."""
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    return scale_invariant_signal_distortion_ratio(back.double(), real.double()).mean(1)


def mel_distances(mel: LogMel, back: Tensor, real: Tensor) -> dict[str, Tensor]:
    """See SoundReconstruction. float [B, C, T] each -> float64 [B] by name; of a silent clip mel_distance_loud is 0."""
    shown = mel(real).double()
    apart, loud = (mel(back).double() - shown).abs().flatten(1), (shown > LOUD).flatten(1)
    share = (apart * loud).sum(1) / loud.sum(1).clamp(min=1)
    return {"mel_distance": apart.mean(1), "mel_distance_loud": share}
