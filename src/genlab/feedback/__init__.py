"""What a model learns from besides examples: rewards of what it makes, and preferences between answers."""

from genlab.feedback.base import Feedback, Reference
from genlab.feedback.pictures import DDPO, DRaFT
from genlab.feedback.policy import PolicyGradient
from genlab.feedback.preference import PreferenceFeedback

__all__ = ["DDPO", "DRaFT", "Feedback", "PolicyGradient", "PreferenceFeedback", "Reference"]
