"""The folders that a request does not name: whether its model still finds what they ask for."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from foldtune.pairs import HELD_OUT_SHARE, question_hash
from foldtune.texts import normalize_question
from trainers.data.dataset import Dataset, build_dataset
from trainers.data.snapshot import Snapshot
from trainers.errors import TooLittleDataError
from trainers.evaluation.metrics import Evaluation, evaluate
from trainers.model.encoder import Encoder
from trainers.model.tokens import Indices

# Of all folders together: they are embedded three times.
MAX_QUESTIONS, MAX_DOCUMENTS = 300, 2_000


@dataclass(frozen=True)
class OtherFolders:
    """A sample of their questions, ``questions`` by index, and of their documents."""

    dataset: Dataset
    questions: Indices

    @classmethod
    def of(cls, snapshot: Snapshot, trained: Dataset) -> "OtherFolders | None":
        """The sample that came with a snapshot, without questions of ``trained`` and those that any model, such as the
        incumbent, may have been trained on; None if nothing is left of it.
        """
        known = set(map(normalize_question, trained.questions))

        def is_new(row: dict[str, Any]) -> bool:
            question = row["question"]
            return question_hash(question) < HELD_OUT_SHARE and normalize_question(question) not in known

        examples = _draw(snapshot.other_examples, MAX_QUESTIONS, lambda row: row["question"], is_new)
        right = {(row["positive"]["folder_id"], row["positive"]["document_id"]) for row in examples.to_pylist()}

        def order(row: dict[str, Any]) -> tuple[bool, str]:
            return (row["folder_id"], row["document_id"]) not in right, row["document_id"]

        documents = _draw(snapshot.other_documents, MAX_DOCUMENTS, order)
        try:
            dataset = build_dataset(examples, documents)
        except TooLittleDataError:
            return None
        return cls(dataset, np.unique(dataset.question))

    def measure(self, encoder: Encoder, documents: torch.Tensor) -> Evaluation:
        """Search their documents and those that were trained on, ``documents`` ``[n, d]`` by the same encoder: an index
        may have all of them.
        """
        queries = encoder.encode([self.dataset.questions[question] for question in self.questions], "query")
        passages = encoder.encode(self.dataset.passages[: self.dataset.searchable], "passage")
        return evaluate(
            self.dataset,
            self.questions,
            torch.from_numpy(queries),
            torch.from_numpy(passages),
            distractors=documents.cpu(),
        )


def _draw(
    table: pa.Table,
    count: int,
    order: Callable[[dict[str, Any]], Any],
    accept: Callable[[dict[str, Any]], bool] = lambda _: True,
) -> pa.Table:
    """At most ``count`` rows, the same every time; of the last part of ``order`` only a hash counts."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        *first, text = given if isinstance(given := order(row), tuple) else (given,)
        return (*first, hashlib.sha256(text.encode()).digest(), row["folder_id"])

    rows = sorted(filter(accept, table.to_pylist()), key=key)[:count]
    return pa.Table.from_pylist(rows, table.schema)
