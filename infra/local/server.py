"""One Java server as a child process: started until healthy, stopped, killed, started again."""

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

from infra.local import records, supervise
from infra.local.errors import ServerStartError
from infra.local.records import ProcessRecord

SUPERVISOR = Path(supervise.__file__)
POLL_SECONDS = 0.1
# Object keys become file names, and Java takes the encoding of those from the locale: in LANG=C it refuses "ü".
UTF_8 = {"LC_ALL": "C.UTF-8"}
# The supervisor ends what does not stop within its own grace.
STOP_SECONDS = supervise.GRACE_SECONDS + 5
LOG_TAIL_LINES = 30

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ServerSpec:
    """How a server is started, and how one knows that it works.

    ``log_file`` is written by the server's logging, ``output_file`` holds what the Java runtime itself says. ``probe``
    returns when the server answers as it should and raises while it does not.
    """

    name: str
    port: int
    command: Sequence[str]
    log_file: Path
    output_file: Path
    record_file: Path
    probe: Callable[[], None]
    start_seconds: float


class LocalServer:
    """A server of a stack. It ends with the process that started it, even when that is killed."""

    def __init__(self, spec: ServerSpec) -> None:
        self.spec = spec
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._java: psutil.Process | None = None

    @property
    def port(self) -> int:
        """Where it listens, on the loopback interface; the same after a restart."""
        return self.spec.port

    @property
    def pid(self) -> int | None:
        """The Java process, for ``kill -9``; nothing while the server is stopped."""
        return self._java.pid if self.running and self._java else None

    @property
    def running(self) -> bool:
        """Whether the process lives; ``start`` says whether it is healthy."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def start(self) -> None:
        """Start, and return when the probe succeeds. A running server is left as it is.

        Raises:
            ServerStartError: it ended, or was not healthy within ``start_seconds``; with the end of its logs.
        """
        if not self.running:
            self.launch()
            self.await_healthy()

    def launch(self) -> None:
        """The first half of ``start``: start the process, without waiting for the server in it."""
        self.stop()
        end_leftover(self.spec.record_file)
        # A session of its own: Ctrl-C in a terminal reaches the parent, which then stops the servers in order.
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", str(SUPERVISOR), str(self.spec.output_file), *self.spec.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | UTF_8,
        )
        try:
            self._note_process(self._supervisor)
        except BaseException:
            self.stop()
            raise

    def await_healthy(self) -> None:
        """The second half of ``start``; a server that does not become healthy is stopped."""
        try:
            self._await_probe()
        except BaseException:
            self.stop()
            raise
        _log.info("server is healthy", server=self.spec.name, port=self.port, pid=self.pid)

    def ask_to_stop(self) -> None:
        """Let the server begin to stop, without waiting for it; ``stop`` does."""
        if self._supervisor and self._supervisor.stdin:
            self._supervisor.stdin.close()

    def stop(self) -> None:
        """Ask the server to stop, wait, and end it where it does not. A stopped one is left as it is."""
        if not self._supervisor:
            return
        self.ask_to_stop()
        try:
            self._supervisor.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()
        finally:
            self._forget()

    def kill(self) -> None:
        """``kill -9`` on the Java process, as a crash would: nothing is flushed, nobody is told."""
        if self._java:
            self._java.kill()
        self.stop()

    def restart(self) -> None:
        """Stop and start on the same port and data; raises like ``start``."""
        self.stop()
        self.start()

    def log_tail(self) -> str:
        """The last lines of the server's logs."""
        tails = [_tail(path) for path in (self.spec.output_file, self.spec.log_file) if path.exists()]
        return "".join(tails)

    def _note_process(self, supervisor: "subprocess.Popen[bytes]") -> None:
        first_line = supervisor.stdout.readline() if supervisor.stdout else b""
        try:
            record = ProcessRecord.of(int(first_line))
        except (ValueError, psutil.NoSuchProcess) as error:
            raise ServerStartError(self.spec.name, "it ended at once", f"\n{self.log_tail()}") from error
        records.write(record, self.spec.record_file)
        self._java = record.process()

    def _await_probe(self) -> None:
        attempts = Retrying(
            retry=retry_if_not_exception_type(ServerStartError),
            stop=stop_after_delay(self.spec.start_seconds),
            wait=wait_fixed(POLL_SECONDS),
        )
        try:
            attempts(self._probe)
        except RetryError as error:
            why = f"not healthy after {self.spec.start_seconds} s: {error.last_attempt.exception()!r}"
            raise ServerStartError(self.spec.name, why, f"\n{self.log_tail()}") from error

    def _probe(self) -> None:
        if not self.running:
            raise ServerStartError(self.spec.name, "it ended", f"\n{self.log_tail()}")
        self.spec.probe()

    def _forget(self) -> None:
        if self._supervisor and self._supervisor.stdout:
            self._supervisor.stdout.close()
        # Alive only where the supervisor itself was killed.
        if self._java and self._java.is_running():
            self._java.kill()
            self._java.wait(STOP_SECONDS)
        self._supervisor = self._java = None
        self.spec.record_file.unlink(missing_ok=True)


def end_leftover(record_file: Path) -> bool:
    """End a server whose owner is gone; says whether there was one.

    Its supervisor may be stopping it just now, so it gets that time first.
    """
    record = records.read(ProcessRecord, record_file)
    ended = record is not None and record.end(STOP_SECONDS)
    record_file.unlink(missing_ok=True)
    return ended


def _tail(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return "".join(deque(file, LOG_TAIL_LINES))
