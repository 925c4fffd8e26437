"""Notes on disk of which process is which, so that a later process can find it, and never takes another for it."""

import os
from pathlib import Path
from typing import Self, TypeVar

import psutil
from pydantic import ValidationError

from foldtune.settings import Section

Record = TypeVar("Record", bound=Section)

# The start time is derived from the clock's boot time, which may be corrected by a little while the process runs.
START_TOLERANCE_SECONDS = 2.0


class ProcessRecord(Section):
    """A process by its pid and the moment it started (seconds since the epoch): pids alone are used again."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Self:
        """The record of a running process.

        Raises:
            psutil.NoSuchProcess: there is none.
        """
        return cls(pid=pid, started=psutil.Process(pid).create_time())

    @classmethod
    def here(cls) -> Self:
        """The record of this process."""
        return cls.of(os.getpid())

    def process(self) -> psutil.Process | None:
        """That process where it still runs; nothing where the pid belongs to another one by now."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) <= START_TOLERANCE_SECONDS
            running = same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if running else None

    def end(self, seconds: float) -> bool:
        """Ask that process to end, and make it where it takes longer than ``seconds``; whether there was one."""
        process = self.process()
        if process is None:
            return False
        process.terminate()
        try:
            process.wait(seconds)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(seconds)
        return True


class LocalState(ProcessRecord):
    """What a running stack tells about itself: its owner (the process above), and how to reach the servers."""

    kafka_port: int
    s3_port: int
    log_dir: Path
    environment: dict[str, str]


def write(record: Section, path: Path) -> None:
    """Write a record, whole or not at all, readable by this user only: it may hold a key."""
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(record.model_dump_json(indent=2), encoding="utf-8")
    fresh.replace(path)


def read(kind: type[Record], path: Path) -> Record | None:
    """The record in the file; nothing where there is no file, or it is not such a record."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None
