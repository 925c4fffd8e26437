"""What every model of a training is measured on: base model, incumbent, and the new one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainers.data.dataset import Dataset, Split
from trainers.data.search import nearest
from trainers.evaluation.forgetting import QuestionSet, measure_general
from trainers.evaluation.metrics import DEPTH, Evaluation, Floats, evaluate
from trainers.evaluation.other_folders import OtherFolders
from trainers.model.encoder import Encoder
from trainers.model.tokens import Indices

# Passages of each held-out question that are kept for evaluation.parquet.
KEPT = 5
# Documents by whose embeddings two models are compared: where they have the same weights all are equal.
_COMPARED = 100
_EQUAL = 1e-5


def embed(encoder: Encoder, dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings ``[q, d]`` of all questions and ``[p, d]`` of all passages at full length, on the encoder's device."""
    return (
        torch.from_numpy(encoder.encode(dataset.questions, "query")).to(encoder.device),
        torch.from_numpy(encoder.encode(dataset.passages, "passage")).to(encoder.device),
    )


@dataclass(frozen=True)
class Answers:
    """The nearest passages of each held-out question ``[n, KEPT]``, -1 past the last one, with their scores, and the
    rank of the first right one ``[n]`` from 1, 0 below ``DEPTH``.
    """

    passages: Indices
    scores: Floats
    rank: Indices


@dataclass(frozen=True)
class Measures:
    """How one model did; on folders that the request does not name, if there is a sample of them."""

    held_out: Evaluation
    answers: Answers
    others: Evaluation | None
    general: list[Evaluation]
    # Embeddings of some documents.
    documents: torch.Tensor

    def has_index_of(self, other: "Measures") -> bool:
        """Whether documents that the other model embedded need not be embedded again."""
        mine, theirs = self.documents, other.documents
        return mine.shape == theirs.shape and torch.allclose(mine, theirs, rtol=0, atol=_EQUAL)


@dataclass(frozen=True)
class EvaluationSet:
    """Held-out questions, general ones, and those of folders that the request does not name."""

    dataset: Dataset
    parts: Split
    general: Sequence[QuestionSet]
    others: OtherFolders | None
    seed: int

    def measure(self, encoder: Encoder, queries: torch.Tensor, passages: torch.Tensor) -> Measures:
        """Measure ``encoder``; ``queries`` and ``passages`` are its embeddings of the whole dataset."""
        dataset, held_out = self.dataset, self.parts.held_out
        queries = queries[torch.from_numpy(held_out).to(queries.device)]
        documents = passages[: dataset.documents]
        return Measures(
            evaluate(dataset, held_out, queries, passages[: dataset.searchable]),
            self._answers(queries, passages[: dataset.searchable]),
            self.others.measure(encoder, documents) if self.others else None,
            measure_general(encoder, self.general, documents, self.seed),
            documents[:_COMPARED].cpu(),
        )

    def _answers(self, queries: torch.Tensor, passages: torch.Tensor) -> Answers:
        found = nearest(queries, passages, DEPTH)
        hits = self.dataset.is_known_positive(self.parts.held_out[:, None], found)
        kept = found[:, :KEPT]
        vectors = passages[torch.from_numpy(np.maximum(kept, 0)).to(passages.device)]
        scores = torch.einsum("nd,nkd->nk", queries, vectors).double().cpu().numpy()
        return Answers(kept, scores, np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0))
