"""What topics lose behind a worker's back is counted, told in statuses, and displaces nothing."""

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient, TopicPartition

from foldtune.events import FineTuneStatus, TrainingJob
from foldtune.kafka import Publisher, client_options, partition_of
from foldtune.settings import Settings
from foldtune.topic_admin import create_topics
from foldtune.topics import Topic
from streams.partitions.broker_reader import FETCH_WAIT_MS
from streams.worker.app import changelogs
from tests.integration.conftest import StartWorker
from tests.integration.test_http_server import WITH_HTTP, MonitoredWorker, until
from tests.integration.test_worker import exported, jobs, publish_history, publish_request, snapshot, statuses
from tests.support import ChildProcess, Reader, fine_tune_request


@pytest.fixture
def admin(settings: Settings) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(**client_options(settings.kafka))
    yield client
    client.close()


def requested(settings: Settings, publisher: Publisher, name: str) -> tuple[TrainingJob, FineTuneStatus]:
    """The job of a new request, and the status that tells of it."""
    publish_request(publisher, fine_tune_request(name, model=name))
    with Reader(settings, Topic.TRAINING_JOBS, Topic.FINE_TUNE_STATUS) as reader:
        reader.until(
            lambda records: (
                any(job.request.request_id == name for job in jobs(records))
                and any(status.waiting_for for status in statuses(records, name))
            )
        )
        (job, *_) = [job for job in jobs(reader.records) if job.request.request_id == name]
        return job, next(status for status in statuses(reader.records, name) if status.waiting_for)


def ingested(worker: MonitoredWorker, logs: int) -> None:
    """Wait until a worker has taken in so many logs since its start."""
    until(lambda: worker.value("foldtune_records_total", topic="chat-logs") == logs)


def folders(settings: Settings, job: TrainingJob) -> Counter[str]:
    return Counter(row["folder_id"] for row in exported(settings, snapshot(settings, job), "examples"))


def lines(worker: ChildProcess, event: str) -> list[dict[str, object]]:
    found = [line for line in worker.log.read_text().splitlines() if f'"event": "{event}"' in line]
    return [json.loads(line) for line in found]


def make_anew(settings: Settings, admin: KafkaAdminClient, topic: Topic) -> None:
    name = topic.named(settings.kafka.topic_prefix)
    admin.delete_topics([name])
    until(lambda: name not in admin.list_topics(), 20)
    create_topics(settings.kafka, (topic,))


def test_logs_that_expired_before_they_were_read_are_counted_exactly_and_told_in_the_status(
    settings: Settings, publisher: Publisher, start_worker: StartWorker, admin: KafkaAdminClient
) -> None:
    partition = partition_of("alpha", settings.kafka.partitions)
    logs = TopicPartition(Topic.CHAT_LOGS.named(settings.kafka.topic_prefix), partition)
    monitored = MonitoredWorker(start_worker(**WITH_HTTP))
    publish_history(publisher, "alpha", 25)
    ingested(monitored, 25)
    assert monitored.worker.stop() == 0
    publish_history(publisher, "alpha", 10)
    admin.delete_records({logs: 30})
    monitored = MonitoredWorker(start_worker(**WITH_HTTP))
    name, labels = "foldtune_lost_records_total", {"topic": "chat-logs", "cause": "expired"}
    until(lambda: monitored.value(name, **labels) == 5)
    ingested(monitored, 5)
    # While it runs, but does not read.
    monitored.worker.send(signal.SIGSTOP)
    # A fetch that waits at the broker would bring some of them.
    time.sleep(5 * FETCH_WAIT_MS / 1000)
    publish_history(publisher, "alpha", 10)
    admin.delete_records({logs: 42})
    monitored.worker.send(signal.SIGCONT)
    until(lambda: monitored.value(name, **labels) == 12)
    assert monitored.value(name, topic="documents", cause="expired") == 0
    (_, status) = requested(settings, publisher, "after")
    (warning,) = status.warnings
    assert warning.startswith("chat-logs: 12 records expired before they were read, the last noticed at ")
    assert warning.endswith(f", of partitions {partition}")
    told = [(line["cause"], line["records"], line["level"]) for line in lines(monitored.worker, "records lost")]
    assert told == [("expired", 5, "error"), ("expired", 7, "error")]


def test_a_topic_that_was_made_anew_displaces_nothing_of_its_former_self(
    settings: Settings, publisher: Publisher, start_worker: StartWorker, admin: KafkaAdminClient
) -> None:
    monitored = MonitoredWorker(start_worker(**WITH_HTTP))
    publish_history(publisher, "alpha", 30)
    ingested(monitored, 30)
    # Fewer records than before, while it runs.
    make_anew(settings, admin, Topic.CHAT_LOGS)
    publish_history(publisher, "beta", 20)
    job, status = requested(settings, publisher, "shorter")
    expected = {"alpha": 30, "beta": 20}
    assert len({partition_of(folder, 4) for folder in ("alpha", "beta", "a5")}) == 1
    assert folders(settings, job) == expected
    assert "chat-logs: 30 records that were read are no longer on the topic" in "".join(status.warnings)
    monitored.worker.stop()
    # More than before, while it does not.
    make_anew(settings, admin, Topic.CHAT_LOGS)
    publish_history(publisher, "a5", 60)
    start_worker()
    assert folders(settings, requested(settings, publisher, "longer")[0]) == expected | {"a5": 60}


@pytest.mark.matrix
def test_changelogs_that_were_deleted_under_a_running_worker_get_its_state_again(
    settings: Settings, publisher: Publisher, start_worker: StartWorker, admin: KafkaAdminClient
) -> None:
    monitored = MonitoredWorker(start_worker(**WITH_HTTP))
    publish_history(publisher, "alpha", 30)
    ingested(monitored, 30)
    admin.delete_topics(list(changelogs(settings)))
    until(lambda: not set(admin.list_topics()) & set(changelogs(settings)), 20)
    create_topics(settings.kafka, (), changelogs(settings))
    publish_history(publisher, "beta", 20)
    expected = {"alpha": 30, "beta": 20}
    assert folders(settings, requested(settings, publisher, "after")[0]) == expected
    for table in ("training-sets", "requests"):
        assert (monitored.value("foldtune_restored_changelogs_total", table=table) or 0) > 0
    assert monitored.value("foldtune_foreign_writes_total") == 0
    assert monitored.worker.stop() == 0
    # Has nothing but the changelogs: the topics' beginnings are gone.
    partition = partition_of("alpha", settings.kafka.partitions)
    logs = TopicPartition(Topic.CHAT_LOGS.named(settings.kafka.topic_prefix), partition)
    admin.delete_records({logs: 50})
    heir = start_worker("heir")
    assert folders(settings, requested(settings, publisher, "heir")[0]) == expected
    assert not lines(heir, "records lost")
