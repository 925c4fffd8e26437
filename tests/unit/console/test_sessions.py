"""What a cookie says, and who may have written it."""

from datetime import timedelta
from pathlib import Path

import jwt
import pytest

from console.sessions import Sessions, read_key
from foldtune.errors import InvalidSettingsError

KEY = b"k" * 32


@pytest.fixture
def sessions() -> Sessions:
    return Sessions(KEY, timedelta(hours=1))


def test_what_was_signed_is_read_by_another_replica(sessions: Sessions) -> None:
    text = sessions.sign("session", {"claims": {"sub": "ada"}})
    found = Sessions(KEY, timedelta(hours=1)).read("session", text)
    assert found is not None
    assert found["claims"] == {"sub": "ada"}


def test_what_another_has_signed_or_for_something_else_or_too_long_ago_is_not_read(sessions: Sessions) -> None:
    content = {"claims": {"sub": "ada"}}
    assert Sessions(b"o" * 32, timedelta(hours=1)).read("session", sessions.sign("session", content)) is None
    assert sessions.read("session", sessions.sign("sign-in", content)) is None
    assert sessions.read("session", sessions.sign("session", content, timedelta(seconds=-1))) is None
    unsigned = jwt.encode({**content, "aud": "session", "exp": 9e9}, "", "none")
    for text in ("", "a.b.c", "é", unsigned, sessions.sign("session", content)[:-2]):
        assert sessions.read("session", text) is None


def test_a_key_is_long_enough_and_without_one_each_process_has_its_own(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(KEY + b"\n")
    assert read_key(path) == KEY
    assert read_key(None) != read_key(None)
    path.write_bytes(b"short")
    with pytest.raises(InvalidSettingsError, match="at least 32 bytes"):
        read_key(path)
    with pytest.raises(InvalidSettingsError, match="session_key_file"):
        read_key(tmp_path / "missing")
