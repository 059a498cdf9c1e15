"""The metrics that a protocol names as `{_target_: genlab.evaluation.metrics.NAME}`, and their base class."""

from genlab.evaluation.metrics.answers import AnswerLikelihood, Forgetting
from genlab.evaluation.metrics.base import Items, Measured, Metric, NotApplicable, measure
from genlab.evaluation.metrics.captions import Captioning, Cycle
from genlab.evaluation.metrics.chorales import ChoraleRules
from genlab.evaluation.metrics.fidelity import (
    FID,
    KID,
    Confidence,
    DensityCoverage,
    InceptionScore,
    IntraFID,
    LabelAccuracy,
    NearestNeighbours,
    PrecisionRecall,
)
from genlab.evaluation.metrics.generated import (
    CodeValidity,
    JudgeScores,
    TextCoherence,
    TextCopying,
    TextHarm,
    TextQuality,
    VerseForm,
)
from genlab.evaluation.metrics.given import (
    ImportanceWeightedNLL,
    LatentUsage,
    Reconstruction,
    TextBound,
    TextLikelihood,
    TextPseudoLikelihood,
    VariationalNLL,
)
from genlab.evaluation.metrics.matching import DualScore, Retrieval
from genlab.evaluation.metrics.ngrams import TextNGrams
from genlab.evaluation.metrics.pairs import PythonFunctions, Summarisation, Translation
from genlab.evaluation.metrics.sounds import FrechetAudio, JudgedAs, NearestSounds, Recognition, SoundReconstruction

__all__ = [
    "FID", "KID", "AnswerLikelihood", "Captioning", "ChoraleRules", "CodeValidity", "Confidence", "Cycle",
    "DensityCoverage", "DualScore", "Forgetting", "FrechetAudio", "ImportanceWeightedNLL", "InceptionScore",
    "IntraFID", "Items", "JudgeScores", "JudgedAs", "LabelAccuracy", "LatentUsage", "Measured", "Metric",
    "NearestNeighbours", "NearestSounds", "NotApplicable", "PrecisionRecall", "PythonFunctions", "Recognition",
    "Reconstruction", "Retrieval", "SoundReconstruction", "Summarisation", "TextBound", "TextCoherence", "TextCopying",
    "TextHarm", "TextLikelihood", "TextNGrams", "TextPseudoLikelihood", "TextQuality", "Translation", "VariationalNLL",
    "VerseForm", "measure",
]  # fmt: skip
