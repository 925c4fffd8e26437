"""How workers share the partitions: with instance ids and without, as they come and go, and after one was lost."""

import time
from pathlib import Path

import pytest

from tests.integration.conftest import StartWorker
from tests.integration.test_http_server import WITH_HTTP, MonitoredWorker, ready, until
from tests.support import ChildProcess

UNNAMED = WITH_HTTP | {"FOLDTUNE_WORKER__INSTANCE_ID": ""}
PARTITIONS = 4
SHARED_WITHIN_SECONDS = 30


def owned(workers: list[MonitoredWorker]) -> list[int]:
    return sorted(int(worker.value("foldtune_partitions_owned") or 0) for worker in workers)


def expected(count: int) -> list[int]:
    return sorted(PARTITIONS // count + (number < PARTITIONS % count) for number in range(count))


def shared(workers: list[MonitoredWorker]) -> bool:
    return owned(workers) == expected(len(workers)) and all(map(ready, workers))


def assert_stays_shared(workers: list[MonitoredWorker], seconds: float = 8) -> None:
    """Longer than a session: nobody throws anybody out."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert shared(workers)
        time.sleep(0.5)
    assert [worker.value("foldtune_foreign_writes_total") for worker in workers] == [0] * len(workers)


def test_workers_without_instance_id_share_the_partitions_as_they_come(start_worker: StartWorker) -> None:
    workers: list[MonitoredWorker] = []
    for name in ("one", "two", "three"):
        workers.append(MonitoredWorker(start_worker(name, **UNNAMED)))
        until(lambda: shared(workers), SHARED_WITHIN_SECONDS)
    assert_stays_shared(workers)


@pytest.mark.parametrize("named", [{"one", "two", "three"}, {"one", "four"}], ids=["named", "mixed"])
def test_workers_that_start_together_share_the_partitions(start_worker: StartWorker, named: set[str]) -> None:
    names = ["one", "two", "three", "four", "five"][: 3 if len(named) == 3 else 5]
    workers = [MonitoredWorker(start_worker(name, **(WITH_HTTP if name in named else UNNAMED))) for name in names]
    until(lambda: shared(workers), SHARED_WITHIN_SECONDS)
    assert_stays_shared(workers)


def test_a_worker_that_recovers_nothing_for_long_stays_in_its_group(variables: dict[str, str], tmp_path: Path) -> None:
    process = ChildProcess(["worker"], variables | WITH_HTTP, tmp_path / "log", module="tests.integration.idle_worker")
    try:
        worker = MonitoredWorker(process)
        until(lambda: shared([worker]), SHARED_WITHIN_SECONDS)
        assert_stays_shared([worker])
    finally:
        process.kill()
