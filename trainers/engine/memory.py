"""Main memory that this process may use: inside a container, less than the machine has."""

import sys
from pathlib import Path

import psutil

# Control groups version 2, then version 1; a container sees its own group at the root.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def total() -> int:
    """Total memory in bytes, at most the container's limit."""
    return min(int(psutil.virtual_memory().total), _limit())


def available() -> int:
    """Free memory of the machine in bytes, at most the container's limit."""
    return min(int(psutil.virtual_memory().available), _limit())


def _limit() -> int:
    for path in _LIMITS:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            # The file is missing, or holds "max".
            continue
    return sys.maxsize
