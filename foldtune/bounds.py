"""The bounds of an event, and their check: in the client before publishing, in the worker on consumption."""

import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from foldtune.durations import Duration
from foldtune.events import MAX_PASSAGES

# What a Kafka timestamp (milliseconds) can mean. None (-1), 0 and seconds lie before it, micro- and nanoseconds after.
EARLIEST_MS = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1000)
LATEST_MS = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp() * 1000)


class Bounds(BaseModel):
    """Limits of events; one that exceeds any goes to the dead letters, with the field and the bound named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question_bytes: PositiveInt = 4 * 1024
    passage_bytes: PositiveInt = 64 * 1024
    event_bytes: Annotated[int, Field(ge=1024, le=512 * 1024)] = 512 * 1024
    passages_per_log: Annotated[int, Field(ge=1, le=MAX_PASSAGES)] = 100
    # Erasures reach logs and feedback dated so long after them.
    future: Annotated[Duration, Field(ge=timedelta(0), le=timedelta(days=1))] = timedelta(minutes=10)


class Rules(NamedTuple):
    """The bounds, and the time of the Kafka message, which unlike the clock is the same on every replay."""

    written_at: datetime
    bounds: Bounds


def violations(event: Any, rules: Rules) -> Iterator[str]:
    """Every violation of a bound in a schema-valid event, each with its field and the bound."""
    occurred_at = event.occurred_at
    if occurred_at > rules.written_at + rules.bounds.future:
        yield f"occurred_at: {occurred_at.isoformat()} lies more than {rules.bounds.future} in the future"
    if occurred_at.year < 1970:
        yield f"occurred_at: {occurred_at.isoformat()} lies before 1970"
    # By attribute, not by class: the worker's state has classes of its own with the same fields.
    if hasattr(event, "question"):
        yield from _log_violations(event, rules.bounds)
    elif hasattr(event, "text"):
        yield from _text("text", event.text, rules.bounds.passage_bytes)
        yield from _text("title", event.title, rules.bounds.question_bytes, may_be_empty=True)


def _log_violations(log: Any, bounds: Bounds) -> Iterator[str]:
    yield from _text("question", log.question, bounds.question_bytes)
    if len(log.retrieved) > bounds.passages_per_log:
        yield f"retrieved: {len(log.retrieved)} passages, at most {bounds.passages_per_log}"
    if len(log.cited_document_ids) > bounds.passages_per_log:
        yield f"cited_document_ids: {len(log.cited_document_ids)}, at most {bounds.passages_per_log}"
    for index, passage in enumerate(log.retrieved):
        if passage.text is not None:
            yield from _text(f"retrieved.{index}.text", passage.text, bounds.passage_bytes, may_be_empty=True)


def _text(field: str, text: str, limit: int, *, may_be_empty: bool = False) -> Iterator[str]:
    size = len(text) if text.isascii() else len(text.encode())
    if size > limit:
        yield f"{field}: {size} bytes, at most {limit}"
    if not may_be_empty and is_blank(text):
        yield f"{field}: only white space, at least 1 other character"


def is_blank(text: str) -> bool:
    """Whether nothing of a text is seen: white space, controls, and marks such as U+200B."""
    # Of almost every text the first character decides.
    return not text[:1].isalnum() and all(map(_is_unseen, text))


def _is_unseen(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in {"Cc", "Cf"}


def epoch_ms(moment: datetime) -> int:
    """A moment as a Kafka timestamp: milliseconds since 1970-01-01 UTC."""
    return int(moment.timestamp() * 1000)


def is_plausible(timestamp_ms: int) -> bool:
    """Whether a Kafka timestamp can be meant."""
    return EARLIEST_MS <= timestamp_ms < LATEST_MS


def written_at(timestamp_ms: int) -> datetime | None:
    """A Kafka timestamp as a datetime; ``None`` unless it is plausible."""
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC) if is_plausible(timestamp_ms) else None
