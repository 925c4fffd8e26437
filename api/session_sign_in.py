"""Who calls by a session of the console, which comes as a bearer token."""

from collections.abc import Mapping

from api.access import Caller, caller_of
from api.sign_in import SignIn, TokenSignIn, sign_in, unauthorized
from console.sessions import Sessions
from foldtune.settings import ApiSettings


class SessionSignIn(SignIn):
    """Sessions first, then other tokens."""

    def __init__(self, sessions: Sessions, settings: ApiSettings, tokens: TokenSignIn) -> None:
        self._sessions = sessions
        self._settings = settings
        self._tokens = tokens

    async def caller(self, headers: Mapping[str, str]) -> Caller:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        session = self._sessions.read("session", token) if scheme.lower() == "bearer" else None
        if session is None:
            return await self._tokens.caller(headers)
        if (digest := session.get("token_sha256")) is None:
            return caller_of(session["claims"], self._settings)
        # With what the file grants now, as long as the token stands there.
        if known := self._tokens.of_file(digest):
            return known
        raise unauthorized("the token of this session is not known any more")


def sign_in_with_sessions(settings: ApiSettings, sessions: Sessions) -> SignIn:
    """The sign-in of the settings, and that of the console; raises ``InvalidSettingsError``."""
    tokens = sign_in(settings)
    return SessionSignIn(sessions, settings, tokens) if isinstance(tokens, TokenSignIn) else tokens
