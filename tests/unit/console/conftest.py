"""The console on an API without servers."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.context import Services
from api.server import with_console
from api.session_sign_in import sign_in_with_sessions
from console.app import sessions_of
from foldtune.settings import ApiSettings, ConsoleSettings, Settings
from tests.unit.api.conftest import app_of, plain_logs, publisher, services, tokens_file, view

__all__ = ["plain_logs", "publisher", "services", "tokens_file", "view"]


@pytest.fixture
def settings(tokens_file: Path, tmp_path: Path) -> Settings:
    key = tmp_path / "session.key"
    key.write_bytes(b"k" * 32)
    return Settings(api=ApiSettings(tokens_file=tokens_file), console=ConsoleSettings(session_key_file=key))


@pytest.fixture
def browser(services: Services, settings: Settings) -> TestClient:
    """Nobody is signed in."""
    return browser_of(services, settings)


def browser_of(services: Services, settings: Settings, token: str | None = None) -> TestClient:
    """A browser in which somebody has signed in with a token."""
    sessions = sessions_of(settings)
    object.__setattr__(services, "sign_in", sign_in_with_sessions(settings.api, sessions))
    app = with_console(app_of(services), settings, sessions, "localhost")
    client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
    client.headers["origin"] = "http://localhost"
    if token:
        answer = client.post("/console/sign-in", data={"token": token}, follow_redirects=False)
        assert answer.status_code == 303
    return client
