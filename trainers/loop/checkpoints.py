"""A training's state between two steps, kept on the object store: a job that was taken away goes on from there.

Tensors as safetensors, everything else as JSON in its header; nothing is ever unpickled.
"""

import hashlib
import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from foldtune.errors import ObjectMissingError
from foldtune.events import TrainingJob
from foldtune.object_keys import checkpoint_key
from foldtune.object_store import ObjectStore
from trainers.errors import InterruptedTrainingError

log = structlog.get_logger()

_STATE = "state.safetensors"
# Raised with every change to what a training does or keeps: a state of the former way is of no use to it.
_WAY = 5


@dataclass(frozen=True)
class State:
    """``tensors`` by name, and ``facts`` that JSON can say."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]


class Checkpoints:
    """Of one job: kept each ``interval``, and before the process ends on SIGTERM."""

    def __init__(
        self,
        job: TrainingJob,
        store: ObjectStore,
        interval: timedelta,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._key = checkpoint_key(job.request.model, job.request.request_id, job.version)
        # Another request, snapshot or base model under the same names is another training.
        self._fingerprint = hashlib.sha256(f"{_WAY}{job.model_dump_json(exclude={'warnings'})}".encode()).hexdigest()
        self._interval, self._clock = interval.total_seconds(), clock
        self._due = clock() + self._interval
        self._asked: str | None = None

    def load(self) -> State | None:
        """Where the job was; ``None`` for one that begins. What cannot be read counts as not there."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / _STATE
            try:
                self._store.get_file(self._key, path)
                with safe_open(path, framework="pt") as file:
                    facts = file.metadata() or {}
                state = State(load_file(path), json.loads(facts["facts"]))
            except ObjectMissingError:
                return None
            except (SafetensorError, ValueError, KeyError) as error:
                log.warning("checkpoint not read", key=self._key, reason=str(error))
                return None
        if facts["fingerprint"] != self._fingerprint:
            log.warning("checkpoint is of another training", key=self._key)
            return None
        return state

    def discard(self) -> None:
        """The job has ended."""
        self._store.delete(self._key)

    def stepped(self, state: Callable[[], State]) -> None:
        """Keep the state where it is time to.

        Raises:
            InterruptedTrainingError: the process was asked to end; the state is kept.
        """
        if self._asked is None and self._clock() < self._due:
            return
        self._keep(state())
        self._due = self._clock() + self._interval
        if self._asked:
            raise InterruptedTrainingError(self._asked)

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Inside, SIGTERM waits for the end of a step."""
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _keep(self, state: State) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / _STATE
            save_file(tensors, path, {"facts": json.dumps(state.facts), "fingerprint": self._fingerprint})
            self._store.put_file(self._key, path)

    def _ask(self, number: int, _: object) -> None:
        self._asked = signal.Signals(number).name
