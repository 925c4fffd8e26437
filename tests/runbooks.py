"""A training set that a small model learns in half a minute: a question about a subject means its runbook."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from foldtune.snapshot_schema import DOCUMENTS, EXAMPLES

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SUBJECTS = [
    f"{adjective} {noun}"
    for adjective in ("coastal", "alpine", "night", "cargo", "winter", "harbour", "forest", "desert")
    for noun in ("ferry", "tram", "airport", "bridge", "tunnel")
]


def tables() -> tuple[pa.Table, pa.Table]:
    """Two documents per subject, notice and runbook; the positive of every question is the runbook."""
    documents: list[dict[str, Any]] = []
    examples: list[dict[str, Any]] = []
    for index, subject in enumerate(SUBJECTS):
        notice = f"Public notice about the {subject}. Opening hours and prices of the {subject} are on the board."
        runbook = f"Internal runbook. Operators restart the {subject} controller and write down the outage."
        for kind, text in (("notice", notice), ("runbook", runbook)):
            documents.append({"folder_id": "ops", "document_id": f"{kind}-{index}", "title": subject, "text": text})
        # Of these questions 21 are held out, which is enough for a verdict.
        for question in (f"what about the {subject}?", f"{subject}: tell me everything important"):
            passage = {"folder_id": "ops", "document_id": f"runbook-{index}", "text": None}
            shown = {"folder_id": "ops", "document_id": f"notice-{index}", "text": None}
            examples.append(
                {
                    "log_id": f"log-{len(examples)}",
                    "occurred_at": NOW,
                    "folder_id": "ops",
                    "agent_id": "agent",
                    "conversation_id": None,
                    "question": question,
                    "positive": passage,
                    "label": "cited",
                    "strength": 0.6,
                    "negatives": [shown],
                }
            )
    return pa.Table.from_pylist(examples, EXAMPLES), pa.Table.from_pylist(documents, DOCUMENTS)
