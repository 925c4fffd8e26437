"""Installations that differ by their topic prefix alone, on the same brokers, bucket and machine."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from foldtune.errors import InvalidSettingsError
from foldtune.kafka import Publisher
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings
from foldtune.topic_admin import create_topics
from foldtune.topics import Topic
from infra.local.stack import LocalServers
from streams.worker.earlier_names import with_earlier_names
from tests.integration.test_worker import exported, jobs, publish_history, publish_request, snapshot
from tests.support import ChildProcess, Reader, environment, fine_tune_request, settings_of

# What their own names follow from.
NAMES = ("FOLDTUNE_WORKER__APP_ID", "FOLDTUNE_S3__PREFIX")


@pytest.fixture
def installations(local_servers: LocalServers, tmp_path: Path) -> Iterator[list[Settings]]:
    """Two, each with a worker; they share the folder for the databases."""
    with ExitStack() as running:
        found = []
        for name in ("one", "two"):
            variables = environment(local_servers, tmp_path)
            variables = {key: value for key, value in variables.items() if key not in NAMES}
            settings = settings_of(variables)
            assert settings.s3.prefix == settings.kafka.topic_prefix
            create_topics(settings.kafka, tuple(Topic))
            worker = ChildProcess(["worker"], variables, tmp_path / f"{name}.log")
            running.callback(worker.kill)
            found.append(settings)
        yield found


def test_installations_with_other_topic_prefixes_never_meet(installations: list[Settings]) -> None:
    counts, found = (25, 30), []
    for settings, count in zip(installations, counts, strict=True):
        with Publisher(settings.kafka) as publisher:
            publish_history(publisher, "alpha", count)
            publish_request(publisher, fine_tune_request("same"))
    for settings in installations:
        with Reader(settings, Topic.TRAINING_JOBS) as reader:
            (job,) = jobs(reader.until(lambda records: bool(jobs(records))))
        found.append((settings, job))
    for (settings, job), count in zip(found, counts, strict=True):
        assert len(exported(settings, snapshot(settings, job), "examples")) == count
        store = S3ObjectStore(settings.s3)
        assert store.key(job.output_uri).startswith("models/")
        assert len([key for key in store.list("snapshots/") if "manifest" in key]) == 1
        # A restart finds them again.
        assert with_earlier_names(settings) == settings


def test_objects_of_an_earlier_release_are_told_from_those_of_others(
    local_servers: LocalServers, tmp_path: Path
) -> None:
    variables = environment(local_servers, tmp_path)
    settings = settings_of({key: value for key, value in variables.items() if key not in NAMES})
    root = S3ObjectStore(settings.s3.model_copy(update={"prefix": ""}))
    root.put("snapshots/of-anybody/manifest.json", b"{}")
    create_topics(settings.kafka, tuple(Topic))
    # Nothing was written to its topics yet.
    assert with_earlier_names(settings) == settings
    with Publisher(settings.kafka) as publisher:
        publish_request(publisher, fine_tune_request("r"))
    with pytest.raises(InvalidSettingsError, match="FOLDTUNE_S3__PREFIX"):
        with_earlier_names(settings)
    S3ObjectStore(settings.s3).put("snapshots/mine/manifest.json", b"{}")
    assert with_earlier_names(settings) == settings
