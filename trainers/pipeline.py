"""A training from its snapshot to its published model, step by step."""

import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import structlog
import torch

from foldtune.events import FineTuneRequested, ModelReady, ModelReference, State, TrainingJob, now
from foldtune.object_store import ObjectStore
from foldtune.settings import Settings
from trainers.data.dataset import MIN_JUDGED, Dataset, Split, build_dataset, split
from trainers.data.snapshot import Snapshot, read_snapshot
from trainers.engine.trainable_encoder import TrainableEncoder
from trainers.errors import OnnxExportError
from trainers.evaluation.forgetting import Forgetting, measure_general
from trainers.evaluation.gate import MIN_GROUPS, gate
from trainers.evaluation.metrics import Evaluation, evaluate
from trainers.loop.checkpoints import Checkpoints
from trainers.loop.tensorboard import TensorBoardLogger
from trainers.loop.training import ProgressListener, TrainingRecord, cheap_to_embed_all, train
from trainers.loop.validation import Validation, WeightInterpolation, interpolate_weights
from trainers.model.base_models import fetch_base_model, licence, weights_digest
from trainers.model.encoder import Encoder
from trainers.publishing.artifacts import write_card, write_curve, write_metrics, write_model, write_recall
from trainers.publishing.model_publisher import latest_model, publish_model
from trainers.publishing.onnx_export import export_onnx
from trainers.publishing.reporting import Reporter
from trainers.publishing.results import Baseline, Results

log = structlog.get_logger()

MIN_STEPS = 50
MIN_TEMPERATURE = 0.01
# A few questions have no hard negatives left in any data; of more, people should know.
FILLED_SHARE = 0.1
_PLACEHOLDER_DIGEST = "0" * 64


def produce_model(
    job: TrainingJob,
    settings: Settings,
    store: ObjectStore,
    reporter: Reporter,
    work_dir: Path,
) -> None:
    """Train and publish the model of ``job``.

    Raises:
        ImpossibleJobError: data, model or knobs cannot be trained with.
    """
    began = time.monotonic()
    reporter.state(State.RUNNING)
    snapshot = read_snapshot(store, job.snapshot_uri, job.snapshot_sha256)
    dataset = build_dataset(snapshot.examples, snapshot.documents)
    parts = split(dataset, job.request.seed)
    base_folder = fetch_base_model(job.base_model, settings.trainer, store, work_dir)
    encoder = Encoder.load(base_folder)
    reporter.warn(*knob_warnings(job.request, parts), *data_warnings(dataset, parts))

    layers = TrainableEncoder(encoder, dataset, job.request.training.trainable_layers, work_dir)
    if not layers.cached and isinstance(job.request.training.trainable_layers, int):
        reporter.warn(f"the frozen layers of a {encoder.model.config.model_type} model are not cached: slower")
    reporter.warn(*text_warnings(dataset, layers))
    before_vectors = layers.embed_full_length()
    base = Baseline("the base model", measure(dataset, parts, *before_vectors))
    baseline = incumbent(job, settings, store, work_dir, dataset=dataset, parts=parts) or base
    general_before = measure_general(encoder, before_vectors[1][: dataset.documents], job.request.seed)
    embedded_seconds = time.monotonic() - began

    checkpoints = Checkpoints(job, store, settings.trainer.checkpoint_interval)
    with closing(TensorBoardLogger(settings.trainer.tensorboard_dir, job, reporter.warn)) as board:
        record, merged = fit(
            layers,
            dataset,
            parts,
            job.request,
            start=before_vectors,
            observer=reporter,
            checkpoints=checkpoints,
            board=board,
        )
    reporter.warn(*negative_warnings(record, job.request, len(parts.train)))
    if record.not_taken:
        reporter.warn(f"{record.not_taken} of {len(record.losses)} steps left float16 and were not taken")

    reporter.state(State.EVALUATING)
    after_vectors = layers.embed_full_length()
    after = measure(dataset, parts, *after_vectors)
    general_after = measure_general(encoder, after_vectors[1][: dataset.documents], job.request.seed)
    forgetting = Forgetting(general_before, general_after)
    reporter.warn(*forgetting.warnings)
    results = Results(
        dataset=dataset,
        parts=parts,
        record=record,
        merged=merged,
        base=base,
        baseline=baseline,
        after=after,
        forgetting=forgetting,
        verdict=gate(baseline.evaluation, after, job.request.seed, baseline.name, forgetting.refusals),
    )

    folder = work_dir / "model"
    write_model(encoder, base_folder, folder)
    if settings.trainer.onnx:
        try:
            export_onnx(folder)
        except OnnxExportError as error:
            reporter.warn(str(error))
    ready = _ready(job, snapshot, encoder=encoder, folder=folder, results=results)
    seconds = {"until_trained": embedded_seconds, "training": record.seconds, "all": time.monotonic() - began}
    write_metrics(folder, results.metrics() | {"seconds": seconds})
    write_curve(folder, record.losses)
    write_recall(folder, baseline.evaluation.recall_curve(), after.recall_curve(), baseline=baseline.name)
    write_card(
        folder,
        ready,
        job.request,
        results,
        max_tokens=encoder.max_tokens,
        window=_window(snapshot),
        licence=licence(base_folder),
        folders=sum(part.folder_count for part in snapshot.manifest.parts),
        warnings=reporter.warnings,
    )
    publish_model(folder, ready, job, store, reporter)
    checkpoints.discard()


