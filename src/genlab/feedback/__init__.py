"""What a model learns from besides examples: rewards of what it makes, and preferences between answers."""

from genlab.feedback.base import Feedback, Reference
from genlab.feedback.policy import PolicyGradient
from genlab.feedback.preference import PreferenceFeedback

__all__ = ["Feedback", "PolicyGradient", "PreferenceFeedback", "Reference"]
