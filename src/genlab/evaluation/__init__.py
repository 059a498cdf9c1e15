"""Evaluation: extractors, metrics, protocols, the metric record, pictures."""

from genlab.evaluation.evaluator import evaluate, write_record
from genlab.evaluation.extractors import Extractor, load_extractor
from genlab.evaluation.likelihood import LogLikelihood
from genlab.evaluation.protocol import Protocol

__all__ = ["Extractor", "LogLikelihood", "Protocol", "evaluate", "load_extractor", "write_record"]
