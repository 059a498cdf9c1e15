"""Judges that say how well an item does what was asked, for `feedback.reward`, best-of-n and metrics."""

from genlab.rewards.code import PythonFunction
from genlab.rewards.learned import LearnedReward
from genlab.rewards.pictures import Confidence, JPEGSize
from genlab.rewards.poems import Rhyme, TonalPattern, Verse
from genlab.rewards.texts import ExactAnswer, ListedWords, Overlap, WeightedSum

__all__ = [
    "Confidence", "ExactAnswer", "JPEGSize", "LearnedReward", "ListedWords", "Overlap", "PythonFunction", "Rhyme",
    "TonalPattern", "Verse", "WeightedSum",
]  # fmt: skip
