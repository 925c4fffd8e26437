"""Mines for the questions of a preview, as a training does before its first epoch: ``python -m trainers.preview``.

The API runs it beside itself, with ``Asked`` on stdin and ``Answer`` on stdout. It has one thread, what others leave of
the processor, and bounded memory.
"""

import os
import resource
import sys
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel

from foldtune.excerpts import excerpt
from foldtune.knobs import DatasetKnobs
from foldtune.object_keys import key_segment
from foldtune.object_store import ObjectStore, S3ObjectStore
from foldtune.settings import Settings, load_settings
from foldtune.texts import normalize_passage, passage_text
from trainers.data.dataset import Dataset, build_dataset
from trainers.data.near_duplicates import WordSets
from trainers.data.negatives import Candidate, CandidateDecision, NegativeSampler
from trainers.errors import TrainerError
from trainers.model.base_models import fetch_base_model
from trainers.model.encoder import Encoder

# Of what the process allocates: a base model of half a gigabyte fits.
MAX_BYTES = 3 * 1024**3
# Candidates are the nearest documents, of which some are excluded: as in a training, and so many more.
_SPARE = 8
_EXCERPT = 1_000
# Others are the right passages, or were shown.
_TOLD = (
    CandidateDecision.NEGATIVE,
    CandidateDecision.NEAR_POSITIVE_BY_WORDS,
    CandidateDecision.ABOVE_SCORE_MARGIN,
)


class Asked(BaseModel):
    """The rows of a snapshot, of a few questions, as far as ``foldtune.pairs`` looks."""

    dataset: DatasetKnobs
    examples: list[dict[str, Any]]
    documents: list[dict[str, str]]


def main() -> None:
    """Answer what stands on stdin."""
    os.nice(19)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
    torch.set_num_threads(1)
    # Whatever a library prints does not belong to the answer.
    with os.fdopen(os.dup(1), "wb") as output:
        os.dup2(2, 1)
        settings = load_settings()
        asked = Asked.model_validate_json(sys.stdin.buffer.read())
        try:
            answer = mine(asked, settings, S3ObjectStore(settings.s3))
        except TrainerError as error:
            answer = {"error": str(error)}
        output.write(Answer.model_validate(answer).model_dump_json().encode())


class Answer(BaseModel):
    """What is told, or why it is not."""

    error: str | None = None
    documents: int = 0
    examples: list[dict[str, Any]] = []


def mine(asked: Asked, settings: Settings, store: ObjectStore) -> dict[str, Any]:
    """Of each example the nearest documents that were not shown, and what a training decides on each.

    Raises:
        TrainerError: there is too little, or the base model cannot be used.
    """
    rows = [row | {"occurred_at": datetime.fromisoformat(row["occurred_at"])} for row in asked.examples]
    dataset = build_dataset(pa.Table.from_pylist(rows), pa.Table.from_pylist(asked.documents))
    base = settings.trainer.base_model
    folder = settings.trainer.work_dir / "previews" / key_segment(base.uri, base.revision or "")
    encoder = Encoder.load(fetch_base_model(base, settings.trainer, store, folder), "cpu")
    passages = torch.from_numpy(encoder.encode(dataset.passages, "passage"))
    queries = torch.from_numpy(encoder.encode(dataset.questions, "query"))
    sampler = NegativeSampler(dataset, np.arange(len(dataset.question)), WordSets.of(dataset.passages), asked.dataset)
    depth = min(dataset.documents, 2 * asked.dataset.hard_negatives + _SPARE)
    places = {
        normalize_passage(passage_text(document["title"], document["text"])): document
        for document in reversed(asked.documents)
    }

    def told(candidate: Candidate) -> dict[str, Any]:
        text = dataset.passages[candidate.passage]
        place = places.get(normalize_passage(text), {})
        return {
            "folder_id": place.get("folder_id"),
            "document_id": place.get("document_id"),
            "text": excerpt(text, _EXCERPT),
            "score": candidate.score,
            "jaccard": candidate.jaccard,
            "reason": candidate.decision.name.lower(),
            "taken": candidate.chosen,
        }

    examples = [
        {
            **_positive(dataset, row, passages, queries),
            "candidates": [
                told(candidate)
                for candidate in sampler.decisions(row, queries, passages, depth)
                if not candidate.shown and candidate.decision in _TOLD
            ],
        }
        for row in sampler.rows
    ]
    return {"documents": dataset.documents, "examples": examples}


def _positive(dataset: Dataset, row: int, passages: torch.Tensor, queries: torch.Tensor) -> dict[str, Any]:
    question, positive = dataset.question[row], dataset.positive[row]
    return {
        "question": excerpt(dataset.questions[question], _EXCERPT),
        "positive": excerpt(dataset.passages[positive], _EXCERPT),
        "score": float(passages[positive] @ queries[question]),
    }


if __name__ == "__main__":
    main()
