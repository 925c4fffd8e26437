"""Explains the hard negatives of a question in a request's training."""

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from foldtune.events import TrainingJob
from foldtune.object_store import ObjectStore
from foldtune.settings import Settings
from foldtune.texts import normalize_question
from trainers.data.dataset import Dataset, build_dataset
from trainers.data.near_duplicates import WordSets
from trainers.data.negatives import Candidate, NegativeSampler
from trainers.data.snapshot import read_snapshot
from trainers.errors import UnknownQuestionError
from trainers.model.base_models import fetch_base_model
from trainers.model.encoder import Encoder


@dataclass(frozen=True)
class ExplainedExample:
    """An example of the question, and its candidates for hard negatives with their texts, in the order of choice."""

    question: str
    positive: str
    score: float
    candidates: list[tuple[str, Candidate]]


def explain_negatives(
    job: TrainingJob, settings: Settings, store: ObjectStore, work_dir: Path, *, question: str, depth: int
) -> list[ExplainedExample]:
    """The candidates for hard negatives of ``question`` before the first epoch of ``job``, for each of its positives.

    Raises:
        UnknownQuestionError: the request's snapshot has no example of the question.
        ImpossibleJobError: the snapshot or the base model is invalid.
    """
    snapshot = read_snapshot(store, job.snapshot_uri, job.snapshot_sha256)
    dataset = build_dataset(snapshot.examples, snapshot.documents)
    index = _index_of(question, dataset)
    encoder = Encoder.load(fetch_base_model(job.base_model, settings.trainer, store, work_dir))
    # Only this question is embedded, so only its positives have scores.
    own_pairs = dataset.known_pairs()[0] == index
    dataset = replace(dataset, known_positives=dataset.known_positives[own_pairs])
    passages = torch.from_numpy(encoder.encode(dataset.passages, "passage"))
    queries = torch.zeros((len(dataset.questions), encoder.dimension))
    queries[index] = torch.from_numpy(encoder.encode([dataset.questions[index]], "query"))[0]
    sampler = NegativeSampler(
        dataset, np.flatnonzero(dataset.question == index), WordSets.of(dataset.passages), job.request.dataset
    )
    return [_explained(sampler, row, queries, passages, depth) for row in sampler.rows]


def _explained(
    sampler: NegativeSampler, row: int, queries: torch.Tensor, passages: torch.Tensor, depth: int
) -> ExplainedExample:
    dataset = sampler.dataset
    question, positive = dataset.question[row], dataset.positive[row]
    return ExplainedExample(
        question=dataset.questions[question],
        positive=dataset.passages[positive],
        score=float(passages[positive] @ queries[question]),
        candidates=[
            (dataset.passages[candidate.passage], candidate)
            for candidate in sampler.decisions(row, queries, passages, depth)
        ],
    )


def _index_of(question: str, dataset: Dataset) -> int:
    """The index of a question that has an example."""
    indices = {normalize_question(dataset.questions[index]): int(index) for index in np.unique(dataset.question)}
    normalized = normalize_question(question)
    if normalized not in indices:
        similar = difflib.get_close_matches(normalized, indices, n=3, cutoff=0.3)
        raise UnknownQuestionError(question, *(dataset.questions[indices[match]] for match in similar))
    return indices[normalized]
