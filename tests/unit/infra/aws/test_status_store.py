"""``statuses/REQUEST.json``. Which status is the newest: tests/unit/foldtune/test_status_order.py."""

from datetime import timedelta

from foldtune.events import FineTuneStatus, State, now
from foldtune.object_keys import status_key
from foldtune.status_order import StatusRecord
from foldtune.testing import MemoryObjectStore
from infra.aws.status_store import StatusStore

MOMENT = now()


def record(offset: int, state: State, model: str = "support", seconds: int = 0) -> StatusRecord:
    status = FineTuneStatus(request_id="r-1", model=model, state=state, at=MOMENT + timedelta(seconds=seconds))
    return StatusRecord(partition=0, offset=offset, status=status)


def test_a_redelivered_record_writes_nothing() -> None:
    objects = MemoryObjectStore()
    store = StatusStore(objects)
    for new in (record(1, State.ACCEPTED), record(2, State.RUNNING)):
        store.update(new)
    _, etag = objects.get_with_etag(status_key("r-1"))
    store.update(record(1, State.ACCEPTED))
    store.update(record(2, State.RUNNING))
    assert objects.get_with_etag(status_key("r-1"))[1] == etag
    assert store.newest("r-1") == record(2, State.RUNNING).status


def test_requests_of_two_models_under_one_id_are_both_kept() -> None:
    store = StatusStore(MemoryObjectStore())
    store.update(record(1, State.RUNNING, "support", 5))
    store.update(record(9, State.RUNNING, "sales", 10))
    store.update(record(2, State.COMPLETED, "support", -60))
    newest = store.newest("r-1")
    assert newest
    assert newest.model == "sales"
    assert store.newest("r-1", "support") == record(2, State.COMPLETED, "support", -60).status
    store.update(record(1, State.RUNNING, "support", 5))
    # The request ended before.
    store.update(record(3, State.COMPLETED, "support", 20))
    store.update(record(10, State.RUNNING, "sales", -70))
    assert store.newest("r-1") == record(2, State.COMPLETED, "support", -60).status


def test_an_object_of_the_first_version_is_read() -> None:
    objects = MemoryObjectStore()
    objects.put(status_key("r-1"), record(4, State.RUNNING).model_dump_json(exclude_none=True).encode())
    store = StatusStore(objects)
    assert store.newest("r-1") == record(4, State.RUNNING).status
    store.update(record(3, State.ACCEPTED))
    assert store.newest("r-1") == record(4, State.RUNNING).status


def test_a_write_that_lost_the_race_is_merged_again() -> None:
    class Contended(MemoryObjectStore):
        """Another call writes between the first read and the first write."""

        raced = False

        def put_if_absent(self, key: str, content: bytes) -> bool:
            if not self.raced:
                self.raced = True
                StatusStore(self).update(record(2, State.RUNNING))
            return super().put_if_absent(key, content)

    objects = Contended()
    StatusStore(objects).update(record(1, State.ACCEPTED))
    assert StatusStore(objects).newest("r-1") == record(2, State.RUNNING).status
