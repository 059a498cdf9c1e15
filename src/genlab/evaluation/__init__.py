"""Evaluation: extractors, metrics, protocols, the metric record, pictures."""

from genlab.evaluation.evaluator import evaluate, evaluate_samples
from genlab.evaluation.extractors import Extractor, load_extractor
from genlab.evaluation.likelihood import LogLikelihood
from genlab.evaluation.protocol import Protocol
from genlab.evaluation.record import write_record
from genlab.evaluation.sharding import generate

__all__ = [
    "Extractor",
    "LogLikelihood",
    "Protocol",
    "evaluate",
    "evaluate_samples",
    "generate",
    "load_extractor",
    "write_record",
]
