"""The data folder of a stack: what lies where in it, and that one stack at a time uses it."""

import fcntl
import shutil
from pathlib import Path
from typing import TextIO

from infra.local.errors import DataFolderInUseError, ForeignDataFolderError

MARKER = "foldtune-local.lock"
MARKER_TEXT = "Data of foldtune's local Kafka and S3 servers. Safe to delete while they are stopped.\n"


class DataFolder:
    """Paths below one folder. ``claim`` it before writing there."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.kafka = self.root / "kafka"
        self.s3 = self.root / "s3"
        self.config = self.root / "config"
        self.logs = self.root / "logs"
        self.state = self.config / "state.json"
        self.kafka_record = self.config / "kafka.json"
        self.s3_record = self.config / "s3.json"
        self._marker = self.root / MARKER
        self._lock: TextIO | None = None

    @property
    def server_records(self) -> tuple[Path, Path]:
        """Where it is written down which processes the servers are: Kafka's, S3's."""
        return self.kafka_record, self.s3_record

    def check(self) -> None:
        """Accept a folder that is new, empty or ours, and mark it as ours.

        Raises:
            ForeignDataFolderError: it has content, and none of it is ours.
        """
        if self.root.exists() and not self._marker.exists() and any(self.root.iterdir()):
            raise ForeignDataFolderError(self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        self._marker.write_text(MARKER_TEXT, encoding="utf-8")

    def claim(self) -> None:
        """Make the folder and lock it; the lock goes when this process does, whatever ends it.

        Raises:
            ForeignDataFolderError: it has content, and none of it is ours.
            DataFolderInUseError: another stack has it.
        """
        self.check()
        lock = self._marker.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise DataFolderInUseError(self.root) from error
        self._lock = lock
        for folder in (self.s3, self.config, self.logs):
            folder.mkdir(exist_ok=True)

    @property
    def claimed(self) -> bool:
        """Whether this stack has the folder."""
        return self._lock is not None

    def release(self) -> None:
        """Let another stack have the folder."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def discard(self) -> None:
        """Delete what a stack put here, and the folder where nothing else is in it."""
        for folder in (self.kafka, self.s3, self.config, self.logs):
            shutil.rmtree(folder, ignore_errors=True)
        self._marker.unlink(missing_ok=True)
        if not any(self.root.iterdir()):
            self.root.rmdir()
