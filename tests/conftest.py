"""Fixtures that every tier of tests may use."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from infra.local.stack import LocalServers

# Machines are shared: how long an example takes says nothing about it.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


@pytest.fixture(scope="session")
def local_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator["LocalServers"]:
    """One real Kafka and one real S3 server for the whole run, on free ports; stopped at its end.

    Shared: tests name their own topics and key prefixes, and start a stack of their own to do it harm.
    """
    from infra.local.options import LocalOptions
    from infra.local.stack import LocalServers

    folder = tmp_path_factory.mktemp("local-servers")
    with LocalServers(LocalOptions(data_dir=folder, kafka_port=None, s3_port=None, keep_data=False)) as servers:
        yield servers
