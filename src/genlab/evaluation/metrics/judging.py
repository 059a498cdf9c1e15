"""What a judge says of the items."""

from __future__ import annotations

from genlab.evaluation.metrics.base import Metric, NotApplicable
from genlab.judges import Judge
from genlab.samples import Samples


class JudgeScores(Metric):
    """Mean and standard deviation (n - 1) of a judge's numbers; each item's own is a column of the table.

    Args:
        judge: a genlab.judges.Judge; it is handed the items and what they were asked to be.
    """

    key = "judge"
    needs = frozenset({"samples"})
    outputs = ("judge_mean", "judge_std")
    split_in_name = False

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.keep(judge=judge)
        self.modality = judge.modality

    def compute(self) -> dict[str, float]:
        items = self.judged
        if items.modality is None or len(items.data) < 2:
            raise NotApplicable("a judge needs two items at least, of a known modality")
        condition = {name: rows.tolist() for name, rows in items.condition.items()}
        condition |= {} if items.prompts is None else {"prompt": items.prompts}
        scores = self.judge(Samples(items.modality, items.data), condition)
        self.columns = {"score": scores.tolist()}
        return {"judge_mean": float(scores.mean()), "judge_std": float(scores.std())}
