"""One job has one model, and one model one newest version, however many trainers there are."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from foldtune.client.deployment import fetch_model
from foldtune.errors import ObjectStoreError
from foldtune.events import ModelReady, State, TrainingJob
from foldtune.testing import MemoryObjectStore
from tests.jobs import RecordingEventSink, published_prefix, put_job
from tests.support import model_ready
from tests.unit.trainers.conftest import example, make_tables
from trainers.errors import ImpossibleJobError
from trainers.publishing.model_publisher import LatestModel, announce_model, is_published, latest_model, publish_model
from trainers.publishing.reporting import Reporter


class InterferingStore(MemoryObjectStore):
    """Calls ``before`` once, before the write whose key ends with ``name``."""

    def __init__(self, name: str, before: Callable[[], object]) -> None:
        super().__init__()
        self._name, self._before = name, before

    def _interfere(self, key: str) -> None:
        if key.endswith(self._name):
            before, self._before = self._before, lambda: None
            before()

    def put_if_absent(self, key: str, content: bytes) -> bool:
        self._interfere(key)
        return super().put_if_absent(key, content)

    def put_if_match(self, key: str, content: bytes, etag: str) -> bool:
        self._interfere(key)
        return super().put_if_match(key, content, etag)


def job_of(store: MemoryObjectStore, version: str = "000001") -> TrainingJob:
    return put_job(store, make_tables([example("where is it?", "d")], {"d": "here"}), version=version)


def publish(store: MemoryObjectStore, folder: Path, content: str, version: str = "000001") -> RecordingEventSink:
    """What a trainer of the job does whose training came to ``content``."""
    job, sink = job_of(store, version), RecordingEventSink()
    mine = folder / content
    mine.mkdir(parents=True, exist_ok=True)
    (mine / "model.safetensors").write_text(content)
    ready = model_ready(
        version=version,
        model_uri=job.output_uri,
        embedding_space_id=content,
        snapshot_uri=job.snapshot_uri,
        snapshot_sha256=job.snapshot_sha256,
    )
    publish_model(mine, ready, job, store, Reporter(sink, job))
    return sink


def announced(sink: RecordingEventSink) -> ModelReady:
    (ready,) = sink.ready
    last = sink.statuses[-1]
    assert (last.state, last.model_uri) == (State.COMPLETED, ready.model_uri)
    return ready


def test_a_second_trainer_changes_nothing_and_announces_the_first_ones_model(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    first = announced(publish(store, tmp_path, "first"))
    objects = {key: store.get(key) for key in store.list("models/")}
    assert announced(publish(store, tmp_path, "second")) == first
    assert {key: store.get(key) for key in store.list("models/")} == objects
    assert (fetch_model(first, store, tmp_path / "deployed") / "model.safetensors").read_text() == "first"


@pytest.mark.parametrize("when", ["/manifest.json", "latest.json"])
def test_of_two_trainers_at_once_one_publishes_and_both_announce_its_model(tmp_path: Path, when: str) -> None:
    other: list[RecordingEventSink] = []
    store = InterferingStore(when, lambda: other.append(publish(store, tmp_path, "other")))
    mine = announced(publish(store, tmp_path, "mine"))
    assert announced(other[0]) == mine
    assert mine.embedding_space_id == ("other" if when == "/manifest.json" else "mine")
    # What the one that lost has uploaded is gone.
    prefix = published_prefix(store)
    models = {f"{prefix}/model.safetensors", f"{prefix}/manifest.json", "models/m/000001/manifest.json"}
    assert set(store.list("models/")) == models | {"models/m/latest.json"}
    deployed = fetch_model(mine, store, tmp_path / "deployed")
    assert (deployed / "model.safetensors").read_text() == mine.embedding_space_id


def test_a_trainer_that_died_before_the_commit_leaves_no_model_and_the_next_removes_its_files(tmp_path: Path) -> None:
    def die() -> None:
        raise KeyboardInterrupt

    store = InterferingStore("/manifest.json", die)
    with pytest.raises(KeyboardInterrupt):
        publish(store, tmp_path, "dead")
    assert not is_published(job_of(store), store)
    ready = announced(publish(store, tmp_path, "alive"))
    assert store.list("models/m/000001/runs/") == [
        f"{store.key(ready.model_uri)}/manifest.json",
        f"{store.key(ready.model_uri)}/model.safetensors",
    ]


def test_a_trainer_that_died_before_the_announcement_is_announced_by_the_next_as_the_manifest_says(
    tmp_path: Path,
) -> None:
    def die() -> None:
        raise KeyboardInterrupt

    store = InterferingStore("latest.json", die)
    with pytest.raises(KeyboardInterrupt):
        publish(store, tmp_path, "dead")
    job, sink = job_of(store), RecordingEventSink()
    assert is_published(job, store)
    announce_model(job, store, Reporter(sink, job))
    ready = announced(sink)
    assert ready.manifest_sha256 == hashlib.sha256(store.get("models/m/000001/manifest.json")).hexdigest()
    assert (fetch_model(ready, store, tmp_path / "deployed") / "model.safetensors").read_text() == "dead"


def test_files_that_cannot_be_deleted_do_not_fail_a_published_model(tmp_path: Path) -> None:
    class ReadOnly(MemoryObjectStore):
        def delete(self, key: str) -> None:
            raise ObjectStoreError(key, "AccessDenied")

    store = ReadOnly()
    store.put("models/m/000001/runs/0/model.safetensors", b"left")
    assert announced(publish(store, tmp_path, "model"))


@pytest.mark.parametrize("present", [None, "000000"])
def test_an_older_version_never_replaces_a_newer_one(tmp_path: Path, present: str | None) -> None:
    # A newer version is published between the older one's look at the pointer and its write.
    store = InterferingStore("latest.json", lambda: publish(store, tmp_path, "newer", "000002"))
    if present:
        latest = LatestModel(version=present, model_uri="s3://memory/m", manifest_sha256="0" * 64)
        store.put("models/m/latest.json", latest.model_dump_json().encode())
    assert announced(publish(store, tmp_path, "older", "000001")).version == "000001"
    found = latest_model(job_of(store), store)
    assert found is not None
    assert found.version == "000002"


def test_the_newest_of_many_versions_published_at_once_is_the_latest(tmp_path: Path) -> None:
    store, versions = MemoryObjectStore(), [f"{number:06}" for number in (3, 1, 7, 5, 2, 6, 4, 8)]
    with ThreadPoolExecutor(len(versions)) as pool:
        list(pool.map(lambda version: publish(store, tmp_path, version, version), versions))
    found = latest_model(job_of(store), store)
    assert found is not None
    assert found.version == "000008"


def test_a_malformed_pointer_to_the_latest_version_is_replaced(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    store.put("models/m/latest.json", b"{")
    publish(store, tmp_path, "model")
    found = latest_model(job_of(store), store)
    assert found is not None
    assert found.version == "000001"


@pytest.mark.parametrize(
    "content", [b"{", b"{}", b'{"files": [{"path": "a", "sha256": "", "bytes": -1}], "ready": {}}']
)
def test_a_malformed_manifest_is_named(content: bytes) -> None:
    store = MemoryObjectStore()
    store.put("models/m/000001/manifest.json", content)
    job = job_of(store)
    with pytest.raises(ImpossibleJobError, match=r"models/m/000001/manifest\.json: \d+ fields invalid"):
        announce_model(job, store, Reporter(RecordingEventSink(), job))
