"""The measured results of a training, for ``metrics.json`` and the model card."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from foldtune.events import GateVerdict
from foldtune.pairs import MIN_TRAINED
from trainers.evaluation.by_folder import metrics_by_folder
from trainers.evaluation.evaluation_set import EvaluationSet, Measures
from trainers.evaluation.non_inferiority import NonInferiority
from trainers.loop.training import TrainingRecord
from trainers.loop.validation import WeightInterpolation


@dataclass(frozen=True)
class Baseline:
    """A model that the new one is compared with; ``version`` is None for the base model."""

    name: str
    measures: Measures
    version: str | None = None


@dataclass(frozen=True)
class Started:
    """What a training started from; ``version`` is None for the base model."""

    name: str
    version: str | None = None


@dataclass(frozen=True)
class Results:
    """``base`` is the base model, ``baseline`` the one to beat, ``after`` the new model."""

    measured_on: EvaluationSet
    record: TrainingRecord
    interpolation: WeightInterpolation | None
    started_from: Started
    base: Baseline
    baseline: Baseline
    after: Measures
    # On what the training was not made for; first the general questions that are the same for all models.
    lost: list[NonInferiority]
    verdict: GateVerdict
    seed: int

    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``."""
        training, dataset, parts = asdict(self.record), self.measured_on.dataset, self.measured_on.parts
        # The key under which readers of metrics.json know it.
        training["not_taken"] = training.pop("skipped_steps")
        return {
            "base": self.base.measures.held_out.metrics().model_dump(),
            "baseline": {"name": self.baseline.name, **self.baseline.measures.held_out.metrics().model_dump()},
            "after": self.after.held_out.metrics().model_dump(),
            "gate": self.verdict.model_dump(),
            "folders": self.folders,
            "general": self.lost[0].metrics(),
            "not_trained_on": {loss.questions: loss.metrics() for loss in self.lost},
            "validation": self.validation(),
            "merge_back": asdict(self.interpolation) if self.interpolation else None,
            "data": {
                "examples": len(dataset.question),
                "trained_on": len(parts.train),
                "held_out_questions": len(parts.held_out),
                "kept_back_questions": parts.kept_back,
                "distinct_questions": len(dataset.questions),
                "distinct_passages": len(dataset.passages),
                "documents": dataset.documents,
                "left_out": dataset.left_out,
                "changed_impressions": dataset.changed_impressions,
                "copies": dataset.copies,
            },
            "training": training,
        }

    @cached_property
    def folders(self) -> dict[str, Any]:
        """Figures of each folder that was trained on and has enough held-out questions."""
        measured, before, after = self.measured_on, self.baseline.measures, self.after
        return metrics_by_folder(measured.dataset, measured.parts.held_out, before.held_out, after.held_out, self.seed)

    def other_folders(self) -> dict[str, Any]:
        """The same of folders that the request does not name. Whoever serves the model may not know of them."""
        others, before, after = self.measured_on.others, self.baseline.measures.others, self.after.others
        if not (others and before and after):
            return {}
        return metrics_by_folder(others.dataset, others.questions, before, after, self.seed)

    def validation(self) -> dict[str, Any]:
        """How the best epoch was chosen, or why there was no validation."""
        if self.record.best_epoch is None:
            return {"off": f"fewer than {MIN_TRAINED} questions to train on, or too many of them near-duplicates"}
        return {
            "questions": len(self.measured_on.parts.validation),
            "ndcg_at_10": self.record.validation,
            "best_epoch": self.record.best_epoch + 1,
            "stopped_early": self.record.stopped,
        }
