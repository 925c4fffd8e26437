"""Checkpoints on the object store, from which an interrupted job resumes.

Tensors are stored as safetensors, everything else as JSON in its header; nothing is ever unpickled.
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
from foldtune.object_keys import CHECKPOINT, checkpoint_key
from foldtune.object_store import ObjectStore
from trainers.errors import InterruptedTrainingError

log = structlog.get_logger()

# Raise it with every change to the training or to the form of its state: older checkpoints are then ignored.
CHECKPOINT_VERSION = 6


@dataclass(frozen=True)
class TrainingState:
    """``tensors`` by name, and JSON-serializable ``facts``."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoint of one job: due every ``interval``, and when the process receives SIGTERM."""

    def __init__(
        self,
        job: TrainingJob,
        store: ObjectStore,
        interval: timedelta,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._key = checkpoint_key(job.request.model, job.request.request_id, job.version)
        # A job with the same key but another request, snapshot or base model is another training.
        version = f"{CHECKPOINT_VERSION}{job.model_dump_json(exclude={'warnings'})}"
        self._fingerprint = hashlib.sha256(version.encode()).hexdigest()
        self._interval, self._clock = interval.total_seconds(), clock
        self._due_at = clock() + self._interval
        self._received_signal: str | None = None

    @property
    def due(self) -> bool:
        """Whether it is time to save: the interval has passed, or the process received SIGTERM."""
        return self._received_signal is not None or self._clock() >= self._due_at

    def load(self) -> TrainingState | None:
        """The saved state; None if there is none, or it is unreadable or of another training."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / CHECKPOINT
            try:
                self._store.get_file(self._key, path)
                with safe_open(path, framework="pt") as file:
                    header = file.metadata() or {}
                state = TrainingState(load_file(path), json.loads(header["facts"]))
            except ObjectMissingError:
                return None
            except (SafetensorError, ValueError, KeyError) as error:
                log.warning("checkpoint unreadable, ignored", key=self._key, error=str(error))
                return None
        if header["fingerprint"] != self._fingerprint:
            log.warning("checkpoint of another training, ignored", key=self._key)
            return None
        return state

    def save(self, state: TrainingState) -> None:
        """Replace the checkpoint.

        Raises:
            InterruptedTrainingError: the process received SIGTERM; the state is saved.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / CHECKPOINT
            save_file(tensors, path, {"facts": json.dumps(state.facts), "fingerprint": self._fingerprint})
            self._store.put_file(self._key, path)
        self._due_at = self._clock() + self._interval
        if self._received_signal:
            raise InterruptedTrainingError(self._received_signal)

    def discard(self) -> None:
        """Delete the checkpoint of a job that is done."""
        self._store.delete(self._key)

    @contextmanager
    def sigterm_deferred(self) -> Iterator[None]:
        """Inside, SIGTERM only makes a checkpoint due; the next ``save`` ends the training."""
        before = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _on_signal(self, number: int, _: object) -> None:
        self._received_signal = signal.Signals(number).name
