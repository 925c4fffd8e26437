import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AlbertConfig, AlbertModel

from foldtune.errors import ObjectStoreError, PublishError
from foldtune.events import FineTuneStatus, GateVerdict, ModelReference, Progress, State, TrainingJob
from foldtune.knobs import TrainingKnobs, WeightKnobs
from foldtune.object_keys import OTHER_FOLDERS
from foldtune.pairs import HELD_OUT_SHARE, question_hash
from foldtune.settings import Settings, TrainerSettings
from foldtune.snapshot_schema import EVALUATION
from foldtune.testing import MemoryObjectStore
from tests.jobs import RecordingEventSink, artifact, published_prefix, put_job
from tests.unit.trainers.conftest import example, use_compute_dtype
from trainers.engine.trainable_encoder import TrainableEncoder
from trainers.environment import WORK_PREFIX
from trainers.errors import BadJobError, InfrastructureFailedError
from trainers.evaluation.gate import Interval, gate
from trainers.evaluation.metrics import Evaluation
from trainers.exit_codes import ExitCode
from trainers.job import _work_dir, main, read_job, run
from trainers.loop.checkpoints import Checkpoints, TrainingState
from trainers.loop.validation import Validation
from trainers.model.base_models import packaged_minilm, packaged_minilm_folder
from trainers.model.encoder import Encoder, compute_dtype
from trainers.model.split_model import freeze
from trainers.publishing.model_publisher import ArtifactManifest, LatestModel, latest_model
from trainers.publishing.reporting import Reporter

WORDS = [f"{one}{two}" for one in ("red", "blue", "green", "old", "new", "odd", "raw", "big") for two in "abcdefghij"]
DOCUMENTS = {word: f"all about {word} {word}s" for word in WORDS}
EXAMPLES = [example(f"where to find {word} {word[::-1]}?", word) for word in WORDS]
# Enough for a validation.
MANY_EXAMPLES = [example(f"who sells {word} {word[::-1]} in town{town}", word) for word in WORDS for town in range(4)]

Start = Callable[..., tuple[ExitCode, RecordingEventSink]]


@pytest.fixture
def store() -> MemoryObjectStore:
    return MemoryObjectStore()


@pytest.fixture
def start(store: MemoryObjectStore, tiny_folder: Path, tmp_path: Path) -> Start:
    """Runs a job with the tiny model as its base."""

    def go(job: TrainingJob, **trainer: Any) -> tuple[ExitCode, RecordingEventSink]:
        sink = RecordingEventSink()
        settings = Settings(trainer=TrainerSettings(model_folders=(tiny_folder,), work_dir=tmp_path, **trainer))
        base = ModelReference(uri=tiny_folder.as_uri())
        return run(job.model_copy(update={"base_model": base}), settings, store, sink), sink

    return go


def failure(sink: RecordingEventSink) -> str:
    last = sink.statuses[-1]
    assert (last.state, last.retryable) == (State.FAILED, False)
    return last.reasons[0]


@pytest.mark.slow
def test_a_small_model_is_trained_and_described(start: Start, store: MemoryObjectStore, tables: Any) -> None:
    job = put_job(store, tables(EXAMPLES, DOCUMENTS), weights=WeightKnobs(focus=0.5, minimum=0.1, temperature=0.005))
    code, sink = start(job)
    assert code == ExitCode.DONE
    last = sink.statuses[-1]
    assert last.state == State.COMPLETED
    assert last.promoted == bool(sink.ready)
    assert any("temperature 0.005" in warning for warning in last.warnings)
    assert any("steps" in warning for warning in last.warnings)
    metrics = json.loads(artifact(store, "metrics.json"))
    assert sum(metrics["labels"].values()) == len(EXAMPLES)
    assert metrics["logs"] == sorted(metrics["logs"])
    assert metrics["release"] == importlib.metadata.version("foldtune")
    (folder,) = metrics["folders"].items()
    assert folder[0] == "f"
    assert folder[1]["questions"] == metrics["data"]["held_out_questions"]
    assert folder[1]["ndcg_gain_interval"] == metrics["gate"]["ndcg_gain_interval"]
    for when, of in (("before", "baseline"), ("after", "after")):
        assert folder[1][when] == {name: metrics[of][name] for name in folder[1][when]}
    curves = json.loads(artifact(store, "recall.json"))
    assert curves["k"] == list(range(1, 11))
    for when, of in (("before", "baseline"), ("after", "after")):
        assert [curves[when][k - 1] for k in (1, 5, 10)] == [metrics[of][f"recall_at_{k}"] for k in (1, 5, 10)]
        assert curves[when] == sorted(curves[when])
    assert artifact(store, "recall.png").startswith(b"\x89PNG")
    card = artifact(store, "README.md").decode()
    assert job.snapshot_sha256 in card
    assert "weights.focus | 0.5" in card
    assert "not stated by its card" in card
    assert f"from {datetime.now(UTC):%Y-%m-%d}" in card
    assert ("**passed**" in card) == last.promoted


