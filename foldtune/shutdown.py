"""Bounds how long a process takes to end after SIGTERM or SIGINT: a cluster kills it 30 s later, without a word."""

import os
import signal
import threading
from collections.abc import Callable, Collection


def exit_after(seconds: float, code: int, last: Callable[[], object] | None = None) -> None:
    """Exit with ``code`` in ``seconds``, after a call of ``last``, unless the process has ended by then.

    A thread does it, since what delays the end may block the main thread, or hang in the interpreter's own exit.
    """

    def end() -> None:
        try:
            if last:
                last()
        finally:
            os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def call_on_signal(numbers: Collection[signal.Signals], handle: Callable[[signal.Signals], object]) -> None:
    """Call ``handle`` in a thread with the first of these signals, each of which needs a handler of Python's.

    Handlers run in the main thread, once that is back from a call that may hang. The byte that the interpreter writes
    at once wakes a thread that does not wait for it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while (number := os.read(reader, 1)[0]) not in numbers:
            pass
        handle(signal.Signals(number))

    threading.Thread(target=watch, name="watch for signals", daemon=True).start()
