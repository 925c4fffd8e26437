"""A whole training job with the real MiniLM: snapshot in, published model out, the object store in memory."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from foldtune.events import State
from foldtune.knobs import TrainingKnobs
from foldtune.settings import Settings, TrainerSettings
from foldtune.testing import MemoryObjectStore
from tests.jobs import RecordingEventSink, published_prefix, put_job
from tests.runbooks import SUBJECTS, tables
from trainers.data.dataset import build_dataset
from trainers.evaluation.evaluation_set import embed
from trainers.evaluation.metrics import evaluate
from trainers.exit_codes import ExitCode
from trainers.job import run
from trainers.model.base_models import packaged_minilm_folder
from trainers.model.encoder import Encoder

OUTPUT = "models/m/000001"


class Trained:
    """What one run left behind."""

    def __init__(self, work_dir: Path, data: tuple[pa.Table, pa.Table]) -> None:
        self.store = MemoryObjectStore()
        folders = (packaged_minilm_folder(),)
        self.settings = Settings(trainer=TrainerSettings(model_folders=folders, work_dir=work_dir))
        self.job = put_job(self.store, data, training=TrainingKnobs(batch_size=8, epochs=4, trainable_layers=2))
        self.sink = RecordingEventSink()
        self.code = self.run()
        self.folder = work_dir / "downloaded"
        self.prefix = published_prefix(self.store)
        for key in self.store.list(f"{self.prefix}/"):
            path = self.folder / key.removeprefix(f"{self.prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            self.store.get_file(key, path)

    def run(self) -> ExitCode:
        return run(self.job, self.settings, self.store, self.sink)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("job"), tables())


def test_a_job_trains_and_announces_a_better_model(trained: Trained) -> None:
    assert trained.code == ExitCode.DONE
    states = [status.state for status in trained.sink.statuses]
    assert states[0] == State.RUNNING
    assert State.EVALUATING in states
    last = trained.sink.statuses[-1]
    assert (last.state, last.promoted, last.model_uri) == (State.COMPLETED, True, trained.store.uri(trained.prefix))
    (ready, *_) = trained.sink.ready
    assert ready.model_uri == last.model_uri
    assert ready.gate.promote
    assert ready.metrics_after.ndcg_at_10 > ready.metrics_before.ndcg_at_10
    assert ready.metrics_before.documents == 2 * len(SUBJECTS)


def true_ndcg(folder: Path) -> float:
    """Of the model in ``folder``, on all questions as they are meant."""
    dataset, encoder = build_dataset(*tables()), Encoder.load(folder)
    queries, passages = embed(encoder, dataset)
    return float(evaluate(dataset, np.arange(len(dataset.questions)), queries, passages).ndcg.mean())


@pytest.mark.matrix
def test_one_label_in_five_is_wrong(tmp_path: Path) -> None:
    examples, documents = tables()
    rows, generator = examples.to_pylist(), np.random.default_rng(0)
    wrong = generator.choice(len(rows), len(rows) // 5, replace=False)
    for row in wrong:
        rows[row]["positive"] = rows[(row + 20) % len(rows)]["negatives"][0]
    noisy = Trained(tmp_path, (pa.Table.from_pylist(rows, examples.schema), documents))
    assert noisy.code == ExitCode.DONE
    assert np.isfinite(json.loads((noisy.folder / "training.json").read_text())["loss"]).all()
    (ready,) = noisy.sink.ready
    assert ready.gate.promote
    # The held-out questions are as wrong as the others.
    assert ready.metrics_after.ndcg_at_10 < 0.95
    assert true_ndcg(packaged_minilm_folder()) < 0.9
    assert true_ndcg(noisy.folder) > 0.99


def test_the_manifest_names_every_file_with_its_digest(trained: Trained) -> None:
    content = trained.store.get(f"{OUTPUT}/manifest.json")
    assert trained.sink.ready[0].manifest_sha256 == hashlib.sha256(content).hexdigest()
    # The deployer reads it beside the files.
    assert trained.store.get(f"{trained.prefix}/manifest.json") == content
    files = {file["path"]: file for file in json.loads(content)["files"]}
    keys = trained.store.list(f"{trained.prefix}/")
    # Its rows hold users' questions: it is not deployed, and an erasure rewrites it.
    stored = {key.removeprefix(f"{trained.prefix}/") for key in keys} - {"manifest.json", "evaluation.parquet"}
    assert set(trained.store.list(f"{OUTPUT}/")) == {*keys, f"{OUTPUT}/manifest.json"}
    assert set(files) == stored
    assert {"model.safetensors", "README.md", "metrics.json", "training.png", "modules.json"} <= stored
    for path, file in files.items():
        assert hashlib.sha256(trained.store.get(f"{trained.prefix}/{path}")).hexdigest() == file["sha256"]


def test_sentence_transformers_and_transformers_give_the_same_embeddings(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    monkeypatch.setattr("trainers.model.encoder.compute_dtype", lambda *_: torch.float32)
    texts = ["what should I know about the night ferry?", "Internal runbook. " * 200, "x"]
    ours = Encoder.load(trained.folder).encode(texts)
    theirs = SentenceTransformer(str(trained.folder), device="cpu").encode(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    plain, tokenizer = AutoModel.from_pretrained(trained.folder), AutoTokenizer.from_pretrained(trained.folder)
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = plain(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    np.testing.assert_allclose(ours, pooled.numpy(), atol=1e-5)


def test_the_model_card_describes_data_and_training(trained: Trained) -> None:
    card, data = ((trained.folder / name).read_text() for name in ("README.md", "metrics.json"))
    counts = json.loads(data)["data"]
    assert "\nlicense: apache-2.0\n" in card
    for what, count in (("Folders", 1), ("Examples trained on", counts["trained_on"])):
        assert f"| {what} | {count} |" in card
    assert trained.job.snapshot_sha256 in card


def test_a_second_run_only_republishes(trained: Trained) -> None:
    before = {key: trained.store.get(key) for key in trained.store.list("")}
    trained.sink.statuses.clear()
    assert trained.run() == ExitCode.DONE
    assert [status.state for status in trained.sink.statuses] == [State.COMPLETED]
    assert trained.sink.ready[-1] == trained.sink.ready[0]
    assert {key: trained.store.get(key) for key in trained.store.list("")} == before