@pytest.mark.slow
def test_each_held_out_question_is_told_beside_the_model_and_not_deployed_with_it(
    start: Start, store: MemoryObjectStore, tables: Any
) -> None:
    start(put_job(store, tables(EXAMPLES, DOCUMENTS)))
    metrics = json.loads(artifact(store, "metrics.json"))
    table = pq.read_table(io.BytesIO(artifact(store, "evaluation.parquet")))
    assert table.schema.equals(EVALUATION)
    rows = table.to_pylist()
    assert len(rows) == metrics["data"]["held_out_questions"]
    gains = [row["gain"] for row in rows]
    assert gains == sorted(gains)
    assert np.mean(gains) == pytest.approx(metrics["gate"]["ndcg_gain"])
    for row in rows:
        (log,) = row["logs"]
        # In these examples the id of a log is its question.
        assert log["log_id"] == row["question"]
        right = row["question"].split()[3]
        for moment in ("before", "after"):
            found, scores = ([passage[name] for passage in row[moment]] for name in ("document_id", "score"))
            assert scores == sorted(scores, reverse=True)
            assert len(found) == 5
            rank = row[f"rank_{moment}"]
            assert (rank - 1 if rank and rank <= 5 else None) == (found.index(right) if right in found else None)
    ranks = [row["rank_after"] for row in rows]
    assert np.mean([rank == 1 for rank in ranks]) == pytest.approx(metrics["after"]["recall_at_1"])
    manifest = json.loads(store.get("models/m/000001/manifest.json"))
    paths = {file["path"] for file in manifest["files"]}
    assert "metrics.json" in paths
    assert "evaluation.parquet" not in paths
    card = artifact(store, "README.md").decode()
    assert "evaluation.parquet" in card
    assert f"| Labels of all examples | {len(EXAMPLES)} cited |" in card
    assert f"| f | {len(rows)} |" in card


