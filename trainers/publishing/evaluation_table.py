"""Writes ``evaluation.parquet``: each held-out question as the model to beat and the new one answer it."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foldtune.object_keys import EVALUATION
from foldtune.snapshot_schema import EVALUATION as SCHEMA
from foldtune.texts import normalize_passage, normalize_question, passage_text
from trainers.data.snapshot import Snapshot
from trainers.evaluation.evaluation_set import Answers
from trainers.publishing.results import Results

_LOG_FIELDS = ("log_id", "occurred_at", "folder_id", "agent_id", "conversation_id")
_Ids = dict[str, str]
_UNKNOWN: _Ids = {"folder_id": "", "document_id": ""}


def write_evaluation(folder: Path, snapshot: Snapshot, results: Results) -> None:
    """Write the table to ``folder``; it has users' questions, and no text of a document."""
    dataset, held_out = results.measured_on.dataset, results.measured_on.parts.held_out
    before, after = results.baseline.measures, results.after
    ids = _ids_by_text(snapshot)
    logs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in snapshot.examples.to_pylist():
        logs[normalize_question(row["question"])].append({name: row[name] for name in _LOG_FIELDS})

    def found(answers: Answers, row: int) -> list[dict[str, Any]]:
        kept = zip(answers.passages[row].tolist(), answers.scores[row].tolist(), strict=True)
        return [
            ids.get(normalize_passage(dataset.passages[passage]), _UNKNOWN) | {"score": score}
            for passage, score in kept
            if passage >= 0
        ]

    gains = after.held_out.ndcg - before.held_out.ndcg
    rows = [
        {
            "question": dataset.questions[question],
            "logs": logs[normalize_question(dataset.questions[question])],
            "before": found(before.answers, row),
            "after": found(after.answers, row),
            "rank_before": int(before.answers.rank[row]) or None,
            "rank_after": int(after.answers.rank[row]) or None,
            "gain": float(gains[row]),
        }
        for row, question in enumerate(held_out.tolist())
    ]
    # The questions that lost most come first.
    order = np.argsort(gains, kind="stable")
    table = pa.Table.from_pylist([rows[row] for row in order], SCHEMA)
    with pq.ParquetWriter(folder / EVALUATION, SCHEMA, compression="zstd") as writer:
        writer.write_table(table)


def _ids_by_text(snapshot: Snapshot) -> dict[str, _Ids]:
    """Folder and id of each passage by its normalized text; of copies, those of the first."""
    ids: dict[str, _Ids] = {}
    for row in snapshot.documents.to_pylist():
        text = normalize_passage(passage_text(row["title"], row["text"]))
        ids.setdefault(text, {"folder_id": row["folder_id"], "document_id": row["document_id"]})
    for row in snapshot.examples.to_pylist():
        for passage in [*([row["positive"]] if row["positive"] else []), *row["negatives"]]:
            if passage["text"]:
                named = {"folder_id": passage["folder_id"], "document_id": passage["document_id"]}
                ids.setdefault(normalize_passage(passage["text"]), named)
    return ids
