"""Thread pools by kind of work: what hangs in one, as an upload may, holds up nothing in another.

asyncio's own pool is left to name look-ups.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

DECODING = ThreadPoolExecutor(os.cpu_count(), "decoding")
MAINTENANCE = ThreadPoolExecutor(2, "maintenance")
# This many exports at a time; those of other partitions wait.
EXPORTS = ThreadPoolExecutor(4, "exports")
# Of a request that a person is looking at: not behind exports whose uploads hang.
PREVIEWS = ThreadPoolExecutor(2, "previews")
# Looks at topics one at a time.
TOPICS = ThreadPoolExecutor(1, "topics")
MANIFESTS = ThreadPoolExecutor(4, "manifests")


async def run_in(pool: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like ``asyncio.to_thread``, in a pool of its own."""
    call = partial(copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(pool, call)
