"""Questions and passages of a folder in the benchmark format, sampled with a seed, and how well a model finds them.

``documents.jsonl.gz`` has ``folder``, ``document_id``, ``title``, ``text`` in each line; ``questions.jsonl.gz`` has
``question_id``, ``folder``, ``document_ids`` (all that are right), ``question`` and ``split`` (``train`` or ``dev``).
"""

import gzip
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from foldtune.events import now
from foldtune.snapshot_schema import DOCUMENTS, EXAMPLES
from trainers.data.dataset import Dataset, build_dataset
from trainers.evaluation.metrics import Evaluation, evaluate
from trainers.model.encoder import Encoder


@dataclass(frozen=True)
class Sample:
    """At most so many questions of each split; the documents are all that answer one of them, and others.

    ``examples`` bounds the right documents of all training questions together: a training's time goes with them.
    """

    train: int = 3_000
    examples: int = 1_000
    test: int = 1_000
    documents: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class Benchmark:
    """``train`` and ``test`` have the same documents under the same indices; each knows only its own questions."""

    name: str
    train: Dataset
    test: Dataset

    def facts(self) -> dict[str, Any]:
        """What a figure was measured on, for the report."""
        return {
            "data": self.name,
            "cores": os.cpu_count(),
            "train_questions": len(self.train.questions),
            "examples": len(self.train.question),
            "test_questions": len(self.test.questions),
            "documents": self.test.documents,
        }


def load(folder: Path, sample: Sample) -> Benchmark:
    """Read and sample a folder.

    Raises:
        OSError: one of its two files is missing.
    """
    generator = np.random.default_rng(sample.seed)
    questions = lines(folder / "questions.jsonl.gz")
    chosen = {
        split: _sample([question for question in questions if question["split"] == split], limit, generator)
        for split, limit in (("train", sample.train), ("dev", sample.test))
    }
    chosen["train"] = _sample(chosen["train"], _affordable(chosen["train"], sample.examples), generator)
    right = {document for part in chosen.values() for question in part for document in question["document_ids"]}
    documents = lines(folder / "documents.jsonl.gz")
    answers = [document for document in documents if document["document_id"] in right]
    others = [document for document in documents if document["document_id"] not in right]
    selected = answers + _sample(others, max(0, sample.documents - len(answers)), generator)
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
        build_dataset(pa.Table.from_pylist(list(_examples(chosen[split])), EXAMPLES), table)
        for split in ("train", "dev")
    )
    return Benchmark(folder.name, train, test)


def evaluate_encoder(encoder: Encoder, test: Dataset, max_tokens: int) -> Evaluation:
    """Retrieval of every question of ``test`` among all its documents, with texts truncated to ``max_tokens``.

    Raises:
        ValueError: the model's own maximum is lower, so it would be evaluated on shorter texts than others.
    """
    if encoder.max_tokens < max_tokens:
        raise ValueError(
            f"the model's maximum is {encoder.max_tokens} tokens, below the {max_tokens} of the evaluation"
        )
    passage_texts = test.passages[: test.searchable]
    queries = torch.from_numpy(encoder.encode_tokens(encoder.tokenize(test.questions, "query", max_tokens)))
    passages = torch.from_numpy(encoder.encode_tokens(encoder.tokenize(passage_texts, "passage", max_tokens)))
    return evaluate(test, np.arange(len(test.questions)), queries, passages)


def figures(evaluation: Evaluation) -> dict[str, float]:
    """The means, rounded."""
    means = evaluation.metrics()
    return {name: round(getattr(means, name), 4) for name in ("recall_at_1", "recall_at_10", "mrr_at_10", "ndcg_at_10")}


def _examples(questions: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for question in questions:
        for document in question["document_ids"]:
            yield {
                "log_id": question["question_id"],
                "occurred_at": now(),
                "folder_id": question["folder"],
                "agent_id": "benchmark",
                "conversation_id": None,
                "question": question["question"],
                "positive": {"folder_id": question["folder"], "document_id": document, "text": None},
                "label": "cited",
                "strength": 1.0,
                "negatives": [],
            }


def _affordable(questions: list[dict[str, Any]], examples: int) -> int:
    right = sum(len(question["document_ids"]) for question in questions)
    return len(questions) if right <= examples else examples * len(questions) // right


def _sample(rows: list[dict[str, Any]], limit: int, generator: np.random.Generator) -> list[dict[str, Any]]:
    if len(rows) <= limit:
        return rows
    return [rows[index] for index in sorted(generator.choice(len(rows), limit, replace=False).tolist())]


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a gzipped JSON Lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
