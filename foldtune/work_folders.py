"""Folders for a process's temporary files, which hold texts: the next process removes those of one that was killed.

Linux and macOS only; the SDK does not need it.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

_LOCK = ".lock"


@contextmanager
def work_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder, removed at the end; those with the prefix that no process uses any more are removed first."""
    parent.mkdir(parents=True, exist_ok=True)
    # A folder must not be seen before it is locked.
    with _locked(parent / _LOCK):
        _remove_abandoned(parent, prefix)
        folder = TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True)
        lock = _locked(Path(folder.name) / _LOCK)
    with folder, lock:
        yield Path(folder.name)


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the folders with the prefix that no process uses any more."""
    if parent.is_dir():
        with _locked(parent / _LOCK):
            _remove_abandoned(parent, prefix)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        # In use, or just removed.
        with suppress(OSError), _locked(folder / _LOCK, fcntl.LOCK_NB):
            shutil.rmtree(folder, ignore_errors=True)


def _locked(path: Path, flags: int = 0) -> IO[bytes]:
    """The file, locked until it is closed; a child process does not inherit it."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | flags)
    except BaseException:
        file.close()
        raise
    return file