def fit(
    layers: TrainableEncoder,
    dataset: Dataset,
    parts: Split,
    request: FineTuneRequested,
    *,
    start: tuple[torch.Tensor, torch.Tensor],
    observer: ProgressListener,
    checkpoints: Checkpoints | None = None,
    board: TensorBoardLogger | None = None,
) -> tuple[TrainingRecord, WeightInterpolation | None]:
    """Train ``layers`` in place as ``train`` does, and leave them with the weights that validation says are best."""
    start_weights = layers.weights()
    validation = validation_of(layers, dataset, parts, request)
    record = train(
        layers,
        dataset,
        parts.train,
        request,
        start=start,
        observer=observer,
        validation=validation,
        checkpoints=checkpoints,
        board=board,
    )
    merged = interpolate_weights(layers, start_weights, validation, ndcg=max(record.validation)) if validation else None
    return record, merged


def embed(encoder: Encoder, dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of all questions and of all passages, up to the model's own length, on its device."""
    return (
        torch.from_numpy(encoder.encode(dataset.questions, "query")).to(encoder.device),
        torch.from_numpy(encoder.encode(dataset.passages, "passage")).to(encoder.device),
    )


def validation_of(
    layers: TrainableEncoder, dataset: Dataset, parts: Split, request: FineTuneRequested
) -> Validation | None:
    """What the training is steered by; None where there is too little to train on."""
    if not len(parts.validation):
        return None
    sampled = not cheap_to_embed_all(dataset, len(parts.train), request)
    return Validation(layers, dataset, parts.validation, sampled=sampled, seed=request.seed)


def measure(dataset: Dataset, parts: Split, queries: torch.Tensor, passages: torch.Tensor) -> Evaluation:
    """The held-out questions in all searchable passages."""
    held_out = torch.from_numpy(parts.held_out).to(queries.device)
    return evaluate(dataset, parts.held_out, queries[held_out], passages[: dataset.searchable])


def incumbent(
    job: TrainingJob, settings: Settings, store: ObjectStore, work_dir: Path, *, dataset: Dataset, parts: Split
) -> Baseline | None:
    """The model's newest promoted version, measured on the same questions; None for a first one."""
    latest = latest_model(job, store)
    if latest is None:
        return None
    reference = ModelReference(uri=latest.model_uri)
    folder = fetch_base_model(reference, settings.trainer, store, work_dir / "incumbent")
    evaluation = measure(dataset, parts, *embed(Encoder.load(folder), dataset))
    return Baseline(f"version {latest.version}", evaluation, latest.version)


def knob_warnings(request: FineTuneRequested, parts: Split) -> list[str]:
    """Knobs that fight the data."""
    examples, training = len(parts.train), request.training
    steps = training.epochs * -(-examples // training.batch_size)
    found = []
    if training.batch_size > examples:
        found.append(f"training.batch_size {training.batch_size} is larger than the {examples} examples to train on")
    if steps < MIN_STEPS:
        found.append(
            f"only {steps} steps: fewer than {MIN_STEPS} hardly change a model; more epochs or smaller batches"
        )
    if request.weights.temperature < MIN_TEMPERATURE:
        found.append(
            f"weights.temperature {request.weights.temperature} is under {MIN_TEMPERATURE}: it often makes worse"
        )
    return found


def negative_warnings(record: TrainingRecord, request: FineTuneRequested, examples: int) -> list[str]:
    """Negatives that were asked for and not found, in the first epoch of so many ``examples``."""
    wanted = request.dataset.hard_negatives * examples
    filled, missing = (record.negatives[0][count] for count in ("hard_filled_with_easy", "missing"))
    found = []
    if filled > FILLED_SHARE * wanted:
        found.append(f"{filled} of {wanted} hard negatives were not found, easy ones take their place")
    if missing:
        found.append(f"{missing} negatives are missing: too few of the documents drawn pass the filters")
    return found


def text_warnings(dataset: Dataset, layers: TrainableEncoder) -> list[str]:
    """Texts that the base model cannot read as they are meant, in numbers."""
    texts = len(dataset.questions) + len(dataset.passages)
    return [f"{count} of {texts} texts are {what}" for what, count in layers.text_warnings().items()]


def data_warnings(dataset: Dataset, parts: Split) -> list[str]:
    """What is little or odd about the data, in numbers."""
    groups = len(set(dataset.groups[parts.held_out].tolist()))
    found = [f"{count} examples left out: {reason}" for reason, count in sorted(dataset.left_out.items())]
    if not parts.judged:
        found.append(
            f"fewer than {MIN_JUDGED} questions were judged by people: the held-out ones rest on citations as well, "
            "and these favour the model in service"
        )
    if groups < MIN_GROUPS:
        found.append(f"{groups} held-out groups of questions; under {MIN_GROUPS} no model is promoted")
    return found


def _window(snapshot: Snapshot) -> tuple[datetime, datetime]:
    """First and last moment of its examples, of which there are some."""
    found: Any = pc.min_max(snapshot.examples.column("occurred_at")).as_py()
    return found["min"], found["max"]


def _ready(job: TrainingJob, snapshot: Snapshot, *, encoder: Encoder, folder: Path, results: Results) -> ModelReady:
    request = job.request
    return ModelReady(
        request_id=request.request_id,
        model=request.model,
        version=job.version,
        model_uri=job.output_uri,
        manifest_sha256=_PLACEHOLDER_DIGEST,
        base_model=job.base_model,
        parent_version=results.baseline.version,
        embedding_space_id=weights_digest(folder),
        dimension=encoder.dimension,
        normalized=encoder.encoding_config.normalize,
        requires_reindex=True,
        metrics_before=results.baseline.evaluation.metrics(),
        metrics_after=results.after.metrics(),
        gate=results.verdict,
        snapshot_uri=job.snapshot_uri,
        snapshot_sha256=job.snapshot_sha256,
        snapshot_offsets=tuple(offset for part in snapshot.manifest.parts for offset in part.offsets),
        training_seconds=results.record.seconds,
        published_at=now(),
    )
