"""Kafka and S3 together on one data folder."""

import atexit
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import structlog

from infra.local import kafka, pid_files, s3
from infra.local.folder import DataFolder
from infra.local.jars import KAFKA_LOCK, S3PROXY_LOCK, locked_jars
from infra.local.options import LocalOptions
from infra.local.pid_files import ProcessIdentity, StackState
from infra.local.ports import HOST, choose_port
from infra.local.server import LocalServer

_log = structlog.get_logger(__name__)


def exports(environment: Mapping[str, str]) -> list[str]:
    """The variables as ``export`` lines for a shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


class LocalServers:
    """A broker and an S3 server that run until ``stop`` or the end of this process.

    For a ``with`` block. ``kafka`` and ``s3`` can be stopped, killed and restarted one by one.
    """

    kafka: LocalServer
    s3: LocalServer

    def __init__(self, options: LocalOptions | None = None) -> None:
        self.options = options or LocalOptions()
        self._folder = DataFolder(self.options.data_dir)
        self._servers: list[LocalServer] = []

    @property
    def bootstrap_servers(self) -> str:
        """The address for Kafka clients."""
        return f"{HOST}:{self.kafka.port}"

    @property
    def s3_endpoint(self) -> str:
        """The address for S3 clients."""
        return s3.endpoint(self.s3.port)

    @property
    def access_key(self) -> str:
        """The S3 server's only access key."""
        return self.options.access_key

    @property
    def secret_key(self) -> str:
        """The secret of ``access_key``."""
        return self.options.secret_key

    @property
    def log_dir(self) -> Path:
        """Where the servers write their logs."""
        return self._folder.logs

    @property
    def environment(self) -> dict[str, str]:
        """The ``FOLDTUNE_…`` variables of these servers."""
        names = {
            "FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "FOLDTUNE_S3__ENDPOINT_URL": self.s3_endpoint,
            "FOLDTUNE_S3__ACCESS_KEY_ID": self.access_key,
            "FOLDTUNE_S3__SECRET_ACCESS_KEY": self.secret_key,
        }
        return names | ({"FOLDTUNE_S3__BUCKET": self.options.bucket} if self.options.bucket else {})

    def start(self) -> Self:
        """Start both servers and return when both are healthy; after a failure none runs, and the logs are kept.

        Raises:
            JarUnavailableError, JarDigestError: the servers' jars cannot be downloaded or verified.
            ServerStartError: one did not become healthy; with the end of its logs.
            DataFolderInUseError, ForeignFilesError: the data folder cannot be used.
            NoFreePortError: no port is free.
        """
        self._folder.claim()
        try:
            self._start_servers()
        except BaseException:
            self._stop_servers()
            self._folder.release()
            raise
        # For callers without ``with``: this process has to delete the data.
        atexit.register(self.stop)
        return self

    def stop(self) -> None:
        """Stop both servers, and delete the data unless ``keep_data``; no effect on a stopped stack."""
        if not self._folder.claimed:
            return
        atexit.unregister(self.stop)
        self._stop_servers()
        if not self.options.keep_data:
            self._folder.discard()
        self._folder.release()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_servers(self) -> None:
        kafka_jars, s3_jars = locked_jars(KAFKA_LOCK), locked_jars(S3PROXY_LOCK)
        kafka_port = _port(kafka.NAME, self.options.kafka_port)
        s3_port = _port(s3.NAME, self.options.s3_port, kafka_port)
        controller = choose_port(None, exclude=frozenset({kafka_port, s3_port}))
        self.kafka = LocalServer(
            kafka.spec(self.options, self._folder, kafka_jars, port=kafka_port, controller_port=controller)
        )
        self.s3 = LocalServer(s3.spec(self.options, self._folder, s3_jars, port=s3_port))
        self._servers = [self.kafka, self.s3]
        self.s3.launch()
        kafka.format_storage(self.options, self._folder, kafka_jars)
        self.kafka.launch()
        self.s3.await_healthy()
        self.kafka.await_healthy()
        pid_files.write(self._state(), self._folder.state)

    def _stop_servers(self) -> None:
        self._folder.state.unlink(missing_ok=True)
        for server in self._servers:
            server.begin_stop()
        for server in self._servers:
            server.stop()

    def _state(self) -> StackState:
        return StackState(
            **ProcessIdentity.current().model_dump(),
            kafka_port=self.kafka.port,
            s3_port=self.s3.port,
            log_dir=self.log_dir,
            environment=self.environment,
        )


def _port(server: str, preferred: int | None, *used: int) -> int:
    port = choose_port(preferred, exclude=frozenset(used))
    if preferred is not None and port != preferred:
        _log.warning("port in use, using another", server=server, preferred=preferred, port=port)
    return port
