"""The newest status of each request as an object, for readers that cannot follow a topic."""

from foldtune.errors import ObjectMissingError
from foldtune.events import FineTuneStatus, Model
from foldtune.object_keys import status_key
from foldtune.object_store import ObjectStore


class _Kept(Model):
    partition: int
    offset: int
    status: FineTuneStatus


class StatusObjects:
    """Keeps ``statuses/REQUEST.json`` up with ``fine-tune-status``, whatever is delivered again or late."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def keep(self, status: FineTuneStatus, partition: int, offset: int) -> None:
        """Take in one event of the topic."""
        key = status_key(status.request_id)
        while True:
            before, tag = self._read(key)
            if before and not _newer(status, partition, offset, before):
                return
            if before and status.log_url is None:
                # Only the launcher knows the page, and the trainer has the later words.
                status = status.model_copy(update={"log_url": before.status.log_url})
            kept = _Kept(partition=partition, offset=offset, status=status).model_dump_json(exclude_none=True).encode()
            if self._store.put_if_match(key, kept, tag) if before else self._store.put_if_absent(key, kept):
                return

    def newest(self, request_id: str) -> FineTuneStatus | None:
        """What has become of a request so far; ``None`` where nothing is known of it (yet)."""
        kept, _ = self._read(status_key(request_id))
        return kept.status if kept else None

    def _read(self, key: str) -> tuple[_Kept | None, str]:
        try:
            content, tag = self._store.get_with_etag(key)
        except ObjectMissingError:
            return None, ""
        return _Kept.model_validate_json(content), tag


def _newer(status: FineTuneStatus, partition: int, offset: int, before: _Kept) -> bool:
    if partition == before.partition:
        return offset > before.offset
    # Two models may be asked for under one id; then the clock must do.
    return status.at > before.status.at
