"""Ends a process that was asked to end and does not."""

import os
import signal
import threading

import structlog

from trainers.engine import ranks
from trainers.exit_codes import ExitCode

log = structlog.get_logger()

# From SIGTERM to the end of the process, whatever it waits for. AWS Batch, Kubernetes and the local launcher kill after
# half a minute.
END_SECONDS = 25.0


def end_after_sigterm(seconds: float = END_SECONDS) -> None:
    """From now on, the process exits ``seconds`` after SIGTERM, unless it has ended by itself.

    Python's signal handlers run in the main thread, once that is back from whatever it calls. The byte that the
    interpreter writes at once wakes a thread that does not wait for it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, seconds), name="sigterm-deadline", daemon=True).start()


def _watch(reader: int, seconds: float) -> None:
    while signal.SIGTERM not in os.read(reader, 1):
        pass
    threading.Event().wait(seconds)
    log.error("training did not end in time after SIGTERM, exiting", seconds=seconds)
    ranks.write_exit_code(ExitCode.TRY_AGAIN)
    os._exit(ExitCode.TRY_AGAIN)
