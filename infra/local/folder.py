"""The data folder of a stack: its layout, and a lock so that one stack at a time uses it."""

import fcntl
import shutil
from pathlib import Path
from typing import TextIO

from infra.local.errors import DataFolderInUseError, ForeignFilesError

MARKER = "foldtune-local.lock"
MARKER_TEXT = "Data of foldtune's local Kafka and S3 servers. Safe to delete while they are stopped.\n"


class DataFolder:
    """Paths below one folder. ``claim`` it before writing."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.kafka = self.root / "kafka"
        self.s3 = self.root / "s3"
        self.config = self.root / "config"
        self.logs = self.root / "logs"
        self.state = self.config / "state.json"
        self.kafka_pid_file = self.config / "kafka.json"
        self.s3_pid_file = self.config / "s3.json"
        self._marker = self.root / MARKER
        self._lock: TextIO | None = None

    @property
    def server_pid_files(self) -> tuple[Path, Path]:
        """Kafka's and S3's."""
        return self.kafka_pid_file, self.s3_pid_file

    def check(self) -> None:
        """Accept a folder that is new, empty or already marked, and mark it.

        Raises:
            ForeignFilesError: it is not empty and has no mark.
        """
        if self.root.exists() and not self._marker.exists() and any(self.root.iterdir()):
            raise ForeignFilesError(self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        self._marker.write_text(MARKER_TEXT, encoding="utf-8")

    def claim(self) -> None:
        """Create and lock the folder; the operating system releases the lock when this process ends, however it does.

        Raises:
            ForeignFilesError: it is not empty and has no mark.
            DataFolderInUseError: another stack holds the lock.
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
        """Whether this stack holds the lock."""
        return self._lock is not None

    def release(self) -> None:
        """Release the lock."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def discard(self) -> None:
        """Delete a stack's files, and the folder if nothing else is in it."""
        for folder in (self.kafka, self.s3, self.config, self.logs):
            shutil.rmtree(folder, ignore_errors=True)
        self._marker.unlink(missing_ok=True)
        if not any(self.root.iterdir()):
            self.root.rmdir()
