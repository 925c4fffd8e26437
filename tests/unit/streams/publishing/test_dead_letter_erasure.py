"""Which dead letters name an erased subject."""

from types import SimpleNamespace
from typing import Any

import pytest

from foldtune.dead_letters import dead_letter_headers
from foldtune.events import ErasureRequested, now
from foldtune.settings import KafkaSettings
from streams.publishing import dead_letter_replay
from streams.publishing.dead_letter_erasure import letters_that_name

VALUES: list[tuple[bytes | None, bytes, str]] = [
    (b"f", b'{"user_id": "anna \\u00e4", "folder_id": "f"', "unreadable"),
    (b"f", '{"user_id": "anna ä"}'.encode(), ""),
    (b"f", b'{"user_id": "anna"}', ""),
    (b"f", b'{"user_id": "anna-2"}', ""),
    (b"g", b'{"user_id": "anna", "folder_id": "g"}', ""),
    (b"anna", b"\xff", ""),
    (None, b"", "user_id: 'anna' is too long"),
    (None, b"", "anna is not quoted: not a name"),
]


@pytest.mark.parametrize(
    ("name", "folder_id", "found"),
    [
        ("anna ä", None, [0, 1]),
        ("anna", None, [2, 4, 5, 6]),
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
