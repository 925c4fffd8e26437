"""A run's output: a file on this machine, copied to the object store while it grows."""

from pathlib import Path

import structlog

from foldtune.errors import ObjectStoreError
from foldtune.object_keys import attempt_key
from foldtune.object_store import ObjectStore
from launchers.periodic import Periodic
from launchers.port import Run

log = structlog.get_logger(__name__)

# Often enough to follow a training, seldom enough not to matter on the bill.
UPLOAD_SECONDS = 30.0


class LogFile:
    """Opened when the run starts and closed when it has ended."""

    def __init__(self, folder: Path, store: ObjectStore, run: Run) -> None:
        request = run.job.request
        self._ids = {"request_id": request.request_id, "run": run.name}
        self._path = folder / f"{run.name}.log"
        self._store = store
        self._key = attempt_key(request.model, request.request_id, run.attempt, "log")
        self.file = self._path.open("ab")
        self._uploads = Periodic(self._upload, UPLOAD_SECONDS, name="upload log", **self._ids)

    def close(self) -> str | None:
        """Upload the whole file; its URI, or ``None`` where that failed: a log is not worth an outcome."""
        self._uploads.stop()
        self.file.close()
        try:
            self._upload()
        except ObjectStoreError as error:
            log.warning("log not uploaded", **self._ids, path=str(self._path), error=str(error))
            return None
        return self._store.uri(self._key)

    def _upload(self) -> None:
        self._store.put_file(self._key, self._path)
