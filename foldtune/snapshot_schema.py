"""The Parquet schemas of a snapshot: what a worker writes and a trainer reads.

A document is named by folder and id together: the id alone need not be unique. An example without a positive is a
disliked answer; its ``negatives`` are hard-negative candidates for other examples with the same question.
"""

from enum import StrEnum
from typing import Any

import pyarrow as pa


class Label(StrEnum):
    """What the label of an example rests on, the strongest first."""

    CORRECTED = "corrected"
    LIKED = "liked"
    CITED = "cited"
    RETRIEVED = "retrieved"
    DISLIKED = "disliked"


_PASSAGE = pa.struct(
    [
        pa.field("folder_id", pa.string(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        # Set where the log carried the text; else it is that of the snapshot's document, if that is there.
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
    # How the label came about: corrected, liked, cited, retrieved, or disliked (then there is no positive).
    pa.field("label", pa.string(), nullable=False),
    pa.field("strength", pa.float32(), nullable=False),
    # Retrieved but not cited: hard-negative candidates, in the order of their ranks.
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
