"""Pid files: which process is which, so that a later command finds it and never takes another for it."""

import os
from pathlib import Path
from typing import Self, TypeVar

import psutil
from pydantic import ValidationError

from foldtune.settings import Section

Content = TypeVar("Content", bound=Section)

# psutil derives the start time from the boot time, which the clock may correct slightly while the process runs.
START_TOLERANCE_SECONDS = 2.0


class ProcessIdentity(Section):
    """A process by pid and start time (seconds since the epoch), since pids are reused."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Self:
        """The identity of a running process.

        Raises:
            psutil.NoSuchProcess: there is none.
        """
        return cls(pid=pid, started=psutil.Process(pid).create_time())

    @classmethod
    def current(cls) -> Self:
        """The identity of this process."""
        return cls.of(os.getpid())

    def process(self) -> psutil.Process | None:
        """The process while it runs; ``None`` also where the pid has been reused."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) <= START_TOLERANCE_SECONDS
            running = same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if running else None

    def terminate(self, grace_seconds: float) -> bool:
        """SIGTERM, then SIGKILL after ``grace_seconds``; whether the process was running."""
        process = self.process()
        if process is None:
            return False
        process.terminate()
        try:
            process.wait(grace_seconds)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(grace_seconds)
        return True


class StackState(ProcessIdentity):
    """A running stack: its owner (the process above), and how to reach the servers."""

    kafka_port: int
    s3_port: int
    log_dir: Path
    environment: dict[str, str]


def write(content: Section, path: Path) -> None:
    """Write a file atomically, readable by this user only: it may hold a key."""
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(content.model_dump_json(indent=2), encoding="utf-8")
    fresh.replace(path)


def read(kind: type[Content], path: Path) -> Content | None:
    """The file's content; ``None`` where the file is missing or invalid."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None
