"""The application without servers: what it publishes is kept, and its view is given records."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import create_app
from api.context import RateLimit, Services
from api.mining import Miner
from api.problems import unavailable
from api.publishing import Auditor, EventPublisher
from api.sign_in import sign_in
from api.view.requests import Place
from api.view.system import SystemView
from foldtune.events import AuditEntry, Event, FineTuneStatus, State, now
from foldtune.settings import ApiSettings, KafkaSettings, Role, Settings
from foldtune.testing import MemoryObjectStore
from foldtune.topics import Topic

# One caller for each role, and others with limits: their names are their tokens.
EVERY_ROLE = [role.value for role in Role]
CALLERS: dict[str, dict[str, Any]] = {
    **{role: {"roles": [role]} for role in EVERY_ROLE},
    "anybody": {"roles": EVERY_ROLE},
    "of-support": {"roles": EVERY_ROLE, "models": ["support"]},
    "of-handbook": {"roles": EVERY_ROLE, "folders": ["handbook"]},
}
_APPS: dict[tuple[str, tuple[str, ...], tuple[str, ...]], FastAPI] = {}


class Record(NamedTuple):
    """A record on Kafka, as far as the view looks."""

    value: bytes
    offset: int = 0
    partition: int = 0
    topic: str = "topic"
    key: bytes = b""


class MemoryPublisher(EventPublisher):
    """Keeps what is published; with ``broken`` set, the brokers do not answer."""

    def __init__(self) -> None:
        super().__init__(KafkaSettings())
        self.events: list[tuple[Topic, Event, str]] = []
        self.broken = False

    async def publish(self, topic: Topic, event: Event, key: str) -> Place:
        if self.broken:
            raise unavailable()
        self.events.append((topic, event, key))
        return Place(0, len(self.events) - 1)

    async def broadcast(self, topic: Topic, event: Event, partitions: int) -> None:
        for number in range(partitions):
            await self.publish(topic, event, f"{number}")

    def on(self, topic: Topic) -> list[Any]:
        return [event for where, event, _ in self.events if where is topic]

    @property
    def audited(self) -> list[AuditEntry]:
        return self.on(Topic.AUDIT)


@pytest.fixture(scope="session")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    entries = [
        {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **granted}
        for name, granted in CALLERS.items()
    ]
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture
def publisher() -> MemoryPublisher:
    return MemoryPublisher()


@pytest.fixture
def settings(tokens_file: Path) -> Settings:
    return Settings(api=ApiSettings(tokens_file=tokens_file, hosts=("api.example.com",)))


@pytest.fixture
def services(settings: Settings, publisher: MemoryPublisher) -> Services:
    view = SystemView(settings.kafka)
    view._partitions = {Topic.ERASURES: 4, Topic.FOLDER_STATS: 4, Topic.POLICIES: 1, Topic.PREVIEW_REQUESTS: 2}
    return Services(
        settings=settings,
        sign_in=sign_in(settings.api),
        rate_limit=RateLimit(settings.api.requests_per_minute),
        view=view,
        store=MemoryObjectStore(),
        publisher=publisher,
        audit=Auditor(publisher),
        miner=Miner(enabled=False),
    )


@pytest.fixture
def view(services: Services) -> SystemView:
    return services.view


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """Tracebacks without locals: those of FastAPI take seconds to print."""
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, structlog.processors.KeyValueRenderer()])
    yield
    structlog.reset_defaults()


@pytest.fixture
def client(services: Services) -> TestClient:
    """Calls as ``anybody``, who has every role."""
    return client_of(services, "anybody")


def client_of(services: Services, token: str | None = None, host: str = "localhost") -> TestClient:
    """A client of the application on these services: it has no others from then on."""
    app = app_of(services, host)
    headers = bearer(token) if token else {}
    return TestClient(app, base_url="http://localhost", headers=headers, raise_server_exceptions=False)


def app_of(services: Services, host: str = "localhost") -> FastAPI:
    """One for all tests: building its routes takes longer than most of them."""
    settings = services.settings.api
    kind = (host, settings.hosts, settings.cors_origins)
    if kind not in _APPS:
        _APPS[kind] = create_app(services, host)
    _APPS[kind].state.services = services
    return _APPS[kind]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def status_record(offset: int = 0, state: State = State.ACCEPTED, **fields: Any) -> Record:
    """A record of ``fine-tune-status``, by default of request ``r-1`` of ``support``."""
    others: dict[str, Any] = {"request_id": "r-1", "model": "support", "at": now()}
    return Record(FineTuneStatus(state=state, **others | fields).encode(), offset)
