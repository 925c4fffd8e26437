"""Main memory that this process may take: in a container, that is not the machine's."""

import sys
from pathlib import Path

import psutil

# Of version 2 of control groups, then of version 1; a container sees its own group's at the root.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def total() -> int:
    """Bytes in all."""
    return min(int(psutil.virtual_memory().total), _limit())


def available() -> int:
    """Bytes that the machine has free, within what the container may have in all."""
    return min(int(psutil.virtual_memory().available), _limit())


def _limit() -> int:
    for path in _LIMITS:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            # Not there, or "max".
            continue
    return sys.maxsize
