"""Has a process of the trainers mine for the questions of previews, one after the other, and keeps what it found.

Each replica by itself, in memory: what is asked of another one, or after a restart, is not found.
"""

import asyncio
import os
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec

import structlog
from pydantic import ValidationError

from api.schemas import MinedAnswer, MinedPreview
from foldtune.errors import InvalidSettingsError

_log = structlog.get_logger(__name__)

COMMAND = (sys.executable, "-m", "trainers.preview")
_MAX_SECONDS = 120.0
_MAX_WAITING, _MAX_KEPT = 4, 50
BY_TRAINING = (
    "A training searches all documents for further hard negatives where fewer than dataset.hard_negatives were shown; "
    "these are found by the model that it starts from, and are not in a preview."
)
# Finds what to search, and says it in the words of ``trainers.preview``.
Prepare = Callable[[], Awaitable[bytes]]


@dataclass
class Mining:
    """What becomes of a preview, and who may read it."""

    model: str
    folders: tuple[str, ...] | None
    told: MinedPreview = field(default_factory=lambda: MinedPreview(state="pending"))
    # Digest of what is searched for.
    asked: bytes = b""


class Miner:
    """Mines for previews where the settings say so."""

    def __init__(self, *, enabled: bool, command: Sequence[str] = COMMAND) -> None:
        """Raises ``InvalidSettingsError`` where the trainers' packages are missing."""
        if enabled and find_spec("torch") is None:
            reason = "api.mine_previews needs the packages of the trainers: install foldtune-server[api,trainers]"
            raise InvalidSettingsError(reason)
        self.enabled = enabled
        self._command = command
        self._minings: OrderedDict[str, Mining] = OrderedDict()
        self._one = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(
        self, preview_id: str, model: str, folders: tuple[str, ...] | None, prepare: Prepare, asked: bytes
    ) -> MinedPreview:
        """Begin to mine, unless the same was ``asked`` before, as by a preview with more epochs; what to tell now."""
        alike = (known for known in self._minings.values() if known.asked == asked and known.told.state != "failed")
        if (known := next(alike, None)) is not None:
            self._keep(preview_id, known)
            return known.told
        if len(self._tasks) >= _MAX_WAITING:
            reason = f"{_MAX_WAITING} other previews are being searched: ask again"
            return MinedPreview(state="failed", reason=reason)
        mining = Mining(model, folders, asked=asked)
        self._keep(preview_id, mining)
        task = asyncio.create_task(self._mine(mining, prepare))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return mining.told

    def _keep(self, preview_id: str, mining: Mining) -> None:
        self._minings[preview_id] = mining
        while len(self._minings) > _MAX_KEPT:
            self._minings.popitem(last=False)

    def get(self, preview_id: str) -> Mining | None:
        """What has become of a preview, if it was begun here and is among the last."""
        return self._minings.get(preview_id)

    async def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _mine(self, mining: Mining, prepare: Prepare) -> None:
        try:
            async with self._one, asyncio.timeout(_MAX_SECONDS):
                answer = MinedAnswer.model_validate_json(await self._run(await prepare()))
        except TimeoutError:
            mining.told = MinedPreview(state="failed", reason=f"not found within {_MAX_SECONDS:.0f} s")
        except ValidationError:
            mining.told = MinedPreview(state="failed", reason="the process that searches has failed; its log says why")
        except Exception:
            _log.exception("preview not mined")
            mining.told = MinedPreview(state="failed", reason="not available at the moment")
        else:
            mining.told = MinedPreview(
                state="failed" if answer.error else "ready",
                reason=answer.error,
                documents=answer.documents,
                examples=answer.examples,
            )

    async def _run(self, asked: bytes) -> bytes:
        # It dies with this process, however that ends.
        wrapper = (sys.executable, "-m", "launchers.local.die_with_parent", str(os.getpid()))
        process = await asyncio.create_subprocess_exec(
            *wrapper,
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        try:
            answer, _ = await process.communicate(asked)
            return answer
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
