"""Which dead letters name an erased subject."""

from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from foldtune.dead_letters import dead_letter_headers
from foldtune.events import ErasureRequested, now
from foldtune.settings import KafkaSettings
from streams.publishing import dead_letter_erasure, dead_letter_replay
from streams.publishing.dead_letter_erasure import delete_letters, letters_that_name

VALUES: list[tuple[bytes | None, bytes, str]] = [
    (b"f", b'{"user_id": "anna \\u00e4", "folder_id": "f"', "unreadable"),
    (b"f", '{"user_id": "anna ä"}'.encode(), ""),
    (b"f", b'{"user_id": "anna"}', ""),
    (b"f", b'{"user_id": "anna-2"}', ""),
    (b"g", b'{"user_id": "anna", "folder_id": "g"}', ""),
    (b"anna", b"\xff", ""),
    (None, b"", "user_id: 'anna' is too long"),
    (None, b"", "anna is not quoted: not a name"),
    (
        b"f",
        b'{"user_id": 4711, "logs": [{"conversation_id": -1.50}], "rank": 47, "log_ids": [9]}',
        "user_id: a string is needed",
    ),
    (b"f", b'{"user_id": "org\\/anna \\u00E4"}', ""),
    (b"f", b'"{\\"user_id\\": \\"anna \\u00e4\\"}"', "published as JSON in JSON"),
    (b"f", b'{"user_id": "org/anna"}'.decode().encode("utf-16"), ""),
    (b"f", b"\xfe\x08eve\x02", "of another format"),
    (b"f", b"[" * 100_000 + b'"org"', "too deep"),
    (b"f", b'"' + b"\\" * 20 + b'"', ""),
]


@pytest.mark.parametrize(
    ("name", "folder_id", "found"),
    [
        ("anna ä", None, [0, 1, 10]),
        ("anna", None, [2, 4, 5, 6]),
        ("4711", None, [8]),
        ("-1.50", None, [8]),
        ("471", None, []),
        ("9", None, [8]),
        # Of no id.
        ("47", None, []),
        ("org/anna ä", None, [9]),
        ("org/anna", None, [11]),
        ("eve", None, [12]),
        ("anna", "g", [4]),
        ("nobody", None, []),
    ],
)
def test_dead_letters_that_name_a_subject_are_found_in_any_spelling(
    monkeypatch: pytest.MonkeyPatch, name: str, folder_id: str | None, found: list[int]
) -> None:
    records = [
        SimpleNamespace(
            partition=0, offset=offset, timestamp=1_700_000_000_000, key=key, value=value,
            headers=dead_letter_headers(error, "chat-logs", 0, 0),
        )
        for offset, (key, value, error) in enumerate(VALUES)
    ]  # fmt: skip
    monkeypatch.setattr(dead_letter_replay, "read", lambda *_: iter(records))
    subject: Any = {"subject": "user", "subject_id": name, "folder_id": folder_id}
    erasure = ErasureRequested(erasure_id="e", occurred_at=now(), **subject)
    assert [letter.offset for letter in letters_that_name(erasure, KafkaSettings())] == found


def test_a_deletion_that_was_cut_short_is_repeated_without_second_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[SimpleNamespace] = []
    offsets = count()

    def append(_topic: object, value: bytes, *, key: bytes, partition: int, headers: list[tuple[str, bytes]]) -> None:
        record = {"partition": partition, "offset": next(offsets), "key": key, "value": value, "headers": headers}
        log.append(SimpleNamespace(timestamp=1_700_000_000_000, **record))

    def delete_before(_settings: object, _topic: object, first: dict[int, int]) -> None:
        log[:] = [record for record in log if record.offset >= first[record.partition]]

    def crash(*_: object) -> None:
        raise ConnectionError

    publisher = mock.MagicMock()
    publisher.__enter__().send_raw = append
    monkeypatch.setattr(dead_letter_erasure, "Publisher", lambda _: publisher)
    monkeypatch.setattr(dead_letter_replay, "read", lambda *_: iter(list(log)))
    monkeypatch.setattr(
        dead_letter_replay,
        "read_at",
        lambda _settings, _topic, places: [record for record in log if (record.partition, record.offset) in places],
    )
    for value in (b"kept", b'"anna"', b"later"):
        append(None, value, key=b"f", partition=0, headers=dead_letter_headers("", "chat-logs", 0, 0))
    erasure = ErasureRequested(erasure_id="e", occurred_at=now(), subject="user", subject_id="anna")
    settings = KafkaSettings()
    monkeypatch.setattr(dead_letter_erasure, "delete_records", crash)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            delete_letters(letters_that_name(erasure, settings), settings)
    monkeypatch.setattr(dead_letter_erasure, "delete_records", delete_before)
    delete_letters(letters_that_name(erasure, settings), settings)
    assert [record.value for record in log] == [b"later", b"kept"]
    # The copy is kept by a later erasure like any other letter.
    append(None, b'"anna"', key=b"f", partition=0, headers=[])
    delete_letters(letters_that_name(erasure, settings), settings)
    assert sorted(record.value for record in log) == [b"kept", b"later"]
