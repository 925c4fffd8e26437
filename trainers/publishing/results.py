"""The measured results of a training, for ``metrics.json`` and the model card."""

from dataclasses import asdict, dataclass
from typing import Any

from foldtune.events import GateVerdict
from trainers.data.dataset import MIN_TRAINED, Dataset, Split
from trainers.evaluation.metrics import Evaluation, metrics_by_folder
from trainers.evaluation.non_inferiority import NonInferiority
from trainers.loop.training import TrainingRecord
from trainers.loop.validation import WeightInterpolation


@dataclass(frozen=True)
class Baseline:
    """A model that the new one is compared with; ``version`` is None for the base model."""

    name: str
    evaluation: Evaluation
    version: str | None = None


@dataclass(frozen=True)
class Results:
    """``base`` is the model before the training, ``baseline`` the one to beat, ``after`` the new model."""

    dataset: Dataset
    parts: Split
    record: TrainingRecord
    interpolation: WeightInterpolation | None
    base: Baseline
    baseline: Baseline
    after: Evaluation
    # What the training was not made for; first the general questions that are the same for all models.
    lost: list[NonInferiority]
    verdict: GateVerdict

    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``."""
        training = asdict(self.record)
        # The key under which readers of metrics.json know it.
        training["not_taken"] = training.pop("skipped_steps")
        return {
            "base": self.base.evaluation.metrics().model_dump(),
            "baseline": {"name": self.baseline.name, **self.baseline.evaluation.metrics().model_dump()},
            "after": self.after.metrics().model_dump(),
            "gate": self.verdict.model_dump(),
            "folders": metrics_by_folder(self.dataset, self.parts.held_out, self.baseline.evaluation, self.after),
            "general": self.lost[0].metrics(),
            "not_trained_on": {loss.questions: loss.metrics() for loss in self.lost},
            "validation": self.validation(),
            "merge_back": asdict(self.interpolation) if self.interpolation else None,
            "data": {
                "examples": len(self.dataset.question),
                "trained_on": len(self.parts.train),
                "held_out_questions": len(self.parts.held_out),
                "distinct_questions": len(self.dataset.questions),
                "distinct_passages": len(self.dataset.passages),
                "documents": self.dataset.documents,
                "left_out": self.dataset.left_out,
                "copies": self.dataset.copies,
            },
            "training": training,
        }

    def validation(self) -> dict[str, Any]:
        """How the best epoch was chosen, or why there was no validation."""
        if self.record.best_epoch is None:
            return {"off": f"fewer than {MIN_TRAINED} questions to train on, or too many of them near-duplicates"}
        return {
            "questions": len(self.parts.validation),
            "ndcg_at_10": self.record.validation,
            "best_epoch": self.record.best_epoch + 1,
            "stopped_early": self.record.stopped,
        }
