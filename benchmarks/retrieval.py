"""Retrieval data sets: loading with seeded sampling, and the evaluation of a model's folder.

A data set is a folder with two gzipped JSON Lines files. ``documents.jsonl.gz`` has ``folder``, ``document_id``,
``title`` and ``text``; ``questions.jsonl.gz`` has ``question_id``, ``folder``, ``document_ids`` (all positives),
``question`` and ``split`` (``train`` or ``dev``).
"""

import gzip
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from sentence_transformers import SentenceTransformer

from foldtune.events import now
from foldtune.snapshot_schema import DOCUMENTS, EXAMPLES
from trainers.data.dataset import Dataset, build_dataset
from trainers.evaluation.metrics import Evaluation, evaluate
from trainers.model.encoder import compute_dtype, default_device
from trainers.model.tokens import Indices

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """Maximum numbers of training and test questions; the documents are all their positives and a sample of the others.

    ``examples`` bounds the (question, positive) pairs of the training questions, which determine a training's time.
    """

    train: int = 3_000
    examples: int = 1_000
    test: int = 1_000
    documents: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class Benchmark:
    """``train`` and ``test`` have the same documents with the same indices, but different questions.

    ``test_questions`` are those of ``test`` that have an answer; follow-ups asked of many documents have none.
    """

    name: str
    train: Dataset
    test: Dataset

    @cached_property
    def test_questions(self) -> Indices:
        return np.unique(self.test.question)

    def description(self) -> dict[str, Any]:
        """Data, sizes and machine, for the report."""
        return {
            "data": self.name,
            "cores": os.cpu_count(),
            "train_questions": len(self.train.questions),
            "examples": len(self.train.question),
            "test_questions": len(self.test_questions),
            "documents": self.test.documents,
        }


def load(folder: Path, sample: Sample) -> Benchmark:
    """Read a data set and sample it.

    Raises:
        OSError: one of its two files is missing or unreadable.
    """
    generator = np.random.default_rng(sample.seed)
    questions = read_lines(folder / "questions.jsonl.gz")
    sampled = {
        split: _sample([question for question in questions if question["split"] == split], limit, generator)
        for split, limit in (("train", sample.train), ("dev", sample.test))
    }
    limit = _question_limit(sampled["train"], sample.examples)
    sampled["train"] = _sample(sampled["train"], limit, generator)
    positive_ids = {
        document_id for part in sampled.values() for question in part for document_id in question["document_ids"]
    }
    documents = read_lines(folder / "documents.jsonl.gz")
    positives = [document for document in documents if document["document_id"] in positive_ids]
    others = [document for document in documents if document["document_id"] not in positive_ids]
    selected = positives + _sample(others, max(0, sample.documents - len(positives)), generator)
    rows = [
        {
            "folder_id": document["folder"],
            "document_id": document["document_id"],
            "title": document["title"],
            "text": document["text"],
        }
        for document in selected
    ]
    table = pa.Table.from_pylist(rows, DOCUMENTS)
    train, test = (
        build_dataset(pa.Table.from_pylist(list(_examples(sampled[split])), EXAMPLES), table)
        for split in ("train", "dev")
    )
    return Benchmark(folder.name, train, test)


def evaluate_model(
    model: SentenceTransformer, dataset: Dataset, questions: Indices, query_map: Weights | None = None
) -> Evaluation:
    """Retrieval of ``questions`` among all documents of ``dataset``, truncated to the model's ``max_seq_length``.

    ``query_map`` ``[d, d]`` is applied to the questions' embeddings, as an adapter of one side does it.
    """
    queries = embed(model.encode_query, [dataset.questions[question] for question in questions])
    passages = embed(model.encode_document, dataset.passages[: dataset.searchable])
    if query_map is not None:
        queries = torch.nn.functional.normalize(queries @ torch.from_numpy(query_map).T, dim=1)
    return evaluate(dataset, questions, queries, passages)


def embed(encode: Callable[..., Weights], texts: Sequence[str]) -> torch.Tensor:
    """Embeddings ``[n, d]`` of length 1, computed in the precision in which every side trains."""
    device = default_device()
    dtype = compute_dtype(device, "bert")
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        return torch.from_numpy(encode(list(texts), show_progress_bar=False, normalize_embeddings=True)).float()


def rounded_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Mean metrics, rounded for the report."""
    means = evaluation.metrics()
    return {name: round(getattr(means, name), 4) for name in ("recall_at_1", "recall_at_10", "mrr_at_10", "ndcg_at_10")}


def _examples(questions: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for question in questions:
        for document_id in question["document_ids"]:
            yield {
                "log_id": question["question_id"],
                "occurred_at": now(),
                "folder_id": question["folder"],
                "agent_id": "benchmark",
                "conversation_id": None,
                "question": question["question"],
                "positive": {"folder_id": question["folder"], "document_id": document_id, "text": None},
                "label": "cited",
                "strength": 1.0,
                "negatives": [],
            }


def _question_limit(questions: list[dict[str, Any]], max_pairs: int) -> int:
    """The number of questions that have about ``max_pairs`` (question, positive) pairs."""
    pairs = sum(len(question["document_ids"]) for question in questions)
    return len(questions) if pairs <= max_pairs else max_pairs * len(questions) // pairs


def _sample(rows: list[dict[str, Any]], limit: int, generator: np.random.Generator) -> list[dict[str, Any]]:
    if len(rows) <= limit:
        return rows
    return [rows[index] for index in sorted(generator.choice(len(rows), limit, replace=False).tolist())]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a gzipped JSON Lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
