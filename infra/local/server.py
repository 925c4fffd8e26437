"""One Java server as a child process: start, health, stop, kill and restart."""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog
from tenacity import RetryError, Retrying, retry_if_not_exception_type, stop_after_delay, wait_fixed

from infra.local import pid_files, supervisor
from infra.local.errors import ServerStartError
from infra.local.pid_files import ProcessIdentity

SUPERVISOR = Path(supervisor.__file__)
POLL_SECONDS = 0.1
# Object keys become file names, whose encoding Java takes from the locale: with LANG=C it refuses "ü".
UTF_8 = {"LC_ALL": "C.UTF-8"}
# The supervisor kills the server after its own grace period.
STOP_SECONDS = supervisor.GRACE_SECONDS + 5
LOG_TAIL_LINES = 30

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ServerSpec:
    """How a server is started and probed.

    ``log_file`` is written by the server's logging, ``output_file`` holds the output of the Java runtime. ``probe``
    raises while the server is not healthy.
    """

    name: str
    port: int
    command: Sequence[str]
    log_file: Path
    output_file: Path
    pid_file: Path
    probe: Callable[[], None]
    start_seconds: float


class LocalServer:
    """A server of a stack. It stops when the process that started it ends, even by SIGKILL."""

    def __init__(self, spec: ServerSpec) -> None:
        self.spec = spec
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._java: psutil.Process | None = None

    @property
    def port(self) -> int:
        """Its port on the loopback interface; the same after a restart."""
        return self.spec.port

    @property
    def pid(self) -> int | None:
        """The pid of the Java process, for ``kill -9``; ``None`` while the server is stopped."""
        return self._java.pid if self.running and self._java else None

    @property
    def running(self) -> bool:
        """Whether the process runs, healthy or not."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def start(self) -> None:
        """Start, and return once healthy; no effect on a running server.

        Raises:
            ServerStartError: it exited, or was not healthy within ``start_seconds``; with the end of its logs.
        """
        if not self.running:
            self.launch()
            self.await_healthy()

    def launch(self) -> None:
        """The first half of ``start``: start the process without waiting until it is healthy."""
        self.stop()
        stop_orphan(self.spec.pid_file)
        # In its own session, so that Ctrl-C in a terminal reaches the parent alone, which stops the servers in order.
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", str(SUPERVISOR), str(self.spec.output_file), *self.spec.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | UTF_8,
        )
        try:
            self._write_pid_file(self._supervisor)
        except BaseException:
            self.stop()
            raise

    def await_healthy(self) -> None:
        """The second half of ``start``: wait until healthy, and stop the server if it does not become so."""
        try:
            self._await_probe()
        except BaseException:
            self.stop()
            raise
        _log.info("server is healthy", server=self.spec.name, port=self.port, pid=self.pid)

    def begin_stop(self) -> None:
        """Start to stop, without waiting; ``stop`` waits."""
        if self._supervisor and self._supervisor.stdin:
            self._supervisor.stdin.close()

    def stop(self) -> None:
        """Stop, by SIGKILL if SIGTERM does not; no effect on a stopped server."""
        if not self._supervisor:
            return
        try:
            stop_supervisor(self._supervisor)
        finally:
            self._clear()

    def kill(self) -> None:
        """SIGKILL to the Java process, like a crash: nothing is flushed."""
        if self._java:
            self._java.kill()
        self.stop()

    def restart(self) -> None:
        """Stop, then start on the same port and data; raises like ``start``."""
        self.stop()
        self.start()

    def log_tail(self) -> str:
        """The last lines of the server's logs."""
        return "".join(log_tail(path, LOG_TAIL_LINES) for path in (self.spec.output_file, self.spec.log_file))

    def _write_pid_file(self, supervisor: "subprocess.Popen[bytes]") -> None:
        first_line = supervisor.stdout.readline() if supervisor.stdout else b""
        try:
            identity = ProcessIdentity.of(int(first_line))
        except (ValueError, psutil.NoSuchProcess) as error:
            raise ServerStartError(self.spec.name, "it exited at once", f"\n{self.log_tail()}") from error
        pid_files.write(identity, self.spec.pid_file)
        self._java = identity.process()

    def _await_probe(self) -> None:
        attempts = Retrying(
            retry=retry_if_not_exception_type(ServerStartError),
            stop=stop_after_delay(self.spec.start_seconds),
            wait=wait_fixed(POLL_SECONDS),
        )
        try:
            attempts(self._probe)
        except RetryError as error:
            reason = f"not healthy after {self.spec.start_seconds} s: {error.last_attempt.exception()!r}"
            raise ServerStartError(self.spec.name, reason, f"\n{self.log_tail()}") from error

    def _probe(self) -> None:
        if not self.running:
            raise ServerStartError(self.spec.name, "it exited", f"\n{self.log_tail()}")
        self.spec.probe()

    def _clear(self) -> None:
        if self._supervisor and self._supervisor.stdout:
            self._supervisor.stdout.close()
        # Still running only if the supervisor itself was killed.
        if self._java and self._java.is_running():
            self._java.kill()
            self._java.wait(STOP_SECONDS)
        self._supervisor = self._java = None
        self.spec.pid_file.unlink(missing_ok=True)


def stop_supervisor(process: "subprocess.Popen[bytes]") -> None:
    """Have a supervisor stop its program, and wait for both; SIGKILL if its grace period was not enough."""
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stop_orphan(pid_file: Path) -> bool:
    """Stop a server whose owner is gone; whether there was one.

    Its supervisor may be stopping it at this moment, hence the grace period.
    """
    identity = pid_files.read(ProcessIdentity, pid_file)
    stopped = identity is not None and identity.terminate(STOP_SECONDS)
    pid_file.unlink(missing_ok=True)
    return stopped


def log_tail(path: Path, lines: int) -> str:
    """The last lines of a log file; empty if it does not exist."""
    if not path.exists():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return "".join(deque(file, lines))
