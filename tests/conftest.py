"""Fixtures that every tier of tests may use."""

import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from infra.local.stack import LocalServers

# What is imported stays: to look for garbage among it would take a fifth of the time of the unit tests.
gc.disable()
# Launchers and trainers that a test starts look nothing up at the hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On a shared machine the duration of an example is meaningless.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that needs servers is slow, whatever it says of itself."""
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """From now on there is garbage."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    """Extension modules report what is left at the end as a leak."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    """A command that a test runs configures the logs for its own stderr, which is closed when it ends."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def local_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator["LocalServers"]:
    """One Kafka and one S3 server for the whole session, on free ports.

    Shared: tests use their own topics and key prefixes; a test that stops or kills servers starts its own.
    """
    from infra.local.options import LocalOptions
    from infra.local.stack import LocalServers

    folder = tmp_path_factory.mktemp("local-servers")
    with LocalServers(LocalOptions(data_dir=folder, kafka_port=None, s3_port=None, keep_data=False)) as servers:
        yield servers
