"""The export process: separate, replaced when killed, and never orphaned."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest

from streams.snapshots.export_process import ExportProcess

PARENT = """
import os, time
from streams.snapshots.export_process import ExportProcess
if __name__ == "__main__":
    print(ExportProcess()(os.getpid), flush=True)
    time.sleep(60)
"""


def test_a_killed_process_is_replaced() -> None:
    process = ExportProcess()
    first = process(os.getpid)
    assert first != os.getpid()
    assert process(os.getpid) == first
    with pytest.raises(OSError, match="the export process was killed"):
        process(partial(os.kill, first, signal.SIGKILL))
    assert process(os.getpid) not in {first, os.getpid()}
    process.close()


def test_exceptions_are_raised_in_the_caller() -> None:
    process = ExportProcess()
    with pytest.raises(ZeroDivisionError):
        process(partial(divmod, 1, 0))
    process.close()


@pytest.mark.slow
def test_the_export_process_exits_with_a_killed_worker() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    deadline = time.monotonic() + 20
    while child.is_running() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not child.is_running()
