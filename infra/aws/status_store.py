"""The newest status of each request as an object, for readers that cannot consume a topic."""

from foldtune.events import FineTuneStatus
from foldtune.object_keys import status_key
from foldtune.object_store import ObjectStore
from foldtune.status_order import StatusRecord, merge_status, select_status


class _StatusObject(StatusRecord):
    """``statuses/REQUEST_ID.json``: the newest record, and those of other models under the same id."""

    others: tuple[StatusRecord, ...] = ()


class StatusStore:
    """Keeps ``statuses/REQUEST_ID.json`` up to date with ``fine-tune-status``, in any order of delivery."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def update(self, record: StatusRecord) -> None:
        """Merge one record of the topic; safe beside concurrent updates (conditional writes)."""
        key = status_key(record.status.request_id)
        while True:
            known, etag = self._read(key)
            newest, *others = merged = merge_status(known, record)
            if merged == known:
                return
            content = _StatusObject(**dict(newest), others=tuple(others)).model_dump_json(exclude_none=True).encode()
            if self._store.put_if_match(key, content, etag) if known else self._store.put_if_absent(key, content):
                return

    def newest(self, request_id: str, model: str | None = None) -> FineTuneStatus | None:
        """The newest status of a request; ``None`` where there is none (yet)."""
        known, _ = self._read(status_key(request_id))
        return select_status(known, model)

    def _read(self, key: str) -> tuple[tuple[StatusRecord, ...], str]:
        version = self._store.find_with_etag(key)
        if version is None:
            return (), ""
        content, etag = version
        known = _StatusObject.model_validate_json(content)
        newest = StatusRecord(partition=known.partition, offset=known.offset, status=known.status)
        return (newest, *known.others), etag
