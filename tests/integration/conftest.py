"""An isolated foldtune on the shared servers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foldtune.kafka import Publisher
from foldtune.settings import Settings, load_settings
from foldtune.topic_admin import create_topics
from foldtune.topics import Topic
from infra.local.stack import LocalServers
from tests.secured import SecuredServers, secured_servers
from tests.support import ChildProcess, environment, settings_of

StartWorker = Callable[..., ChildProcess]


@pytest.fixture
def variables(local_servers: LocalServers, tmp_path: Path) -> dict[str, str]:
    """The environment of a system with topics of its own."""
    return environment(local_servers, tmp_path)


@pytest.fixture
def settings(variables: dict[str, str]) -> Settings:
    """The same as settings, its topics created."""
    found = settings_of(variables)
    create_topics(found.kafka, tuple(Topic))
    return found


@pytest.fixture
def publisher(settings: Settings) -> Iterator[Publisher]:
    """Publishes to the test's topics."""
    with Publisher(settings.kafka) as client:
        yield client


@pytest.fixture
def runner(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    """Runs commands with the test's settings."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    load_settings.cache_clear()
    yield CliRunner()
    load_settings.cache_clear()


@pytest.fixture
def start_worker(variables: dict[str, str], settings: Settings, tmp_path: Path) -> Iterator[StartWorker]:
    """Starts worker processes, each with a data folder of its own, and ends them with the test."""
    started: list[ChildProcess] = []

    def start(name: str = "one", module: str = "foldtune", **more: str) -> ChildProcess:
        mine = {"FOLDTUNE_WORKER__DATA_DIR": str(tmp_path / name), "FOLDTUNE_WORKER__INSTANCE_ID": name}
        started.append(ChildProcess(["worker"], variables | mine | more, tmp_path / f"{name}.log", module))
        return started[-1]

    yield start
    for child in started:
        child.kill()


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredServers]:
    """Servers of which the broker demands credentials, and knows what each user may do."""
    with secured_servers(tmp_path_factory.mktemp("secured")) as servers:
        yield servers
