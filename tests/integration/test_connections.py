"""Every way to connect to brokers, with each client library: a real broker with TLS and SASL.

A worker uses all of them: kafka-python for its topics, Faust's aiokafka for group, changelogs and dead letters, and
aiokafka alone for the topics that it consumes.
"""

import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import certifi
import pytest

from foldtune.kafka import Publisher
from foldtune.topics import Topic
from tests.secured import REAUTHENTICATION_SECONDS, SecuredServers
from tests.support import ChildProcess, Reader, settings_of

Connect = Callable[[SecuredServers], dict[str, str]]
WAYS: dict[str, Connect] = {
    "OAUTHBEARER": lambda secured: secured.with_tokens("client"),
    "TLS": lambda secured: secured.environment("TLS"),
    "mTLS": lambda secured: secured.certified(),
    "PLAIN": lambda secured: secured.user("plain", "PLAIN"),
    "SCRAM-SHA-256": lambda secured: secured.user("client", "SCRAM-SHA-256"),
    "SCRAM-SHA-512": lambda secured: secured.user("client", "SCRAM-SHA-512"),
}


@pytest.mark.parametrize(
    "way", ["OAUTHBEARER", *(pytest.param(way, marks=pytest.mark.matrix) for way in WAYS if way != "OAUTHBEARER")]
)
def test_a_worker_and_its_clients_connect(way: str, secured: SecuredServers, tmp_path: Path) -> None:
    secured.create_users(["client"])
    name = f"t{uuid4().hex[:8]}"
    variables = WAYS[way](secured) | {
        "FOLDTUNE_KAFKA__TOPIC_PREFIX": f"{name}-",
        "FOLDTUNE_WORKER__APP_ID": name,
        "FOLDTUNE_WORKER__DATA_DIR": str(tmp_path / "worker"),
    }
    settings = settings_of(variables)
    worker = ChildProcess(["worker"], variables, tmp_path / "worker.log")
    try:
        # Only a worker that reads the logs can say that this is none.
        with Reader(settings, Topic.DEAD_LETTERS) as letters, Publisher(settings.kafka) as publisher:
            publisher.send_raw(Topic.CHAT_LOGS, b"no log", key="k")
            publisher.flush()
            letters.until(bool, 30)
            if way == "OAUTHBEARER":
                # The broker ends connections whose token is older than this.
                time.sleep(REAUTHENTICATION_SECONDS + 1)
            publisher.send_raw(Topic.CHAT_LOGS, b"nor this", key="k")
            publisher.flush()
            found = letters.until(lambda records: len(records) == 2, 30)
        assert [letter.value for letter in found] == [b"no log", b"nor this"]
    finally:
        assert worker.stop() == 0, worker.log.read_text()


@pytest.mark.matrix
@pytest.mark.parametrize(
    "connect",
    [
        lambda secured: secured.user("plain", "PLAIN", "wrong"),
        lambda secured: secured.user("client", "SCRAM-SHA-512", "wrong"),
        lambda secured: secured.with_tokens("client", "wrong"),
        # A broker that demands a certificate, and one whose own is of an authority that the system does not know.
        lambda secured: secured.environment("MTLS"),
        lambda secured: secured.environment("TLS", FOLDTUNE_KAFKA__SSL_CAFILE=certifi.where()),
    ],
    ids=["PLAIN", "SCRAM-SHA-512", "OAUTHBEARER", "mTLS", "TLS"],
)
def test_nobody_gets_in_with_less(connect: Connect, secured: SecuredServers, tmp_path: Path) -> None:
    secured.create_users(["client"])
    command = ChildProcess(["topics", "create"], connect(secured), tmp_path / "output")
    assert command.wait(60) == 2
    said = command.log.read_text()
    assert said.startswith("foldtune: Brokers at FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS let this client not in")
