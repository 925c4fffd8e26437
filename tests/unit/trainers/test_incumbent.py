"""A promoted model that cannot be read does not fail the trainings after it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foldtune.errors import ObjectStoreError, ObjectStoreRefusedError
from foldtune.events import ManifestFile, ModelManifest, ModelReference
from foldtune.knobs import TrainingKnobs
from foldtune.object_store import ObjectStore
from foldtune.testing import MemoryObjectStore
from tests.jobs import RecordingEventSink, put_job
from tests.unit.trainers.conftest import example, make_tables
from tests.unit.trainers.evaluation.conftest import evaluation, measures
from trainers.data.dataset import Dataset, split
from trainers.evaluation.evaluation_set import EvaluationSet, embed
from trainers.model.encoder import Encoder
from trainers.pipeline import Incumbent, choose_start, load_incumbent, measure_incumbent
from trainers.publishing.model_publisher import LatestModel, incumbent_model
from trainers.publishing.reporting import Reporter
from trainers.publishing.results import Baseline

PREFIX = "models/m/000001/runs/1"


class DenyingStore(MemoryObjectStore):
    """Fails every read below a prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.denied: str | None = None
        self.error: type[ObjectStoreError] = ObjectStoreRefusedError

    def get(self, key: str) -> bytes:
        if self.denied and key.startswith(self.denied):
            raise self.error(self.uri(key), "no")
        return super().get(key)


@pytest.fixture
def store(tiny_folder: Path) -> DenyingStore:
    """With version 000001 of the model."""
    store = DenyingStore()
    files = {path.relative_to(tiny_folder).as_posix(): path.read_bytes() for path in tiny_folder.rglob("*.*")}
    put_version(store, files)
    return store


def put_version(store: ObjectStore, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        store.put(f"{PREFIX}/{name}", content)
    entries = [
        ManifestFile(path=name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        for name, content in files.items()
    ]
    manifest = ModelManifest(files=tuple(entries)).encode()
    store.put(f"{PREFIX}/manifest.json", manifest)
    digest = hashlib.sha256(manifest).hexdigest()
    latest = LatestModel(version="000001", model_uri=store.uri(PREFIX), manifest_sha256=digest)
    store.put("models/m/latest.json", latest.model_dump_json().encode())


Measure = Callable[[], tuple[Baseline, list[str]]]


@pytest.fixture
def measured(store: DenyingStore, small_dataset: Dataset, tmp_path: Path) -> Measure:
    """The baseline of the next training and its warnings; the base model's measures are all zero."""
    job = put_job(store, make_tables([example("where is it?", "d")], {"d": "here"}), version="000002")
    measured_on = EvaluationSet(small_dataset, split(small_dataset), [], None, seed=0)
    count = len(measured_on.parts.held_out)
    base = Baseline("the base model", measures(evaluation([0.0] * count)))

    def measured() -> tuple[Baseline, list[str]]:
        reporter = Reporter(RecordingEventSink(), job)
        incumbent = load_incumbent(job, store, reporter, tmp_path)
        found = measure_incumbent(incumbent, reporter, base=base, measured_on=measured_on)
        return found, reporter.warnings

    return measured


def change(key: str, content: bytes | None = None) -> Callable[[DenyingStore], None]:
    """The object is gone, or something else."""

    def apply(store: DenyingStore) -> None:
        assert store.exists(key)
        if content is None:
            store.delete(key)
        else:
            store.put(key, content)

    return apply


def deny(prefix: str) -> Callable[[DenyingStore], None]:
    """Nothing below ``prefix`` may be read."""
    return lambda store: setattr(store, "denied", prefix)


def another_model(store: DenyingStore) -> None:
    """The digest is right, and so are the files."""
    for key in store.list(f"{PREFIX}/"):
        store.put(key.replace("models/m/", "models/other/"), store.get(key))
    latest = LatestModel.model_validate_json(store.get("models/m/latest.json"))
    moved = latest.model_copy(update={"model_uri": latest.model_uri.replace("models/m/", "models/other/")})
    store.put("models/m/latest.json", moved.model_dump_json().encode())


def no_digest(store: DenyingStore) -> None:
    content = json.loads(store.get("models/m/latest.json"))
    del content["manifest_sha256"]
    store.put("models/m/latest.json", json.dumps(content).encode())


def another_bucket(store: DenyingStore) -> None:
    latest = LatestModel(version="000001", model_uri="s3://another/models/m/000001", manifest_sha256="0" * 64)
    store.put("models/m/latest.json", latest.model_dump_json().encode())


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (change(f"{PREFIX}/model.safetensors"), "Object not found"),
        (change(f"{PREFIX}/tokenizer.json"), "Object not found"),
        (change(f"{PREFIX}/manifest.json"), "Object not found"),
        (change(f"{PREFIX}/model.safetensors", b"other"), "model.safetensors has 5 bytes"),
        (change(f"{PREFIX}/manifest.json", b"{}"), "manifest.json has SHA-256"),
        (change("models/m/latest.json", b"{}"), "validation errors for LatestModel"),
        (change("models/m/latest.json", b"{" * 100_000), "validation error for LatestModel"),
        (lambda store: put_version(store, {"model.safetensors": b"garbage"}), "cannot be trained"),
        (another_bucket, "is not in the bucket"),
        (another_model, "which is not of this model"),
        (no_digest, "validation error for LatestModel"),
        (deny(PREFIX), "refuses a request"),
        (deny("models/m/latest.json"), "refuses a request"),
    ],
)
def test_an_unreadable_incumbent_leaves_the_base_model_as_the_baseline(
    happens: Any, reason: str, store: DenyingStore, measured: Measure
) -> None:
    happens(store)
    baseline, (warning,) = measured()
    assert baseline.version is None
    assert "the base model (" in baseline.name
    assert "cannot be read, the new model is compared with the base model only" in warning
    assert reason in warning
    assert len(warning) <= 500
    assert not baseline.measures.held_out.ndcg.any()


