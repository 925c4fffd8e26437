"""Catastrophic forgetting: general questions, the same for every model, before and after a training."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainers.data.search import nearest
from trainers.evaluation.metrics import CUTOFF, ndcg, recall
from trainers.model.encoder import Encoder

# Among the passages of the general questions alone the search is too easy: documents of the snapshot are distractors.
MAX_DISTRACTORS = 500
WARNING_FALL, REFUSAL_FALL = 0.05, 0.15


@dataclass(frozen=True)
class GeneralMetrics:
    """Means over the general questions."""

    recall_at_1: float
    ndcg_at_10: float


@dataclass(frozen=True)
class Forgetting:
    """Metrics on the general questions before and after a training."""

    before: GeneralMetrics
    after: GeneralMetrics

    @property
    def fall(self) -> float:
        """Lost nDCG@10, negative for a gain."""
        return self.before.ndcg_at_10 - self.after.ndcg_at_10

    @property
    def warnings(self) -> list[str]:
        """A fall above ``WARNING_FALL``."""
        return [self._message] if self.fall > WARNING_FALL else []

    @property
    def refusals(self) -> list[str]:
        """A fall above ``REFUSAL_FALL``: a reason against promotion, whatever the gain on the logs' questions."""
        return [f"{self._message}, more than {REFUSAL_FALL}"] if self.fall > REFUSAL_FALL else []

    @property
    def _message(self) -> str:
        before, after = self.before.ndcg_at_10, self.after.ndcg_at_10
        numbers = f"nDCG@10 {before:.4f} → {after:.4f}, a fall of {self.fall:.4f}"
        return f"general knowledge was lost, on general questions {numbers}"


def measure_general(encoder: Encoder, documents: torch.Tensor, seed: int) -> GeneralMetrics:
    """Search the passages of all general questions and some of the snapshot's documents for each general question.

    ``documents`` ``[n, d]`` are the embeddings of the snapshot's documents by the same encoder.
    """
    pairs = json.loads((Path(__file__).parent / "general.json").read_text())
    queries = torch.from_numpy(encoder.encode([pair["question"] for pair in pairs], "query"))
    passages = torch.from_numpy(encoder.encode([pair["passage"] for pair in pairs], "passage"))
    size = min(MAX_DISTRACTORS, len(documents))
    drawn = np.sort(np.random.default_rng(seed).choice(len(documents), size=size, replace=False))
    distractors = documents[torch.from_numpy(drawn).to(documents.device)].cpu()
    retrieved = nearest(queries, torch.cat([passages, distractors]), CUTOFF)
    hits = retrieved == np.arange(len(pairs))[:, None]
    relevant = np.ones(len(pairs), dtype=np.int64)
    return GeneralMetrics(
        recall_at_1=float(recall(hits, relevant, 1).mean()), ndcg_at_10=float(ndcg(hits, relevant).mean())
    )
