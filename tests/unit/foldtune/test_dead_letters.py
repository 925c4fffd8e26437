"""Dead letters within the brokers' limit, whatever was rejected."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from foldtune.dead_letters import ERROR_HEADER, dead_letter, reject_record, replayed_letter
from foldtune.errors import PublishError, RecordRefusedError
from foldtune.events import FineTuneRequested
from foldtune.kafka import Publisher
from foldtune.topics import Topic

ORIGIN = ("chat-logs", 1, 5)


def test_a_dead_letter_with_a_large_key_and_a_large_value_fits_and_says_what_was_cut() -> None:
    letter = dead_letter(b"v" * 3_000_000, b"k" * 100_000, "reason " * 10_000, ORIGIN)
    size = (
        len(letter.key or b"") + len(letter.value or b"") + sum(len(name) + len(text) for name, text in letter.headers)
    )
    assert size < Topic.DEAD_LETTERS.max_record_bytes
    error = dict(letter.headers)[ERROR_HEADER].decode()
    assert error.startswith("value truncated from 3000000 bytes to 2031616; key truncated from 100000 bytes to 1024; ")


def test_a_record_without_key_and_value_has_a_dead_letter_that_the_clients_take() -> None:
    assert dead_letter(None, None, "x", ORIGIN).value == b""
    assert dead_letter(None, b"k", "x", ORIGIN).value is None
    assert dead_letter(b"v", None, "x", ORIGIN).without_value().value == b""


class NarrowPublisher:
    """Takes records of up to 1,000 bytes."""

    def __init__(self, error: type[PublishError]) -> None:
        self._error = error
        self.sent: list[tuple[bytes | None, Any]] = []

    def send_raw(self, _: Topic, value: bytes | None, *, key: bytes | None, headers: Any) -> None:
        if len(value or b"") > 1_000:
            raise self._error("dead-letters", "too large")
        assert key is None
        self.sent.append((value, dict(headers)[ERROR_HEADER].decode()))

    def flush(self) -> None:
        pass


def rejected(publisher: Any, value: bytes, error: Exception) -> None:
    record = SimpleNamespace(topic="training-jobs", partition=0, offset=3, key=None, value=value)
    reject_record(publisher, record, error)


def test_a_topic_that_takes_no_large_record_gets_the_dead_letter_without_its_value() -> None:
    publisher = NarrowPublisher(RecordRefusedError)
    rejected(publisher, b"v" * 5_000, KeyError("x"))
    rejected(publisher, b"v", KeyError("x"))
    assert publisher.sent == [
        (b"", "value of 5000 bytes left out, too large for this topic; KeyError: 'x'"),
        (b"v", "KeyError: 'x'"),
    ]
    with pytest.raises(PublishError):
        rejected(NarrowPublisher(PublishError), b"v" * 5_000, KeyError("x"))


def test_a_dead_letter_that_the_topic_never_takes_is_lost_and_logged_and_the_consumer_goes_on() -> None:
    publisher = mock.create_autospec(Publisher, instance=True)
    publisher.flush.side_effect = RecordRefusedError("dead-letters", "needs a key")
    with capture_logs() as logs:
        rejected(publisher, b"v", KeyError("x"))
    assert publisher.flush.call_count == 2
    assert [(log["event"], log["offset"], log["error"]) for log in logs] == [("dead letter lost", 3, "KeyError: 'x'")]


def test_the_names_of_unknown_fields_are_cut() -> None:
    publisher = NarrowPublisher(RecordRefusedError)
    unknown = ",".join(f'"{"k" * 50_000}{number}":1' for number in range(20))
    with pytest.raises(ValidationError) as caught:
        FineTuneRequested.model_validate_json('{"data":{' + unknown + "}}")
    rejected(publisher, b"", caught.value)
    [(_, error)] = publisher.sent
    assert len(error) < 4_096
    assert f"data.{'k' * 100}…: unknown field" in error


def test_a_dead_letter_names_the_one_that_its_record_is_a_replay_of() -> None:
    replayed = replayed_letter([("other", None), ("foldtune-letter", b"3:17")])
    assert ("foldtune-replay-of", b"3:17") in dead_letter(b"v", b"k", "x", ORIGIN, replayed).headers
    for forged in (None, b"", b"x", b"3:17\n", b"3:" + b"1" * 1_000_000):
        assert replayed_letter([("foldtune-letter", forged)]) is None
    assert len(dead_letter(b"v", b"k", "x", ORIGIN).headers) == 4