def test_a_store_that_fails_for_a_moment_is_not_a_missing_incumbent(store: DenyingStore, measured: Measure) -> None:
    store.denied, store.error = PREFIX, ObjectStoreError
    with pytest.raises(ObjectStoreError):
        measured()


def test_the_incumbent_is_measured_as_the_base_model_is(
    store: DenyingStore, measured: Measure, small_dataset: Dataset, tiny_folder: Path
) -> None:
    baseline, warnings = measured()
    assert (baseline.name, baseline.version, warnings) == ("version 000001", "000001", [])
    encoder, measured_on = Encoder.load(tiny_folder), EvaluationSet(small_dataset, split(small_dataset), [], None, 0)
    expected = measured_on.measure(encoder, *embed(encoder, small_dataset))
    assert baseline.measures.held_out.ndcg.tolist() == expected.held_out.ndcg.tolist()
    assert baseline.measures.answers.passages.tolist() == expected.answers.passages.tolist()
    assert store.list(PREFIX)


def replaced(store: DenyingStore, version: str, by: str, **names: Any) -> None:
    """Version ``by`` was promoted in the place of ``version``, and is the newest."""
    latest: LatestModel | None = None
    for number, ready in ((version, {}), (by, {"compared_with": version} | names)):
        prefix = f"models/m/{number}"
        uri = store.uri(f"{prefix}/runs/1")
        files = json.loads(store.get(f"{PREFIX}/manifest.json"))["files"]
        known = json.loads(store.find(f"{prefix}/manifest.json") or b"{}").get("ready", {})
        content = json.dumps({"files": files, "ready": {"model_uri": uri} | known | ready}).encode()
        for key in store.list(f"{PREFIX}/"):
            if not key.endswith("manifest.json"):
                store.put(key.replace(PREFIX, f"{prefix}/runs/1"), store.get(key))
        store.put(f"{prefix}/runs/1/manifest.json", content)
        store.put(f"{prefix}/manifest.json", content)
        digest = hashlib.sha256(content).hexdigest()
        latest = LatestModel(version=number, model_uri=uri, manifest_sha256=digest)
    assert latest
    store.put("models/m/latest.json", latest.model_dump_json().encode())


