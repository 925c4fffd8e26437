"""A run's output: a file on this machine, copied to the object store while it grows."""

import json
from pathlib import Path

import structlog

from foldtune.errors import ObjectStoreError
from foldtune.excerpts import excerpt
from foldtune.object_keys import attempt_key
from foldtune.object_store import ObjectStore
from launchers.periodic import Periodic
from launchers.port import Run

log = structlog.get_logger(__name__)

# Often enough to follow a training, seldom enough not to matter on the bill.
UPLOAD_SECONDS = 30.0
_TAIL_BYTES = 64 * 1024


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

    def last_error(self) -> str | None:
        """What the trainer's last error line says; ``None`` if its log has none near the end."""
        with self._path.open("rb") as file:
            file.seek(max(0, self._path.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        for line in reversed(lines):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and record.get("level") == "error" and record.get("error"):
                return excerpt(str(record["error"]))
        return None

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
