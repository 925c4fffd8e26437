"""Checkpoints on the object store, from which an interrupted job resumes.

Tensors are stored as safetensors, everything else as JSON in its header; nothing is ever unpickled.
"""

import hashlib
import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from foldtune.errors import TRANSIENT_ERRORS, ObjectMissingError, ObjectStoreRefusedError
from foldtune.events import TrainingJob
from foldtune.object_keys import CHECKPOINT, checkpoint_key
from foldtune.object_store import ObjectStore
from trainers.errors import InterruptedTrainingError

log = structlog.get_logger()

# Raise it with every change to the training or to the form of its state: older checkpoints are then ignored.
CHECKPOINT_VERSION = 6
# How long a training waits for the upload of a checkpoint, which then goes on in the background; and after SIGTERM,
# from the signal on: the process has to be gone soon (``trainers.job.END_SECONDS``).
UPLOAD_SECONDS = 60.0
SIGTERM_UPLOAD_SECONDS = 20.0


@dataclass(frozen=True)
class TrainingState:
    """``tensors`` by name, and JSON-serializable ``facts``."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoint of one job: due every ``interval``, and when the process receives SIGTERM.

    One that cannot be written is reported once through ``warn``, and does not end the training.
    """

    def __init__(
        self,
        job: TrainingJob,
        store: ObjectStore,
        interval: timedelta,
        warn: Callable[[str], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        *,
        weights_sha256: str | None = None,
    ) -> None:
        """``weights_sha256`` is the digest of the weights that the training starts from."""
        self._store, self._warn = store, warn
        self._key = checkpoint_key(job.request.model, job.request.request_id, job.version)
        # A job with the same key but another request, snapshot or start is another training.
        version = f"{CHECKPOINT_VERSION}{job.model_dump_json(exclude={'warnings'})}{weights_sha256 or ''}"
        self._fingerprint = hashlib.sha256(version.encode()).hexdigest()
        self._interval, self._clock = interval.total_seconds(), clock
        self._due_at = clock() + self._interval
        self._received_signal: str | None = None
        self._signalled_at = 0.0
        self._upload: Future[None] | None = None

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
            except (SafetensorError, ValueError, KeyError, ObjectStoreRefusedError) as error:
                log.warning("checkpoint unreadable, ignored", key=self._key, error=str(error))
                return None
        if header["fingerprint"] != self._fingerprint:
            log.warning("checkpoint of another training, ignored", key=self._key)
            return None
        return state

    def save(self, state: TrainingState) -> None:
        """Replace the checkpoint.

        Raises:
            InterruptedTrainingError: the process received SIGTERM; the state is saved, if the store allowed it in time.
        """
        try:
            self._write(state)
        except (*TRANSIENT_ERRORS, OSError, SafetensorError) as error:
            log.warning("checkpoint not written", key=self._key, error=str(error))
            self._warn_once(f"a checkpoint could not be written, an interruption would lose what came since: {error}")
        self._due_at = self._clock() + self._interval
        self._raise_if_interrupted()

    def discard(self) -> None:
        """Delete the checkpoint of a job that is done."""
        try:
            self._store.delete(self._key)
        except TRANSIENT_ERRORS as error:
            log.warning("checkpoint not deleted", key=self._key, error=str(error))

    def _write(self, state: TrainingState) -> None:
        # One at a time: an older one that comes through late must not replace a newer one.
        if self._upload and not self._upload.done():
            if not self._received_signal:
                raise TimeoutError("the upload of the last one is not done yet")
            self._wait(self._upload)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
        folder = tempfile.TemporaryDirectory()
        try:
            path = Path(folder.name) / CHECKPOINT
            save_file(tensors, path, {"facts": json.dumps(state.facts), "fingerprint": self._fingerprint})
        except BaseException:
            folder.cleanup()
            raise
        self._upload = Future()
        threading.Thread(target=self._put, args=(folder, path, self._upload), daemon=True).start()
        self._wait(self._upload)

    def _put(self, folder: tempfile.TemporaryDirectory[str], path: Path, upload: Future[None]) -> None:
        with folder:
            try:
                self._store.put_file(self._key, path)
            # For the thread that waits.
            except BaseException as error:
                upload.set_exception(error)
            else:
                upload.set_result(None)

    def _wait(self, upload: Future[None]) -> None:
        """Wait for an upload and raise what it has raised; ``TimeoutError`` if it takes too long."""
        began = self._clock()
        while True:
            try:
                return upload.result(timeout=0.1)
            except TimeoutError:
                if upload.done():
                    raise
            # SIGTERM may arrive while this waits.
            seconds = SIGTERM_UPLOAD_SECONDS if self._received_signal else UPLOAD_SECONDS
            if self._clock() > (self._signalled_at if self._received_signal else began) + seconds:
                msg = f"the upload took longer than {seconds:g} seconds"
                raise TimeoutError(msg)

    def _warn_once(self, warning: str) -> None:
        self._warn(warning)
        self._warn = lambda _: None

    @contextmanager
    def sigterm_deferred(self) -> Iterator[None]:
        """Inside, SIGTERM only makes a checkpoint due; the next ``save``, or the end, ends the training.

        Raises:
            InterruptedTrainingError: the process received SIGTERM after the last ``save``.
        """
        before = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
        self._raise_if_interrupted()

    def _on_signal(self, number: int, _: object) -> None:
        self._signalled_at = self._clock()
        self._received_signal = signal.Signals(number).name

    def _raise_if_interrupted(self) -> None:
        if self._received_signal:
            raise InterruptedTrainingError(self._received_signal)
