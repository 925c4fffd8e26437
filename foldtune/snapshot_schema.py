"""The Parquet schemas of a snapshot, which workers write and trainers read, and of an evaluation, which trainers write.

Needs pyarrow (``foldtune-server``).

A document is identified by folder and id: the id alone need not be unique. An example without a positive is a disliked
answer; its ``negatives`` are hard-negative candidates for other examples with the same question.
"""

from enum import StrEnum
from typing import Any

import pyarrow as pa


class Label(StrEnum):
    """The origin of an example's label, strongest first."""

    CORRECTED = "corrected"
    LIKED = "liked"
    CITED = "cited"
    RETRIEVED = "retrieved"
    DISLIKED = "disliked"


_PASSAGE = pa.struct(
    [
        pa.field("folder_id", pa.string(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        # Set if the log carried the text; else the text is that of the document in the snapshot, if any.
        pa.field("text", pa.string()),
    ]
)

_EXAMPLE_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("log_id", pa.string(), nullable=False),
    pa.field("occurred_at", pa.timestamp("us", tz="UTC"), nullable=False),
    pa.field("folder_id", pa.string(), nullable=False),
    pa.field("agent_id", pa.string(), nullable=False),
    pa.field("conversation_id", pa.string()),
    pa.field("question", pa.string(), nullable=False),
    pa.field("positive", _PASSAGE),
    # A ``Label``; ``disliked`` has no positive.
    pa.field("label", pa.string(), nullable=False),
    pa.field("strength", pa.float32(), nullable=False),
    # Hard-negative candidates by rank: retrieved but not cited.
    pa.field("negatives", pa.list_(_PASSAGE), nullable=False),
]
EXAMPLES = pa.schema(_EXAMPLE_FIELDS)

DOCUMENTS = pa.schema(
    [
        pa.field("folder_id", pa.string(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)

# Of ``before`` and ``after``: the nearest passages of a question, nearest first, and their scores.
_FOUND = pa.list_(
    pa.struct(
        [
            pa.field("folder_id", pa.string(), nullable=False),
            pa.field("document_id", pa.string(), nullable=False),
            pa.field("score", pa.float64(), nullable=False),
        ]
    )
)
_EVALUATION_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("question", pa.string(), nullable=False),
    # The logs that asked it, by which an erasure finds it.
    pa.field(
        "logs",
        pa.list_(
            pa.struct(
                [
                    pa.field("log_id", pa.string(), nullable=False),
                    pa.field("occurred_at", pa.timestamp("us", tz="UTC"), nullable=False),
                    pa.field("folder_id", pa.string(), nullable=False),
                    pa.field("agent_id", pa.string(), nullable=False),
                    pa.field("conversation_id", pa.string()),
                ]
            )
        ),
        nullable=False,
    ),
    pa.field("before", _FOUND, nullable=False),
    pa.field("after", _FOUND, nullable=False),
    # Of the first right passage, from 1; null if it is not among the first 100.
    pa.field("rank_before", pa.int32()),
    pa.field("rank_after", pa.int32()),
    # Of nDCG@10.
    pa.field("gain", pa.float64(), nullable=False),
]
# A row for each held-out question: how the model to beat and the new one answer it.
EVALUATION = pa.schema(_EVALUATION_FIELDS)
