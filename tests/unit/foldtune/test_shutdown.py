"""A process that was asked to end does so in time, whatever it waits for."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

IMPORTS = """
import os, signal, threading, time
from functools import partial
from foldtune.shutdown import call_on_signal, exit_after
"""
# A main thread that is in a call from which it does not come back: Python's handlers never run.
HUNG = """
import ctypes
for number in HANDLED:
    signal.siginterrupt(number, False)
print("runs", flush=True)
ctypes.CDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)
"""


@contextmanager
def process(program: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", IMPORTS + program], stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def test_a_process_whose_exit_hangs_ends_with_the_code_and_its_last_words() -> None:
    program = (
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "exit_after(0.02, 75, partial(print, 'not in time', flush=True))\n"
    )
    with process(program) as child:
        assert child.communicate(timeout=20)[0] == "not in time\n"
        assert child.returncode == 75


def test_last_words_that_fail_do_not_keep_the_process() -> None:
    with process("exit_after(0.02, 75, lambda: 1 / 0)\ntime.sleep(60)") as child:
        assert child.wait(20) == 75


def test_a_process_that_ends_in_time_keeps_its_own_code() -> None:
    with process("exit_after(30, 75, partial(print, 'not in time'))\nraise SystemExit(3)") as child:
        assert child.communicate(timeout=20)[0] == ""
        assert child.returncode == 3


def test_a_signal_is_noticed_while_the_main_thread_hangs() -> None:
    program = """
def end(number):
    exit_after(0.02, 100 + number, partial(print, number.name, flush=True))

call_on_signal((signal.SIGINT, signal.SIGTERM), end)
HANDLED = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
for number in HANDLED:
    signal.signal(number, lambda *_: None)
"""
    with process(program + HUNG) as child:
        assert child.stdout
        assert child.stdout.readline() == "runs\n"
        # Not one of these, nor is it taken for one.
        child.send_signal(signal.SIGUSR1)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.05)
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=20)[0] == "SIGTERM\n"
        assert child.returncode == 100 + signal.SIGTERM
