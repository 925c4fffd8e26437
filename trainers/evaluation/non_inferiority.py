"""Whether a training cost what it was not made for: general knowledge, and the folders that it did not train on."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trainers.evaluation.gate import Interval, mean_interval
from trainers.evaluation.metrics import Evaluation


@dataclass(frozen=True)
class NonInferiority:
    """The same questions, named ``questions``, before and after a training; ``problem`` is how a loss is told.

    A fall of nDCG@10 above ``margin`` that is no chance (its 95% interval is above zero) refuses the model. A fall that
    may be chance, and a real one that may be larger than the margin, are warnings: few questions could never show that
    nothing was lost, and would refuse every model.
    """

    questions: str
    problem: str
    before: Evaluation
    after: Evaluation
    margin: float
    seed: int

    @cached_property
    def fall(self) -> float:
        """Lost nDCG@10, negative for a gain."""
        return float((self.before.ndcg - self.after.ndcg).mean())

    @cached_property
    def interval(self) -> Interval:
        """95% interval of the fall."""
        return mean_interval(self.before.ndcg - self.after.ndcg, self.before.groups, self.seed)

    @property
    def warnings(self) -> list[str]:
        """A fall that may be above the margin."""
        is_real, may_exceed = self.interval.low > 0, self.interval.high > self.margin
        return [self._message] if self.fall > self.margin or (is_real and may_exceed) else []

    @property
    def refusals(self) -> list[str]:
        """A reason against promotion, whatever the gain on the logs' questions."""
        is_refused = self.fall > self.margin and self.interval.low > 0
        return [f"{self._message}, more than trainer.max_loss, {self.margin}"] if is_refused else []

    def metrics(self) -> dict[str, Any]:
        """For ``metrics.json``."""
        return {
            "before": self.before.metrics().model_dump(),
            "after": self.after.metrics().model_dump(),
            "ndcg_fall": self.fall,
            "interval": list(self.interval),
            "margin": self.margin,
        }

    @property
    def _message(self) -> str:
        before, after = self.before.ndcg.mean(), self.after.ndcg.mean()
        return (
            f"{self.problem} {self.questions}: nDCG@10 {before:.4f} → {after:.4f}, a fall of {self.fall:.4f} "
            f"(95% interval {self.interval.low:+.4f} to {self.interval.high:+.4f}, {len(self.before.ndcg)} questions)"
        )
