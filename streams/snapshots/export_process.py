"""A child process for the CPU work of exports.

In a thread it would hold the GIL for long stretches, which delays ingestion: a log took 367 ms to become durable
instead of 11 (99th percentile).
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

T = TypeVar("T")


class ExportProcess:
    """Starts on first use and ends with the worker, even if that is killed."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()

    def __call__(self, function: Callable[[], T]) -> T:
        """Call ``function`` in the process; thread-safe. The function and its result must be picklable.

        Raises:
            OSError: the process was killed, perhaps by the kernel for its memory; the next call starts a new one.
        """
        with self._lock:
            if self._pool is None:
                # Spawned: a fork would share this process's connections and databases.
                self._pool = ProcessPoolExecutor(
                    1, mp_context=get_context("spawn"), initializer=_initialize, initargs=(os.getpid(),)
                )
            pool = self._pool
        try:
            return pool.submit(function).result()
        except BrokenProcessPool as error:
            with self._lock:
                self._pool = None if self._pool is pool else self._pool
            raise OSError("the export process was killed") from error

    def close(self) -> None:
        """End the process after the current call."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)


def _initialize(parent: int) -> None:
    # Ingestion comes first.
    os.nice(10)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)
