"""A process beside the worker's, for the arithmetic of exports.

In a thread it would hold the interpreter's lock for long at a time, and what arrives meanwhile would wait: a log took
367 ms to become durable instead of 11 (99th percentile).
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
    """Started when first needed, ended with the worker, however that ends."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()

    def __call__(self, function: Callable[[], T]) -> T:
        """Call ``function`` there; may be called from any thread. It and what it returns are copied by ``pickle``.

        Raises:
            OSError: the process was killed, by the kernel for its memory perhaps; the next call starts another.
        """
        with self._lock:
            if self._pool is None:
                # Spawned: a copy of this process would share its connections and its databases.
                self._pool = ProcessPoolExecutor(
                    1, mp_context=get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
                )
            pool = self._pool
        try:
            return pool.submit(function).result()
        except BrokenProcessPool as error:
            with self._lock:
                self._pool = None if self._pool is pool else self._pool
            raise OSError("the exporting process was killed") from error

    def close(self) -> None:
        """Let it end once what it is at is done."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)


def _begin(parent: int) -> None:
    # The logs come first.
    os.nice(10)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)
