"""What a training costs elsewhere: general questions, the same for every model, before and after."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainers.evaluation.metrics import CUTOFF, ndcg, nearest
from trainers.model.encoder import Encoder

# The questions' own passages alone are found too easily: documents of the snapshot stand in the way.
MAX_DISTRACTORS = 500
WARNING_FALL, REFUSAL_FALL = 0.05, 0.15


@dataclass(frozen=True)
class General:
    """Means over the general questions."""

    recall_at_1: float
    ndcg_at_10: float


@dataclass(frozen=True)
class Forgetting:
    """General questions before a training and after it."""

    before: General
    after: General

    @property
    def fall(self) -> float:
        """Lost nDCG@10; below zero for a gain."""
        return self.before.ndcg_at_10 - self.after.ndcg_at_10

    @property
    def warnings(self) -> list[str]:
        """A fall that people should know of."""
        return [self._numbers] if self.fall > WARNING_FALL else []

    @property
    def refusals(self) -> list[str]:
        """A fall that no gain on the logs' questions makes up for."""
        return [f"{self._numbers}; at most {REFUSAL_FALL} is let through"] if self.fall > REFUSAL_FALL else []

    @property
    def _numbers(self) -> str:
        before, after = self.before.ndcg_at_10, self.after.ndcg_at_10
        return f"general questions are found less well: nDCG@10 {before:.4f} → {after:.4f}, a fall of {self.fall:.4f}"


def measure_general(encoder: Encoder, documents: torch.Tensor, seed: int) -> General:
    """Search each general question in all their passages and some of the snapshot's ``documents`` ``[n, d]``, given by
    their embeddings.
    """
    pairs = json.loads((Path(__file__).parent / "general.json").read_text())
    queries = torch.from_numpy(encoder.encode([pair["question"] for pair in pairs], "query"))
    passages = torch.from_numpy(encoder.encode([pair["passage"] for pair in pairs], "passage"))
    size = min(MAX_DISTRACTORS, len(documents))
    drawn = np.sort(np.random.default_rng(seed).choice(len(documents), size=size, replace=False))
    distractors = documents[torch.from_numpy(drawn).to(documents.device)].cpu()
    found = nearest(queries, torch.cat([passages, distractors]), CUTOFF)
    hits = found == np.arange(len(pairs))[:, None]
    return General(
        recall_at_1=float(hits[:, 0].mean()),
        ndcg_at_10=float(ndcg(hits, np.ones(len(pairs), dtype=np.int64)).mean()),
    )