@pytest.mark.parametrize(
    ("rejected", "incumbent"),
    [
        ((), "000003"),
        (("000002",), "000003"),
        (("000003",), "000002"),
        (("000002", "000003"), "000001"),
        (("000001", "000002", "000003"), None),
    ],
)
def test_in_the_place_of_a_rejected_version_is_the_one_that_it_had_replaced(
    rejected: tuple[str, ...], incumbent: str | None, store: DenyingStore, tmp_path: Path
) -> None:
    replaced(store, "000001", "000002")
    replaced(store, "000002", "000003")
    job = put_job(store, make_tables([example("where is it?", "d")], {"d": "here"}), version="000004")
    job = job.model_copy(update={"rejected_versions": rejected})
    reporter = Reporter(RecordingEventSink(), job)
    found = load_incumbent(job, store, reporter, tmp_path)
    assert (found.version if found else None, reporter.warnings) == (incumbent, [])
    assert found is None or found.encoder is not None


@pytest.mark.parametrize(
    ("names", "incumbent"),
    [
        # Of release 0.1.
        ({"compared_with": None, "parent_version": "000001"}, "000001"),
        ({"compared_with": None}, None),
        ({"compared_with": "000002"}, None),
        ({"compared_with": "000009"}, None),
        ({"compared_with": "../other/000001"}, None),
        ({"compared_with": 1}, None),
    ],
)
def test_a_rejected_version_leads_to_an_earlier_one_of_its_model_only(
    names: dict[str, Any], incumbent: str | None, store: DenyingStore
) -> None:
    replaced(store, "000001", "000002", **names)
    job = put_job(store, make_tables([example("where is it?", "d")], {"d": "here"}), version="000004")
    found = incumbent_model(job.model_copy(update={"rejected_versions": ("000002",)}), store)
    assert (found.version if found else None) == incumbent


def test_a_rejected_version_that_leads_nowhere_is_an_unreadable_incumbent(store: DenyingStore, tmp_path: Path) -> None:
    replaced(store, "000001", "000002")
    store.delete("models/m/000001/manifest.json")
    job = put_job(store, make_tables([example("where is it?", "d")], {"d": "here"}), version="000004")
    job = job.model_copy(update={"rejected_versions": ("000002",)})
    reporter = Reporter(RecordingEventSink(), job)
    found = load_incumbent(job, store, reporter, tmp_path)
    assert found
    assert found.encoder is None
    assert "compared with the base model only" in reporter.warnings[0]


OLD, NEW = ModelReference(uri="s3://b/old"), ModelReference(uri="s3://b/new")
SAME = {"weights_sha256": "0" * 64}


@pytest.mark.parametrize(
    ("of_incumbent", "requested", "starts"),
    [
        (NEW, NEW, True),
        (OLD, NEW, False),
        (NEW.model_copy(update={"revision": "1"}), NEW, False),
        # Moved, or not known by its name alone.
        (OLD.model_copy(update=SAME), NEW.model_copy(update=SAME), True),
        (NEW.model_copy(update=SAME), NEW.model_copy(update={"weights_sha256": "1" * 64}), False),
        # Of release 0.1.
        (None, NEW, True),
    ],
)
def test_a_training_does_not_start_from_the_descendant_of_another_base_model(
    of_incumbent: ModelReference | None, requested: ModelReference, starts: bool, tiny_folder: Path
) -> None:
    tables = make_tables([example("where is it?", "d")], {"d": "here"})
    training = TrainingKnobs(start="incumbent")
    job = put_job(MemoryObjectStore(), tables, base_model=requested, training=training)
    incumbent = Incumbent("version 000001", "000001", Encoder.load(tiny_folder, "cpu"), base_model=of_incumbent)
    reporter = Reporter(RecordingEventSink(), job)
    assert choose_start(job, incumbent, reporter) == (incumbent if starts else None)
    assert ("another base model" in "".join(reporter.warnings)) != starts
