"""How workers share the partitions: with instance ids and without, as they come and go, and after one was lost."""

import json
import signal
import time
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove

from foldtune.kafka import client_options
from foldtune.settings import Settings
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


def test_workers_with_and_without_instance_id_share_the_partitions_as_they_come(start_worker: StartWorker) -> None:
    workers: list[MonitoredWorker] = []
    for name, variables in {"one": UNNAMED, "two": UNNAMED, "three": WITH_HTTP}.items():
        workers.append(MonitoredWorker(start_worker(name, **variables)))
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


# ── Lost and fenced members ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_that_was_paused_for_longer_than_its_session_comes_back(start_worker: StartWorker) -> None:
    worker = MonitoredWorker(start_worker("one", **WITH_HTTP))
    until(lambda: shared([worker]), SHARED_WITHIN_SECONDS)
    # A write that is under way may get no answer, and is then found again like one of somebody else.
    until(lambda: worker.worker.log.read_text().count("ended requests read") == PARTITIONS)
    worker.worker.send(signal.SIGSTOP)
    time.sleep(9)
    worker.worker.send(signal.SIGCONT)
    # Until the group tells it, it does not know of its loss.
    until(lambda: worker.value("foldtune_rebalances_total") == 2, 60)
    until(lambda: shared([worker]), 60)
    assert_stays_shared([worker], 3)
    events = [json.loads(line) for line in worker.worker.log.read_text().splitlines()]
    assert "Heartbeat failed: local member_id was not recognized; resetting and re-joining group" in {
        event["event"] for event in events
    }
    assert [event["partitions"] for event in events if event["event"] == "partitions revoked"][-1] == [0, 1, 2, 3]
    assert [event["partitions"] for event in events if event["event"] == "partitions assigned"][-1] == [0, 1, 2, 3]


def test_a_worker_that_was_removed_from_its_group_comes_back(settings: Settings, start_worker: StartWorker) -> None:
    worker = MonitoredWorker(start_worker("one", **UNNAMED))
    until(lambda: shared([worker]), SHARED_WITHIN_SECONDS)
    group = settings.worker.app_id
    admin = KafkaAdminClient(**client_options(settings.kafka))
    (member,) = admin.describe_groups([group])[group]["members"]
    admin.remove_group_members(group, [MemberToRemove(member_id=member["member_id"])])
    admin.close()
    until(lambda: worker.value("foldtune_rebalances_total") == 2, 60)
    until(lambda: shared([worker]), 60)


def test_of_two_workers_with_one_instance_id_the_earlier_ends(start_worker: StartWorker) -> None:
    first = MonitoredWorker(start_worker("one", **WITH_HTTP))
    until(lambda: shared([first]), SHARED_WITHIN_SECONDS)
    second = MonitoredWorker(start_worker("two", **WITH_HTTP | {"FOLDTUNE_WORKER__INSTANCE_ID": "one"}))
    until(lambda: not first.worker.alive, SHARED_WITHIN_SECONDS)
    assert first.worker.stop() == 70
    event = json.loads(first.worker.log.read_text().splitlines()[-1])
    assert event["event"] == "standing still, exiting"
    assert "FencedInstanceIdError" in event["error"]
    until(lambda: shared([second]), SHARED_WITHIN_SECONDS)
