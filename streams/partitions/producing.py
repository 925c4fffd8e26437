"""Writes single records through Faust's producer: bounded, and with one error for what cannot be written."""

from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from aiokafka import errors
from aiokafka.structs import RecordMetadata
from faust.exceptions import ProducerSendError

from foldtune.errors import RecordRefusedError
from streams.partitions.broker_clock import CLOCK

# By client or broker, of one record: it is too large for its topic, or the topic takes no such records. ``CORRUPT``
# is how older brokers refuse a record without a key on a compacted topic.
_REFUSALS = (
    errors.CorruptRecordException,
    errors.InvalidTopicError,
    errors.MessageSizeTooLargeError,
    errors.PolicyViolationError,
    errors.RecordListTooLargeError,
)


def check_size(
    topic: str, limit: int, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
) -> None:
    """Raise ``RecordRefusedError`` if key, headers and value of a record are larger than ``limit``."""
    size = len(key or b"") + len(value or b"") + sum(len(name) + len(content) for name, content in headers)
    if size > limit:
        raise RecordRefusedError(topic, f"{size} bytes, at most {limit}")


async def enqueue(
    topic: Any,
    *,
    key: bytes | None,
    value: bytes | None,
    partition: int | None = None,
    headers: Sequence[tuple[str, bytes]] = (),
) -> Awaitable[RecordMetadata]:
    """Hand a record to the producer of a Faust topic; ``acknowledged`` waits for the brokers.

    Raises:
        RecordRefusedError: the record is larger than the producer takes.
    """
    with _refusals(topic):
        future: Awaitable[RecordMetadata] = await topic.send(
            key=key, value=value, partition=partition, headers=list(headers)
        )
        return future


async def acknowledged(topic: Any, future: Awaitable[RecordMetadata]) -> RecordMetadata:
    """Wait for the brokers' acknowledgement.

    Raises:
        RecordRefusedError: the brokers do not take this record.
    """
    with _refusals(topic):
        record = await future
    CLOCK.observe(record)
    return record


@contextmanager
def _refusals(topic: Any) -> Iterator[None]:
    try:
        yield
    except (errors.KafkaError, ProducerSendError) as error:
        # Faust wraps what the client raises.
        cause = error.__cause__ if isinstance(error, ProducerSendError) else error
        if isinstance(cause, _REFUSALS):
            raise RecordRefusedError(topic.get_topic_name(), cause) from error
        raise


def brokers_at_fault(error: BaseException) -> bool:
    """Whether an error of the worker's own client says that the brokers do not answer, or not yet."""
    cause = error.__cause__ if isinstance(error, ProducerSendError) else error
    return isinstance(cause, errors.KafkaTimeoutError) or (isinstance(cause, errors.KafkaError) and cause.retriable)
