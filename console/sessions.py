"""Sessions of browsers: signed, kept nowhere but in their cookie, so that any replica reads them."""

import secrets
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import jwt

from foldtune.errors import InvalidSettingsError

_ALGORITHM = "HS256"
# What a signed text is for: one for another purpose is refused.
Purpose = Literal["session", "sign-in"]
_MIN_KEY_BYTES = 32


class Sessions:
    """Signs what a cookie says, and reads it back."""

    def __init__(self, key: bytes, lifetime: timedelta) -> None:
        self._key = key
        self.lifetime = lifetime

    def sign(self, purpose: Purpose, content: Mapping[str, Any], lifetime: timedelta | None = None) -> str:
        """A text that ``read`` takes for this purpose, until its time is over."""
        end = time.time() + (lifetime or self.lifetime).total_seconds()
        return jwt.encode({**content, "aud": purpose, "exp": end}, self._key, _ALGORITHM)

    def read(self, purpose: Purpose, text: str) -> dict[str, Any] | None:
        """What was signed; ``None`` if it was not, was for another purpose, or is too old."""
        try:
            return jwt.decode(text, self._key, [_ALGORITHM], audience=purpose, options={"require": ["exp", "aud"]})
        except (jwt.PyJWTError, ValueError, RecursionError):
            return None


def read_key(path: Path | None) -> bytes:
    """The key of the file, or without one a random key, by which no session outlives this process.

    Raises:
        InvalidSettingsError: the file cannot be read, or is too short.
    """
    if path is None:
        return secrets.token_bytes(_MIN_KEY_BYTES)
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise InvalidSettingsError(f"console.session_key_file {path}: {error}") from error
    if len(key) < _MIN_KEY_BYTES:
        raise InvalidSettingsError(f"console.session_key_file {path}: at least {_MIN_KEY_BYTES} bytes")
    return key