@pytest.mark.slow
def test_the_event_tells_what_the_model_started_from_and_cost(
    start: Start, store: MemoryObjectStore, tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.pipeline.gate", always_promote)
    data = tables(EXAMPLES, DOCUMENTS)
    job = put_job(store, data)
    (first,) = start(job, hourly_price=3.6)[1].ready
    assert (first.parent_version, first.compared_with, first.requires_reindex) == (None, None, True)
    assert first.seconds["all"] == pytest.approx(sum(first.seconds.values()) - first.seconds["all"])
    assert first.seconds["training"] == first.training_seconds
    assert first.cost_dollars == pytest.approx(first.seconds["all"] / 1000)
    assert first.work
    training, trained_on = job.request.training, json.loads(artifact(store, "metrics.json"))["data"]["trained_on"]
    assert first.work.steps == training.steps(trained_on)
    assert first.work.examples == training.epochs * trained_on
    assert first.work.trainable_layers == str(training.trainable_layers)
    assert first.work.machine.endswith(" CPUs")
    # The same data and seed give the same model: the index of the first one is right for it.
    (second,) = start(put_job(store, data, version="000002"))[1].ready
    assert (second.parent_version, second.compared_with, second.requires_reindex) == (None, "000001", False)
    assert second.cost_dollars is None


@pytest.mark.slow
def test_a_training_starts_from_the_incumbent(
    start: Start, store: MemoryObjectStore, tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.pipeline.gate", always_promote)
    data = tables(EXAMPLES, DOCUMENTS)
    again = TrainingKnobs(start="incumbent")
    _, sink = start(put_job(store, data, training=again))
    # There is none yet.
    assert any("started from the base model" in warning for warning in sink.statuses[-1].warnings)
    (first,) = sink.ready
    assert first.parent_version is None
    monkeypatch.setattr("trainers.loop.training.UNVALIDATED_LEARNING_RATE", 0)
    (second,) = start(put_job(store, data, version="000002", training=again))[1].ready
    assert (second.parent_version, second.compared_with) == ("000001", "000001")
    # Nothing was learnt, so it is the incumbent.
    assert second.embedding_space_id == first.embedding_space_id
    assert not second.requires_reindex
    assert second.metrics_before == second.metrics_after == first.metrics_after
    # Forgetting adds up over versions, so it is measured against the base model.
    metrics = [json.loads(artifact(store, "metrics.json", version)) for version in ("000001", "000002")]
    assert metrics[1]["base"] == metrics[0]["base"]
    assert metrics[1]["general"]["before"] == metrics[0]["general"]["before"]
    assert "| Started from | version 000001 |" in artifact(store, "README.md", "000002").decode()


@pytest.mark.slow
def test_a_training_from_the_incumbent_resumes_to_the_same_weights(
    tables: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.publishing.reporting.REPORT_SECONDS", -1)
    monkeypatch.setattr("trainers.pipeline.gate", always_promote)
    base, data = ModelReference(uri=tiny_folder.as_uri()), tables(EXAMPLES, DOCUMENTS)
    settings = Settings(trainer=TrainerSettings(model_folders=(tiny_folder,), work_dir=tmp_path))
    whole, taken = MemoryObjectStore(), MemoryObjectStore()
    for store in (whole, taken):
        job = put_job(store, data, base_model=base, training=TrainingKnobs(batch_size=16, epochs=1))
        assert run(job, settings, store, RecordingEventSink()) == ExitCode.DONE
        knobs = TrainingKnobs(batch_size=16, epochs=2, trainable_layers=2, start="incumbent")
        job = put_job(store, data, base_model=base, version="000002", training=knobs)
        if store is taken:
            assert run(job, settings, store, Unlucky(3, asked_to_end)) == ExitCode.TRY_AGAIN
            # From other weights it is another training.
            start = weights(store, "000001")
            assert Checkpoints(job, store, timedelta(hours=1), weights_sha256=start).load()
            assert Checkpoints(job, store, timedelta(hours=1), weights_sha256="0" * 64).load() is None
        sink = RecordingEventSink()
        assert run(job, settings, store, sink) == ExitCode.DONE
    assert next(status.progress.step for status in sink.statuses if status.progress) == 4
    assert weights(whole, "000002") == weights(taken, "000002")


@pytest.mark.slow
def test_the_next_version_is_compared_with_the_promoted_one(
    start: Start, store: MemoryObjectStore, tables: Any
) -> None:
    # Enough for a verdict.
    data = tables(MANY_EXAMPLES[:160], DOCUMENTS)
    start(put_job(store, data))
    digest = hashlib.sha256(store.get("models/m/000001/manifest.json")).hexdigest()
    latest = LatestModel(version="000001", model_uri=store.uri(published_prefix(store)), manifest_sha256=digest)
    store.put("models/m/latest.json", latest.model_dump_json().encode())
    job = put_job(store, data, version="000002")
    assert latest_model(job, store) == latest
    code, sink = start(job)
    assert code == ExitCode.DONE
    # The same data and seed give the same model, and that is no gain over itself.
    assert sink.statuses[-1].promoted is False
    assert "not better than version 000001" in sink.statuses[-1].reasons[0]
    assert not sink.ready


@pytest.mark.slow
def test_an_incumbent_whose_files_are_gone_is_replaced_and_reported(
    start: Start, store: MemoryObjectStore, tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.pipeline.gate", always_promote)
    data = tables(EXAMPLES, DOCUMENTS)
    assert start(put_job(store, data))[1].ready
    for key in store.list(f"{published_prefix(store)}/"):
        store.delete(key)
    code, sink = start(put_job(store, data, version="000002"))
    assert code == ExitCode.DONE
    (ready,) = sink.ready
    assert ready.compared_with is None
    assert "better than the base model (version 000001 cannot be read)" in ready.gate.reasons[0]
    (warning,) = (text for text in sink.statuses[-1].warnings if "compared with the base model only" in text)
    assert "Object not found" in warning
    card = artifact(store, "README.md", "000002").decode()
    assert warning in card
    assert "| | the base model (version 000001 cannot be read) | this model |" in card
    # The next training has an incumbent again.
    assert start(put_job(store, data, version="000003"))[1].ready[0].compared_with == "000002"


def always_promote(before: Evaluation, after: Evaluation, seed: int, *, baseline: str, **_: object) -> GateVerdict:
    return gate(before, after, seed, min_gain=0, baseline=baseline).model_copy(
        update={"promote": True, "reasons": (f"better than {baseline}",)}
    )


@pytest.mark.slow
def test_forgetting_is_a_warning_and_may_prevent_promotion(
    start: Start, store: MemoryObjectStore, tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.evaluation.non_inferiority.NonInferiority.interval", Interval(0.1, 0.2))
    monkeypatch.setattr("trainers.evaluation.non_inferiority.NonInferiority.fall", 0.15)
    code, sink = start(put_job(store, tables(EXAMPLES, DOCUMENTS), training=TrainingKnobs(epochs=1)))
    assert code == ExitCode.DONE
    general = json.loads(artifact(store, "metrics.json"))["general"]
    numbers = f"nDCG@10 {general['before']['ndcg_at_10']:.4f} → {general['after']['ndcg_at_10']:.4f}"
    last = sink.statuses[-1]
    assert last.promoted is False
    assert numbers in last.reasons[-1]
    assert any(numbers in warning for warning in last.warnings)
    before, after = (general[moment]["ndcg_at_10"] for moment in ("before", "after"))
    row = f"| general questions | 60 | {before:.4f} | {after:.4f} | +0.1000 to +0.2000 |"
    assert row in artifact(store, "README.md").decode()


@pytest.mark.slow
def test_a_model_is_measured_on_the_folders_that_its_request_does_not_name(
    start: Start, store: MemoryObjectStore, tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word for word in WORDS if question_hash(f"what of {word}?") < HELD_OUT_SHARE][:9]
    rows = [example(f"what of {word}?", word) | {"folder_id": "Tenant B"} for word in words]
    others = tables(rows, {word: f"another {word}" for word in WORDS})
    monkeypatch.setattr("trainers.evaluation.non_inferiority.NonInferiority.interval", Interval(0.1, 0.2))
    monkeypatch.setattr("trainers.evaluation.non_inferiority.NonInferiority.fall", 0.15)
    job = put_job(store, tables(EXAMPLES, DOCUMENTS), others=others, training=TrainingKnobs(epochs=1))
    _, sink = start(job)
    metrics = json.loads(artifact(store, "metrics.json"))
    of_others = metrics["not_trained_on"]["folders not trained on"]
    assert of_others["before"]["questions"] == of_others["after"]["questions"] == 9
    assert of_others["before"]["documents"] == 2 * len(DOCUMENTS)
    assert "worse than the base model on folders not trained on: nDCG@10" in sink.statuses[-1].reasons[-1]
    assert "| folders not trained on | 9 |" in artifact(store, "README.md").decode()
    # Whoever serves the model does not learn their names, which operators find beside it.
    (folder,) = json.loads(artifact(store, OTHER_FOLDERS)).items()
    assert (folder[0], folder[1]["questions"]) == ("Tenant B", 9)
    deployed = {file["path"] for file in json.loads(store.get("models/m/000001/manifest.json"))["files"]}
    assert OTHER_FOLDERS not in deployed
    assert {"README.md", "metrics.json"} <= deployed
    for path in sorted(deployed):
        assert b"Tenant B" not in artifact(store, path), path
    assert "Tenant B" not in "".join(status.model_dump_json() for status in sink.statuses)


class Unlucky(RecordingEventSink):
    """Something happens to the process after a step."""

    def __init__(self, step: int, happens: Callable[[], object]) -> None:
        super().__init__()
        self._step, self._happens = step, happens

    def publish_status(self, status: FineTuneStatus) -> None:
        super().publish_status(status)
        if status.progress and status.progress.step == self._step:
            self._happens()


def asked_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def killed() -> None:
    raise KeyboardInterrupt


def weights(store: MemoryObjectStore, version: str = "000001") -> str:
    manifest = ArtifactManifest.model_validate_json(store.get(f"models/m/{version}/manifest.json"))
    return str(manifest.ready["embedding_space_id"])


@pytest.fixture
def every_step_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.publishing.reporting.REPORT_SECONDS", -1)


def validate_by_distance(monkeypatch: pytest.MonkeyPatch, base: Path, sign: int) -> None:
    """Each step away from the base model counts as better or as worse: the same on all processors."""
    model = Encoder.load(base, "cpu").transformer
    freeze(model, TrainingKnobs().trainable_layers)
    start = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]

    def ndcg(validation: Validation, embeddings: object = None) -> float:
        pairs = zip(validation._encoder.weights(), start, strict=True)
        return sign * sum(float((one - other).double().square().sum()) for one, other in pairs)

    monkeypatch.setattr(Validation, "ndcg", ndcg)


# How far from the base model validation wants to be, if there is any, and the steps and the alpha that come of it.
UNVALIDATED, EVER_BETTER, EVER_WORSE = (0, 15, None), (1, 12, 1.0), (-1, 8, 0.4)


@pytest.mark.slow
@pytest.mark.usefixtures("every_step_reported")
@pytest.mark.parametrize(
    ("happens", "validated", "step", "goes_on_with"),
    [
        (asked_to_end, UNVALIDATED, 2, 3),
        (asked_to_end, EVER_BETTER, 8, 9),
        (asked_to_end, EVER_WORSE, 6, 7),
        # The step that a kill interrupts is done again.
        (killed, UNVALIDATED, 11, 11),
        (killed, EVER_BETTER, 12, 12),
        (killed, EVER_WORSE, 8, 8),
    ],
)
def test_an_interrupted_job_resumes_to_the_same_weights(
    tables: Any,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    happens: Any,
    validated: tuple[int, int, float | None],
    step: int,
    goes_on_with: int,
) -> None:
    interval = timedelta(0) if happens is killed else timedelta(hours=1)
    trainer = TrainerSettings(model_folders=(tiny_folder,), work_dir=tmp_path, checkpoint_interval=interval)
    sign, in_all, alpha = validated
    data, knobs = tables(EXAMPLES, DOCUMENTS), TrainingKnobs(batch_size=16, epochs=3, trainable_layers=2)
    if sign:
        validate_by_distance(monkeypatch, tiny_folder, sign)
        monkeypatch.setattr("trainers.loop.training.CLEARLY_WORSE", 0)
        data, knobs = tables(MANY_EXAMPLES, DOCUMENTS), TrainingKnobs(batch_size=64, epochs=3)
    base = ModelReference(uri=tiny_folder.as_uri())
    stores = MemoryObjectStore(), MemoryObjectStore()
    whole, taken = (put_job(store, data, training=knobs).model_copy(update={"base_model": base}) for store in stores)
    settings = Settings(trainer=trainer)
    assert run(whole, settings, stores[0], RecordingEventSink()) == ExitCode.DONE
    with contextlib.suppress(KeyboardInterrupt):
        assert run(taken, settings, stores[1], Unlucky(step, happens)) == ExitCode.TRY_AGAIN
    (kept,) = stores[1].list("checkpoints/")
    again = RecordingEventSink()
    assert run(taken, settings, stores[1], again) == ExitCode.DONE
    steps = [status.progress.step for status in again.statuses if status.progress]
    assert steps == list(range(goes_on_with, in_all + 1))
    assert weights(stores[1]) == weights(stores[0])
    assert not stores[1].list("checkpoints/"), kept
    metrics = [json.loads(artifact(store, "metrics.json")) for store in stores]
    assert metrics[0]["validation"] == metrics[1]["validation"]
    assert metrics[0]["merge_back"] == metrics[1]["merge_back"]
    assert (metrics[1]["merge_back"] or {}).get("alpha") == alpha


class FailingUploads(MemoryObjectStore):
    """Fails every upload of a file below ``failing``."""

    failing: str | None = None

    def put_file(self, key: str, path: Path) -> None:
        if self.failing and key.startswith(self.failing):
            raise ObjectStoreError(self.uri(key), "SlowDown")
        super().put_file(key, path)


@pytest.mark.slow
@pytest.mark.usefixtures("every_step_reported")
@pytest.mark.parametrize("data", [EXAMPLES, MANY_EXAMPLES])
def test_a_model_that_could_not_be_uploaded_is_published_without_training_again(
    tables: Any, tiny_folder: Path, tmp_path: Path, data: Any
) -> None:
    stores = FailingUploads(), FailingUploads()
    settings = Settings(trainer=TrainerSettings(model_folders=(tiny_folder,), work_dir=tmp_path))
    base = ModelReference(uri=tiny_folder.as_uri())
    whole, failed = (put_job(store, tables(data, DOCUMENTS), base_model=base) for store in stores)
    assert run(whole, settings, stores[0], RecordingEventSink()) == ExitCode.DONE
    stores[1].failing = "models/"
    first = RecordingEventSink()
    assert run(failed, settings, stores[1], first) == ExitCode.TRY_AGAIN
    assert (first.statuses[-1].state, first.statuses[-2].state) == (State.RUNNING, State.EVALUATING)
    assert "run the job again" in first.statuses[-1].reasons[0]
    stores[1].failing = None
    second = RecordingEventSink()
    assert run(failed, settings, stores[1], second) == ExitCode.DONE
    assert not [status for status in second.statuses if status.progress]
    assert weights(stores[1]) == weights(stores[0])
    assert not stores[1].list("checkpoints/")
    metrics = [json.loads(artifact(store, "metrics.json")) for store in stores]
    for of in metrics:
        del of["seconds"], of["training"]["seconds"]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_is_a_warning(tables: Any, tiny_folder: Path, tmp_path: Path) -> None:
    store = FailingUploads()
    store.failing = "checkpoints/"
    trainer = TrainerSettings(model_folders=(tiny_folder,), work_dir=tmp_path, checkpoint_interval=timedelta(0))
    job = put_job(store, tables(EXAMPLES, DOCUMENTS), base_model=ModelReference(uri=tiny_folder.as_uri()))
    sink = RecordingEventSink()
    assert run(job, Settings(trainer=trainer), store, sink) == ExitCode.DONE
    (warning,) = (text for text in sink.statuses[-1].warnings if "checkpoint" in text)
    assert "SlowDown" in warning


def test_a_full_disk_is_a_reason_to_try_again(store: MemoryObjectStore, tables: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = Settings(trainer=TrainerSettings(work_dir=tmp_path / "file"))
    assert run(put_job(store, tables(EXAMPLES, DOCUMENTS)), settings, store, RecordingEventSink()) == ExitCode.TRY_AGAIN


def test_the_files_of_a_training_that_was_killed_are_removed_and_all_of_its_own_lie_below_the_work_dir(
    tmp_path: Path,
) -> None:
    left, foreign = tmp_path / f"{WORK_PREFIX}left", tmp_path / "trainer-settings"
    for made in (left, foreign):
        made.mkdir()
        (made / "questions").write_text("text")
    with _work_dir(Settings(trainer=TrainerSettings(work_dir=tmp_path))) as folder:
        assert (left.exists(), foreign.exists()) == (False, True)
        assert Path(tempfile.gettempdir()) == folder
    assert Path(tempfile.gettempdir()) != folder


def test_an_impossible_job_that_could_not_be_reported_is_tried_again_and_said_so(
    store: MemoryObjectStore, tables: Any, tmp_path: Path, capsys: Any
) -> None:
    class Silent(RecordingEventSink):
        def publish_status(self, status: FineTuneStatus) -> None:
            raise InfrastructureFailedError(PublishError("training-reports", status.state))

    job = put_job(store, tables(EXAMPLES, DOCUMENTS))
    store.put("snapshots/r/examples.parquet", b"something else")
    assert run(job, Settings(trainer=TrainerSettings(work_dir=tmp_path)), store, Silent()) == ExitCode.TRY_AGAIN
    output = capsys.readouterr().out
    assert "training failed" in output
    assert "has the digest" in output
    assert "failure not reported" in output


@pytest.mark.slow
@pytest.mark.usefixtures("every_step_reported")
@pytest.mark.skipif(
    compute_dtype(torch.device("cpu"), "bert") != torch.bfloat16, reason="the processor has no bfloat16"
)
def test_bfloat16_hidden_states_do_not_depend_on_interruptions(
    tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All documents are cut for training, and differ in length for evaluation.
    monkeypatch.setattr("trainers.engine.trainable_encoder.TRAINING_TOKENS", 8)
    documents = {word: f"all about {word} {word}s " + "and more " * (at % 9) for at, word in enumerate(WORDS)}
    # In the small model's products there is but one order to add up in.
    folder = packaged_minilm_folder()
    settings = Settings(trainer=TrainerSettings(model_folders=(folder,), work_dir=tmp_path))
    data, knobs = tables(EXAMPLES, documents), TrainingKnobs(batch_size=4, epochs=1, trainable_layers=1)
    stores = MemoryObjectStore(), MemoryObjectStore()
    whole, taken = (put_job(store, data, base_model=packaged_minilm(), training=knobs) for store in stores)
    assert run(whole, settings, stores[0], RecordingEventSink()) == ExitCode.DONE
    assert run(taken, settings, stores[1], Unlucky(3, asked_to_end)) == ExitCode.TRY_AGAIN
    assert run(taken, settings, stores[1], RecordingEventSink()) == ExitCode.DONE
    assert weights(stores[1]) == weights(stores[0])


@pytest.mark.slow
@pytest.mark.usefixtures("every_step_reported")
def test_an_interrupted_validation_stops_at_once_and_is_repeated(
    tables: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_blocks, calls = TrainableEncoder.embed_blocks, list[int]()

    def interrupted(encoder: TrainableEncoder, *texts: Any) -> Iterator[torch.Tensor]:
        calls.append(len(calls))
        if len(calls) == 2:
            asked_to_end()
        return embed_blocks(encoder, *texts)

    settings = Settings(trainer=TrainerSettings(model_folders=(tiny_folder,), work_dir=tmp_path))
    data, knobs = tables(MANY_EXAMPLES, DOCUMENTS), TrainingKnobs(batch_size=64, epochs=3)
    base = ModelReference(uri=tiny_folder.as_uri())
    stores = MemoryObjectStore(), MemoryObjectStore()
    whole, taken = (put_job(store, data, base_model=base, training=knobs) for store in stores)
    assert run(whole, settings, stores[0], RecordingEventSink()) == ExitCode.DONE
    monkeypatch.setattr(TrainableEncoder, "embed_blocks", interrupted)
    first, second = RecordingEventSink(), RecordingEventSink()
    assert run(taken, settings, stores[1], first) == ExitCode.TRY_AGAIN
    steps = [status.progress.step for status in first.statuses if status.progress]
    assert run(taken, settings, stores[1], second) == ExitCode.DONE
    again = [status.progress.step for status in second.statuses if status.progress]
    # The last step of the second epoch was done, its validation was not.
    assert steps[-1] % 4 == 0
    assert steps[-1] + 1 == again[0]
    assert weights(stores[1]) == weights(stores[0])
    metrics = [json.loads(artifact(store, "metrics.json")) for store in stores]
    assert metrics[0]["validation"] == metrics[1]["validation"]


@pytest.mark.slow
def test_the_choice_of_validation_is_reported(start: Start, store: MemoryObjectStore, tables: Any) -> None:
    code, _ = start(put_job(store, tables(MANY_EXAMPLES, DOCUMENTS), training=TrainingKnobs(batch_size=64, epochs=2)))
    assert code == ExitCode.DONE
    metrics = json.loads(artifact(store, "metrics.json"))
    validation, merge = metrics["validation"], metrics["merge_back"]
    assert validation["questions"] == 26
    assert metrics["data"]["trained_on"] == len(MANY_EXAMPLES) - 26 - metrics["data"]["held_out_questions"]
    best = max(validation["ndcg_at_10"])
    assert validation["ndcg_at_10"].index(best) == validation["best_epoch"] - 1
    assert list(merge["ndcg"]) == ["0.4", "0.6", "0.8", "1.0"]
    assert merge["ndcg"][str(merge["alpha"])] == max(merge["ndcg"].values())
    card = artifact(store, "README.md").decode()
    assert f"at alpha = {merge['alpha']} " in card
    assert f"| 0.6 | {merge['ndcg']['0.6']:.4f} |" in card


@pytest.mark.slow
def test_with_too_few_questions_the_last_weights_are_kept_with_a_warning(
    start: Start, store: MemoryObjectStore, tables: Any
) -> None:
    code, _ = start(put_job(store, tables(EXAMPLES, DOCUMENTS), training=TrainingKnobs(epochs=1)))
    assert code == ExitCode.DONE
    metrics = json.loads(artifact(store, "metrics.json"))
    assert "fewer than 100 questions" in metrics["validation"]["off"]
    assert metrics["merge_back"] is None
    assert "without validation: fewer than 100" in artifact(store, "README.md").decode()


def test_the_checkpoint_of_another_training_is_ignored(store: MemoryObjectStore, tables: Any) -> None:
    job = put_job(store, tables(EXAMPLES, DOCUMENTS))
    state = TrainingState(tensors={"order": torch.arange(3)}, facts={"record": {}})
    mine = Checkpoints(job, store, timedelta(0))
    assert mine.load() is None
    mine.save(state)
    found = Checkpoints(job, store, timedelta(0)).load()
    assert found is not None
    assert found.facts == state.facts
    assert torch.equal(found.tensors["order"], state.tensors["order"])
    other = job.model_copy(update={"snapshot_sha256": "0" * 64})
    assert Checkpoints(other, store, timedelta(0)).load() is None
    (key,) = store.list("checkpoints/")
    store.put(key, b"not a checkpoint")
    assert mine.load() is None


def test_a_changed_snapshot_is_refused(start: Start, store: MemoryObjectStore, tables: Any) -> None:
    job = put_job(store, tables(EXAMPLES, DOCUMENTS))
    store.put("snapshots/r/examples.parquet", b"something else")
    code, sink = start(job)
    assert code == ExitCode.IMPOSSIBLE
    assert "s3://memory/snapshots/r/examples.parquet has the digest" in failure(sink)


def test_a_single_document_is_refused_with_the_numbers(start: Start, store: MemoryObjectStore, tables: Any) -> None:
    code, sink = start(put_job(store, tables([example("q", "a")], {"a": "alone"})))
    assert code == ExitCode.IMPOSSIBLE
    assert "1 distinct documents, at least 2 are required" in failure(sink)


def test_too_many_layers_are_refused_with_the_bound(start: Start, store: MemoryObjectStore, tables: Any) -> None:
    job = put_job(store, tables(EXAMPLES, DOCUMENTS), training=TrainingKnobs(trainable_layers=9))
    code, sink = start(job)
    assert code == ExitCode.IMPOSSIBLE
    assert "training.trainable_layers is 9, base_model has 3 layers" in failure(sink)


@pytest.mark.slow
def test_frozen_layers_of_an_unknown_layout_are_a_warning(
    store: MemoryObjectStore, tables: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "albert"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AlbertConfig(
        vocab_size=30_522,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    AlbertModel(config).save_pretrained(folder)
    job = put_job(
        store,
        tables(EXAMPLES, DOCUMENTS),
        base_model=ModelReference(uri=folder.as_uri()),
        training=TrainingKnobs(trainable_layers=1, epochs=1),
    )
    sink = RecordingEventSink()
    settings = Settings(trainer=TrainerSettings(model_folders=(folder,), work_dir=tmp_path))
    assert run(job, settings, store, sink) == ExitCode.DONE
    assert "the frozen layers of a albert model are not cached: slower" in sink.statuses[-1].warnings


@pytest.mark.slow
def test_twenty_examples_are_trained_on_but_not_promoted(start: Start, store: MemoryObjectStore, tables: Any) -> None:
    code, sink = start(put_job(store, tables(EXAMPLES[:20], DOCUMENTS)))
    assert code == ExitCode.DONE
    last = sink.statuses[-1]
    assert last.promoted is False
    assert "training.batch_size 32 is larger than the 16 training examples" in last.warnings
    assert any("4 held-out groups of questions" in reason for reason in last.reasons)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, "all"])
def test_unusual_texts_are_trained_on_and_counted(
    start: Start, store: MemoryObjectStore, tables: Any, layers: Any
) -> None:
    odd = {
        "empty": " ",
        "signs": "?!",
        "long": "word " * 10_000,
        "thai": "ราคาของการโทรหนึ่งครั้ง",
        "hindi": "एक कॉल की कीमत",
        "unknown": "ꙮ 𐎀𐎁 ꙮꙮ",
        "sign": "ꙮ",
        **{f"d{index}": f"text {index}" for index in range(19)},
    }
    rows = [example(f"{name} {index}" if index else "!", name, strength=0.1) for index, name in enumerate(odd)]
    code, sink = start(put_job(store, tables(rows, odd), training=TrainingKnobs(trainable_layers=layers, epochs=1)))
    assert code == ExitCode.DONE
    last = sink.statuses[-1]
    assert last.promoted is False
    assert any("held-out groups" in warning for warning in last.warnings)
    # The first question is a sign as well.
    assert "3 of 52 texts contain no letter or digit" in last.warnings
    assert "1 of 52 texts reach or exceed base_model's maximum of 64 tokens" in last.warnings
    # Thai too: what has no spaces is one word to this tokenizer.
    assert "3 of 52 texts are mostly words unknown to base_model" in last.warnings
    assert np.isfinite(json.loads(artifact(store, "training.json"))["loss"]).all()


@pytest.mark.slow
def test_skipped_steps_are_counted_in_a_warning(
    start: Start, store: MemoryObjectStore, tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_compute_dtype(monkeypatch, torch.float16)
    monkeypatch.setattr("trainers.loop.optimizer.INITIAL_SCALE", 2.0**40)
    code, sink = start(put_job(store, tables(EXAMPLES, DOCUMENTS), training=TrainingKnobs(batch_size=16)))
    assert code == ExitCode.DONE
    assert "15 of 15 steps were skipped: their gradients exceeded float16" in sink.statuses[-1].warnings
    assert not sink.statuses[-1].promoted


def test_a_failing_store_is_retryable(
    start: Start, store: MemoryObjectStore, tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = put_job(store, tables(EXAMPLES, DOCUMENTS))

    def fail(*_: object) -> bytes:
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(store, "get", fail)
    code, sink = start(job)
    assert code == ExitCode.TRY_AGAIN
    assert sink.statuses[-1].state == State.RUNNING
    assert "reset by peer" in sink.statuses[-1].reasons[0]


def test_an_error_that_nobody_expected_is_reported_before_the_process_ends(
    store: MemoryObjectStore, tables: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sink = RecordingEventSink()
    monkeypatch.setattr(store, "get", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(
            put_job(store, tables(EXAMPLES, DOCUMENTS)),
            Settings(trainer=TrainerSettings(work_dir=tmp_path)),
            store,
            sink,
        )
    assert sink.statuses[-1].reasons == ("ZeroDivisionError: division by zero",)


def test_a_missing_job_is_named(store: MemoryObjectStore) -> None:
    with pytest.raises(BadJobError, match=r"jobs/x/job\.json"):
        read_job(store, "s3://memory/jobs/x/job.json")
    assert main([]) == ExitCode.TRY_AGAIN


def test_progress_is_throttled_and_survives_an_unresponsive_broker(store: MemoryObjectStore, tables: Any) -> None:
    class Silent(RecordingEventSink):
        def publish_status(self, status: FineTuneStatus) -> None:
            super().publish_status(status)
            if status.progress:
                raise InfrastructureFailedError(PublishError("fine-tune-status"))

    seconds = iter(range(100))
    sink = Silent()
    reporter = Reporter(sink, put_job(store, tables(EXAMPLES, DOCUMENTS)), clock=lambda: float(next(seconds)))
    for step in range(1, 21):
        reporter.on_step(Progress(step=step, steps=20, loss=1.0, examples_per_second=1.0, eta_seconds=1.0))
    assert 3 <= len(sink.statuses) <= 6
    assert sink.statuses[-1].progress is not None
    assert sink.statuses[-1].progress.step == 20
