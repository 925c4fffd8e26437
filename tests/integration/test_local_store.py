"""A worker whose local databases are not of its changelogs, or damaged, recovers from the changelog."""

import shutil
import time
from pathlib import Path
from uuid import uuid4

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from foldtune.kafka import Publisher, client_options, consumer
from foldtune.settings import Settings
from foldtune.topics import Topic
from streams.worker.app import changelogs
from tests.integration.conftest import StartWorker
from tests.integration.test_worker import exported, jobs, publish_history, publish_request, snapshot
from tests.support import ChildProcess, Reader, fine_tune_request


def examples(settings: Settings, publisher: Publisher, name: str) -> int:
    """The number of examples of a snapshot that is requested now."""
    # One model for each request: requests of one model wait for each other.
    publish_request(publisher, fine_tune_request(name, model=name))
    with Reader(settings, Topic.TRAINING_JOBS) as reader:
        found = reader.until(lambda records: name in {job.request.model for job in jobs(records)})
    (job,) = [job for job in jobs(found) if job.request.model == name]
    return len(exported(settings, snapshot(settings, job), "examples"))


def delete_changelogs(settings: Settings) -> None:
    admin = KafkaAdminClient(**client_options(settings.kafka))
    admin.delete_topics(list(changelogs(settings)))
    admin.close()


def delete_beginning(settings: Settings, changelog: str) -> int:
    """Delete all but the last record of each partition; the number of partitions that this changes."""
    with consumer(settings.kafka) as client:
        ends = client.end_offsets([TopicPartition(changelog, number) for number in range(settings.kafka.partitions)])
    admin = KafkaAdminClient(**client_options(settings.kafka))
    offsets = {partition: end - 1 for partition, end in ends.items() if end > 1}
    # Brokers refuse it of a topic that is compacted only.
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, changelog, {"cleanup.policy": "compact,delete"})])
    admin.delete_records(offsets)
    admin.close()
    return len(offsets)


def said(worker: ChildProcess, event: str) -> int:
    return worker.log.read_text().count(event)


@pytest.mark.matrix
def test_stores_that_are_not_of_the_changelogs_or_damaged_are_rebuilt(
    settings: Settings, publisher: Publisher, start_worker: StartWorker, tmp_path: Path
) -> None:
    publish_history(publisher, "alpha", 25)
    worker = start_worker()
    assert examples(settings, publisher, "first") == 25
    worker.stop()

    # A file of a database is cut.
    (database,) = [path.parent for path in (tmp_path / "one").rglob("training-sets-*.db/*.sst") if path.stat().st_size][
        :1
    ]
    for file in database.glob("*.sst"):
        file.write_bytes(file.read_bytes()[:-20])
    worker = start_worker()
    assert examples(settings, publisher, "damaged") == 25
    worker.stop()
    assert said(worker, '"store removed, recovering from the changelog"') == 1

    # The changelogs are deleted. Their topics are made anew, and the state from the inputs.
    delete_changelogs(settings)
    worker = start_worker()
    assert examples(settings, publisher, "changelogs-deleted") == 25
    worker.stop()
    assert said(worker, "of changelogs that were deleted") == 1

    # The same once more, with brokers that tell no ids.
    (changelogs_file,) = (tmp_path / "one").rglob("changelogs.json")
    changelogs_file.write_text("{}")
    delete_changelogs(settings)
    worker = start_worker()
    assert examples(settings, publisher, "ahead") == 25
    worker.stop()
    assert said(worker, '"reason": "ahead"') >= 1

    # Another app id, with the same volume.
    app_id = f"t{uuid4().hex[:8]}"
    worker = start_worker(FOLDTUNE_WORKER__APP_ID=app_id)
    assert examples(settings, publisher, "other-app-id") == 25
    worker.stop()
    assert said(worker, "of another app id") == 1
    assert len(list((tmp_path / "one").glob("app-*"))) == 1
    assert said(worker, "ConsistencyError") == 0
    assert said(worker, '"changelog has lost its beginning"') == 0

    # The beginning of a changelog is deleted, and the volume.
    lost = delete_beginning(settings, f"{app_id}-training-sets-changelog")
    shutil.rmtree(tmp_path / "one")
    worker = start_worker(FOLDTUNE_WORKER__APP_ID=app_id)
    deadline = time.monotonic() + 60
    while said(worker, '"changelog has lost its beginning"') < lost and time.monotonic() < deadline:
        time.sleep(0.2)
    worker.stop()
    assert said(worker, '"changelog has lost its beginning"') == lost > 0
