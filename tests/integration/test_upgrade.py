"""An upgrade by a new app id, as docs/operations.md describes it, under traffic: old and new workers side by side."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from kafka import KafkaAdminClient

from foldtune.events import FineTuneCancelled, FineTuneStatus, State, TrainingJob, now
from foldtune.kafka import Publisher, client_options
from foldtune.knobs import DataSelection
from foldtune.settings import Settings
from foldtune.topics import Topic
from streams.worker.app import changelogs
from tests.integration.conftest import StartWorker
from tests.integration.test_group_membership import SHARED_WITHIN_SECONDS, shared
from tests.integration.test_http_server import WITH_HTTP, MonitoredWorker, until
from tests.integration.test_worker import (
    FOLDERS,
    ended,
    exported,
    jobs,
    publish_history,
    publish_request,
    snapshot,
    statuses,
)
from tests.support import Reader, fine_tune_request, folder_history


@contextmanager
def traffic(settings: Settings) -> Iterator[None]:
    """Documents and logs of all folders, again and again with other ids, until the context ends."""
    stopped = threading.Event()
    failures: list[BaseException] = []

    def publish() -> None:
        try:
            with Publisher(settings.kafka) as publisher:
                for number in range(10_000):
                    folder = f"{FOLDERS[number % len(FOLDERS)]} {number}"
                    for topic, event in folder_history(folder, 4):
                        publisher.send(topic, event, key=folder)
                    if stopped.wait(0.1):
                        break
                publisher.flush()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
    assert not failures


def lag(worker: MonitoredWorker) -> float:
    found = [value for (name, _), value in worker.samples().items() if name == "foldtune_lag_records"]
    return sum(found) if found else 1


def rows(settings: Settings, job: TrainingJob, kind: str) -> list[str]:
    return sorted(repr(sorted(row.items())) for row in exported(settings, snapshot(settings, job), kind))


class Requests:
    """Publishes requests, and is their launcher and trainer."""

    def __init__(self, reader: Reader, publisher: Publisher) -> None:
        self._reader = reader
        self._publisher = publisher
        self.names: list[str] = []

    def publish(self, name: str, **changes: Any) -> None:
        self.names.append(name)
        publish_request(self._publisher, fine_tune_request(name, model=f"model-of-{name}", **changes))

    def job(self, name: str) -> TrainingJob:
        """The job of a request, once it is there."""

        def found(records: list[Any]) -> list[TrainingJob]:
            return [job for job in jobs(records) if job.request.request_id == name]

        return found(self._reader.until(lambda records: bool(found(records)) or ended(name)(records)))[0]

    def complete(self, name: str) -> TrainingJob:
        job = self.job(name)
        done = FineTuneStatus(request_id=name, model=job.request.model, state=State.COMPLETED, at=now())
        key = f"{job.request.model}/{name}"
        self._publisher.publish(Topic.TRAINING_REPORTS, done, key=key, partition_by=job.request.model)
        self._reader.until(ended(name))
        return job

    def cancel(self, name: str) -> None:
        cancel = FineTuneCancelled(request_id=name, model=f"model-of-{name}", requested_at=now())
        publish_request(self._publisher, cancel)
        self._reader.until(ended(name))


@pytest.mark.matrix
def test_an_upgrade_by_a_new_app_id_ends_each_request_once_and_keeps_every_row(
    settings: Settings, publisher: Publisher, start_worker: StartWorker
) -> None:
    new = WITH_HTTP | {"FOLDTUNE_WORKER__APP_ID": f"{settings.worker.app_id}-next"}
    waiting = new | {"FOLDTUNE_WORKER__HANDLE_REQUESTS": "false"}
    names = ("new-1", "new-2")
    with Reader(settings, Topic.TRAINING_JOBS, Topic.FINE_TUNE_STATUS) as reader:
        requests = Requests(reader, publisher)
        with traffic(settings):
            old = [MonitoredWorker(start_worker(name, **WITH_HTTP)) for name in ("old-1", "old-2")]
            until(lambda: shared(old), SHARED_WITHIN_SECONDS)
            publish_history(publisher, "alpha", 25)
            requests.publish("rejected", data=DataSelection(folders=("nowhere",)))
            reader.until(ended("rejected"))
            requests.publish("cancelled")
            requests.cancel("cancelled")
            requests.publish("before")
            requests.complete("before")
            beside = [MonitoredWorker(start_worker(name, **waiting)) for name in names]
            until(lambda: shared(beside), SHARED_WITHIN_SECONDS)
            # The old ones take it, and the new ones nothing.
            requests.publish("beside")
            requests.complete("beside")
        requests.publish("sets-of-the-old")
        of_old = requests.complete("sets-of-the-old")
        until(lambda: not any(map(lag, beside)))
        assert all(ended(name)(reader.records) for name in requests.names)
        for worker in old:
            assert worker.worker.stop() == 0
        told = {name: len(statuses(reader.records, name)) for name in requests.names}
        # Nobody handles it now.
        requests.publish("between")
        for worker in beside:
            assert worker.worker.stop() == 0
        with closing(KafkaAdminClient(**client_options(settings.kafka))) as admin:
            admin.delete_topics(list(changelogs(settings)))
        upgraded = [MonitoredWorker(start_worker(name, **new)) for name in names]
        until(lambda: shared(upgraded), SHARED_WITHIN_SECONDS)
        requests.complete("between")
        requests.publish("sets-of-the-new")
        of_new = requests.complete("sets-of-the-new")
        # Each is read again, and answered with its end.
        reader.until(lambda records: all(len(statuses(records, name)) > told[name] for name in told))
    for kind in ("examples", "documents"):
        assert rows(settings, of_new, kind) == rows(settings, of_old, kind)
        assert len(rows(settings, of_new, kind)) > 0
    for job in jobs(reader.records):
        # Nobody has overwritten what it names.
        snapshot(settings, job)
    trained = Counter(job.request.request_id for job in jobs(reader.records))
    assert trained - Counter({"cancelled": 1}) == Counter(set(requests.names) - {"rejected", "cancelled"})
    wanted = {"rejected": State.REJECTED, "cancelled": State.CANCELLED}
    for name in requests.names:
        (end,) = {status for status in statuses(reader.records, name) if status.state.terminal}
        assert end.state is wanted.get(name, State.COMPLETED)
