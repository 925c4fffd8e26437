"""The fine-tuning recipe, from the snapshot to the published model, step by step."""

import json
import os
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from foldtune.client.deployment import download_files
from foldtune.errors import ModelFileError, ObjectMissingError, ObjectStoreRefusedError
from foldtune.events import FineTuneRequested, ModelReady, ModelReference, State, TrainingJob, TrainingWork, now
from foldtune.object_keys import MANIFEST
from foldtune.object_store import ObjectStore
from foldtune.settings import Settings
from trainers.data.dataset import MIN_JUDGED, Dataset, Split, build_dataset, split, with_older_share
from trainers.data.snapshot import Snapshot, read_snapshot
from trainers.engine.trainable_encoder import TrainableEncoder, affordable_tokens
from trainers.errors import ImpossibleJobError, OnnxExportError
from trainers.evaluation.evaluation_set import EvaluationSet, Measures, embed
from trainers.evaluation.forgetting import forgotten, read_general_questions
from trainers.evaluation.gate import MIN_GROUPS, gate
from trainers.evaluation.non_inferiority import NonInferiority
from trainers.evaluation.other_folders import OtherFolders
from trainers.loop.checkpoints import Checkpoints
from trainers.loop.tensorboard import TensorBoardLogger
from trainers.loop.training import NEAR_IN_BATCH, ProgressListener, TrainingRecord, cheap_to_embed_all, train
from trainers.loop.validation import Validation, WeightInterpolation, interpolate_weights
from trainers.model.base_models import fetch_base_model, licence, weights_digest
from trainers.model.encoder import Encoder
from trainers.publishing.artifacts import (
    write_card,
    write_loss_curve,
    write_metrics,
    write_model,
    write_other_folders,
    write_recall_curve,
)
from trainers.publishing.evaluation_table import write_evaluation
from trainers.publishing.model_publisher import incumbent_model, publish_model
from trainers.publishing.onnx_export import export_onnx
from trainers.publishing.reporting import Reporter
from trainers.publishing.results import Baseline, Results, Started

MIN_STEPS = 50
MIN_TEMPERATURE = 0.01
# In any data, a few questions have no hard negatives left; above this share it is worth a warning.
MAX_FILLED_SHARE = 0.1
# Above this share of examples with one and the same positive, finding it always looks like learning.
MAX_SAME_POSITIVE = 0.5
# Of an error's text in a warning; it may quote a whole file.
MAX_REASON = 500
_PLACEHOLDER_DIGEST = "0" * 64
_UNREADABLE = (ImpossibleJobError, ModelFileError, ObjectMissingError, ObjectStoreRefusedError, ValueError)


def produce_model(
    job: TrainingJob,
    settings: Settings,
    store: ObjectStore,
    reporter: Reporter,
    work_dir: Path,
) -> None:
    """Train, evaluate and publish the model of ``job``.

    Raises:
        ImpossibleJobError: the data, the base model or the knobs do not allow a training.
        InterruptedTrainingError: the process received SIGTERM; the job resumes from its checkpoint.
    """
    # 1. Data, base model and incumbent; what the new model starts from and is compared with.
    began, seed = time.monotonic(), job.request.seed
    reporter.publish_state(State.RUNNING)
    prepared = prepare(job, settings, store, reporter, work_dir)
    measured_on, encoder, baseline = prepared.measured_on, prepared.encoder, prepared.baseline
    dataset, parts, started_from = measured_on.dataset, measured_on.parts, prepared.started_from
    seconds_until_training = time.monotonic() - began

    # 2. Training, and the choice of weights.
    checkpoints = Checkpoints(
        job,
        store,
        settings.trainer.checkpoint_interval,
        reporter.warn,
        weights_sha256=prepared.weights_sha256,
    )
    with closing(TensorBoardLogger(settings.trainer.tensorboard_dir, job, reporter.warn)) as tensorboard:
        record, interpolation = fit(
            prepared.trainable,
            dataset,
            parts,
            job.request,
            start=prepared.vectors,
            listener=reporter,
            checkpoints=checkpoints,
            tensorboard=tensorboard,
        )
    encoder.round_weights()
    reporter.warn(*training_warnings(record, job.request, len(parts.train)))

    # 3. Evaluation and gate.
    trained_at = time.monotonic()
    reporter.publish_state(State.EVALUATING)
    after = measured_on.measure(encoder, *prepared.trainable.embed_full_length())
    lost = find_losses(measured_on, prepared.base, baseline, after, settings.trainer.max_loss)
    reporter.warn(*(warning for loss in lost for warning in loss.warnings))
    verdict = gate(
        baseline.measures.held_out,
        after.held_out,
        seed,
        min_gain=settings.trainer.min_gain,
        baseline=baseline.name,
        refusals=[refusal for loss in lost for refusal in loss.refusals],
    )
    results = Results(
        measured_on, record, interpolation, started_from, prepared.base, baseline, after, lost, verdict, seed
    )

    # 4. Artifacts.
    folder = work_dir / "model"
    write_model(encoder, folder)
    if settings.trainer.onnx:
        try:
            export_onnx(folder)
        except OnnxExportError as error:
            reporter.warn(str(error))
    seconds = _seconds(seconds_until_training, record.seconds, time.monotonic() - trained_at)
    ready = _model_ready(
        job,
        prepared.snapshot,
        encoder=encoder,
        folder=folder,
        results=results,
        seconds=seconds,
        hourly_price=settings.trainer.hourly_price,
    )
    labels = Counter(map(str, prepared.snapshot.examples.column("label").to_pylist()))
    window = _time_range(prepared.snapshot)
    origin = {
        "release": version("foldtune"),
        "labels": dict(sorted(labels.items())),
        "logs": [moment.isoformat() for moment in window],
    }
    tokens = prepared.trainable.max_tokens
    write_metrics(folder, results.metrics() | origin | {"seconds": seconds, "training_tokens": tokens})
    write_evaluation(folder, prepared.snapshot, results)
    write_other_folders(folder, results.other_folders())
    write_loss_curve(folder, record.losses)
    write_recall_curve(
        folder, baseline.measures.held_out.recall_curve(), after.held_out.recall_curve(), baseline=baseline.name
    )
    write_card(
        folder,
        ready,
        job.request,
        results,
        encoder=encoder,
        training_tokens=tokens,
        window=window,
        licence=licence(prepared.base_folder),
        folders=sum(part.folder_count for part in prepared.snapshot.manifest.parts),
        labels=labels,
        warnings=reporter.warnings,
    )

    # 5. Publication.
    publish_model(folder, ready, job, store, reporter)
    checkpoints.discard()


@dataclass(frozen=True)
class Prepared:
    """What a training needs. ``vectors`` are embeddings by ``encoder`` before it, which ``trainable`` trains, and
    ``weights_sha256`` the digest of its weights then.

    ``base`` is the base model, ``baseline`` what the new model has to beat.
    """

    snapshot: Snapshot
    base_folder: Path
    measured_on: EvaluationSet
    encoder: Encoder
    weights_sha256: str
    trainable: TrainableEncoder
    vectors: tuple[torch.Tensor, torch.Tensor]
    started_from: Started
    base: Baseline
    baseline: Baseline


def prepare(job: TrainingJob, settings: Settings, store: ObjectStore, reporter: Reporter, work_dir: Path) -> Prepared:
    """Read data, base model and incumbent, and measure both; raises like ``produce_model``."""
    request, seed = job.request, job.request.seed
    general = read_general_questions(settings.trainer.general_questions, store)
    snapshot = read_snapshot(store, job.snapshot_uri, job.snapshot_sha256)
    dataset = build_dataset(snapshot.examples, snapshot.documents)
    parts = split(dataset)
    base_folder = fetch_base_model(job.base_model, settings.trainer, store, work_dir)
    encoder = Encoder.load(base_folder)
    incumbent = load_incumbent(job, store, reporter, work_dir)
    start = choose_start(job, incumbent, reporter)
    if start:
        parts = with_older_share(dataset, parts, start.snapshot_at, request.training.older_share, seed)
    reporter.warn(*knob_warnings(request, parts), *data_warnings(dataset, parts))
    measured_on = EvaluationSet(dataset, parts, general, OtherFolders.of(snapshot, dataset), seed)
    base_measures = measured_on.measure(encoder, *embed(encoder, dataset)) if start else None
    if start and start.encoder:
        encoder = start.encoder
    layers, max_tokens = request.training.trainable_layers, request.training.max_tokens
    max_tokens = max_tokens or affordable_tokens(encoder, dataset)
    trainable = TrainableEncoder(encoder, dataset, layers, work_dir, max_tokens=max_tokens)
    if not trainable.cached and isinstance(layers, int):
        reporter.warn(f"the frozen layers of a {encoder.transformer.config.model_type} model are not cached: slower")
    reporter.warn(*encoder.warnings(), *trainable.text_warnings())
    vectors = trainable.embed_full_length()
    measures = measured_on.measure(encoder, *vectors)
    base = Baseline("the base model", base_measures or measures)
    if start:
        baseline, started_from = Baseline(start.name, measures, start.version), Started(start.name, start.version)
    else:
        baseline = measure_incumbent(incumbent, reporter, base=base, measured_on=measured_on)
        started_from = Started(base.name)
    return Prepared(
        snapshot,
        base_folder,
        measured_on,
        encoder,
        weights_digest(encoder.folder),
        trainable,
        vectors,
        started_from,
        base,
        baseline,
    )


def fit(
    encoder: TrainableEncoder,
    dataset: Dataset,
    parts: Split,
    request: FineTuneRequested,
    *,
    start: tuple[torch.Tensor, torch.Tensor],
    listener: ProgressListener,
    checkpoints: Checkpoints | None = None,
    tensorboard: TensorBoardLogger | None = None,
) -> tuple[TrainingRecord, WeightInterpolation | None]:
    """``train`` the encoder in place and, with validation, interpolate its weights with those before."""
    start_weights = encoder.weights()
    validation = create_validation(encoder, dataset, parts, request)
    record = train(
        encoder,
        dataset,
        parts.train,
        request,
        start=start,
        listener=listener,
        validation=validation,
        checkpoints=checkpoints,
        tensorboard=tensorboard,
    )
    if validation is None:
        return record, None
    return record, interpolate_weights(encoder, start_weights, validation, ndcg=max(record.validation))


def create_validation(
    encoder: TrainableEncoder, dataset: Dataset, parts: Split, request: FineTuneRequested
) -> Validation | None:
    """The validation by which epoch and weights are chosen; None if the split has no validation questions."""
    if not len(parts.validation):
        return None
    sampled = not cheap_to_embed_all(dataset, len(parts.train), request)
    return Validation(encoder, dataset, parts.validation, sampled=sampled, seed=request.seed)


def find_losses(
    measured_on: EvaluationSet, base: Baseline, baseline: Baseline, after: Measures, margin: float
) -> list[NonInferiority]:
    """General knowledge compared with the base model, and folders that the request does not name with the baseline."""
    seed = measured_on.seed
    lost = forgotten(measured_on.general, base.measures.general, after.general, margin=margin, seed=seed)
    if (before := baseline.measures.others) and after.others:
        problem = f"worse than {baseline.name} on"
        lost.append(NonInferiority("folders not trained on", problem, before, after.others, margin, seed))
    return lost


@dataclass(frozen=True)
class Incumbent:
    """The newest promoted version that nobody has rejected; ``encoder`` is None if it cannot be read."""

    name: str
    version: str
    encoder: Encoder | None
    # In seconds since 1970: its training knew no later logs.
    snapshot_at: float = 0.0
    base_model: ModelReference | None = None


def load_incumbent(job: TrainingJob, store: ObjectStore, reporter: Reporter, work_dir: Path) -> Incumbent | None:
    """The incumbent, if there is one. One that cannot be read is a warning: no later version would ever replace it."""
    name = "the newest promoted version"
    try:
        found = incumbent_model(job, store)
        if found is None:
            return None
        name = f"version {found.version}"
        folder = work_dir / "incumbent"
        folder.mkdir()
        download_files(found.model_uri, found.manifest_sha256, store, folder)
        return Incumbent(name, found.version, Encoder.load(folder), *_origin(folder / MANIFEST))
    except _UNREADABLE as error:
        reporter.warn(_unreadable(name, error))
        return Incumbent(name, "", None)


def choose_start(job: TrainingJob, incumbent: Incumbent | None, reporter: Reporter) -> Incumbent | None:
    """What the training starts from: the incumbent if the request says so and there is one that has come from the same
    base model, which the new model would else be called after; None for the base model.
    """
    if job.request.training.start == "base":
        return None
    if incumbent is None:
        why = "there is none"
    elif incumbent.encoder is None:
        why = f"{incumbent.name} cannot be read"
    elif incumbent.base_model and not _same_model(incumbent.base_model, job.base_model):
        why = f"{incumbent.name} has come from another base model, {incumbent.base_model.uri}"
    else:
        return incumbent
    reporter.warn(f"training.start is incumbent, and {why}: started from the base model")
    return None


def _same_model(one: ModelReference, other: ModelReference) -> bool:
    if one.weights_sha256 and other.weights_sha256:
        return one.weights_sha256 == other.weights_sha256
    return (one.uri, one.revision) == (other.uri, other.revision)


def measure_incumbent(
    incumbent: Incumbent | None, reporter: Reporter, *, base: Baseline, measured_on: EvaluationSet
) -> Baseline:
    """The incumbent measured on the same questions as ``base``, which stands for one that cannot be read."""
    if incumbent is None:
        return base
    if encoder := incumbent.encoder:
        try:
            vectors = embed(encoder, measured_on.dataset)
            return Baseline(incumbent.name, measured_on.measure(encoder, *vectors), incumbent.version)
        except _UNREADABLE as error:
            reporter.warn(_unreadable(incumbent.name, error))
    return Baseline(f"{base.name} ({incumbent.name} cannot be read)", base.measures)


def _unreadable(name: str, error: Exception) -> str:
    return f"{name} cannot be read, the new model is compared with the base model only: {error}"[:MAX_REASON]


def _origin(manifest: Path) -> tuple[float, ModelReference | None]:
    """When the snapshot of a published model was requested (of releases up to 0.1, when it was published), and its base
    model.
    """
    ready = json.loads(manifest.read_bytes()).get("ready") or {}
    at, base = ready.get("snapshot_at") or ready.get("published_at"), ready.get("base_model")
    return datetime.fromisoformat(at).timestamp() if at else 0.0, base and ModelReference.model_validate(base)


def knob_warnings(request: FineTuneRequested, parts: Split) -> list[str]:
    """Warnings about knobs that do not suit the data."""
    examples, training = len(parts.train), request.training
    steps = training.steps(examples)
    warnings = []
    if training.batch_size > examples:
        warnings.append(f"training.batch_size {training.batch_size} is larger than the {examples} training examples")
    if steps < MIN_STEPS:
        warnings.append(
            f"only {steps} steps: fewer than {MIN_STEPS} hardly change a model; use more epochs or smaller batches"
        )
    if request.weights.temperature < MIN_TEMPERATURE:
        warnings.append(
            f"weights.temperature {request.weights.temperature} is below {MIN_TEMPERATURE}, which often harms the model"
        )
    if request.dataset.exclusion_threshold == 0:
        warnings.append("dataset.exclusion_threshold 0 leaves no negatives, so nothing is learned")
    return warnings


def data_warnings(dataset: Dataset, parts: Split) -> list[str]:
    """Warnings about few or unusable data, with numbers."""
    groups = len(set(dataset.groups[parts.held_out].tolist()))
    warnings = [f"{count} examples left out: {reason}" for reason, count in sorted(dataset.left_out.items())]
    if dataset.changed_impressions:
        warnings.append(
            f"{dataset.changed_impressions} passages of logs are no negatives: their text has changed since"
        )
    if (most := int(np.bincount(dataset.positive).max())) > MAX_SAME_POSITIVE * len(dataset.positive):
        warnings.append(
            f"{most} of {len(dataset.positive)} examples have the same passage as their positive: a model that "
            "finds it for every question counts as better"
        )
    if not parts.judged:
        warnings.append(
            f"fewer than {MIN_JUDGED} held-out questions have human feedback: their labels include citations, "
            "which favour the model in service"
        )
    if groups < MIN_GROUPS:
        warnings.append(f"{groups} held-out groups of questions; under {MIN_GROUPS} no model is promoted")
    return warnings


def training_warnings(record: TrainingRecord, request: FineTuneRequested, examples: int) -> list[str]:
    """Warnings about skipped steps, and about negatives that could not be found for the first epoch's ``examples``."""
    requested = request.dataset.hard_negatives * examples
    filled, missing = (record.negatives[0][count] for count in ("hard_filled_with_easy", "missing"))
    warnings = []
    if filled > MAX_FILLED_SHARE * requested:
        warnings.append(f"{filled} of {requested} hard negatives were not found and are replaced by easy ones")
    if missing:
        warnings.append(f"{missing} negatives are missing: too few of the sampled documents pass the filters")
    near = record.negatives[0].get(NEAR_IN_BATCH, 0)
    if near > MAX_FILLED_SHARE * examples:
        warnings.append(
            f"{near} pairs of a question and a near-copy of its positive met in a batch, and taught nothing"
        )
    if record.skipped_steps:
        steps = len(record.losses)
        warnings.append(f"{record.skipped_steps} of {steps} steps were skipped: their gradients exceeded float16")
    return warnings


def _time_range(snapshot: Snapshot) -> tuple[datetime, datetime]:
    """Time of the first and of the last example, of which there is at least one."""
    extremes: Any = pc.min_max(snapshot.examples.column("occurred_at")).as_py()
    return extremes["min"], extremes["max"]


def _seconds(until_trained: float, training: float, evaluation: float) -> dict[str, float]:
    parts = {"until_trained": until_trained, "training": training, "evaluation": evaluation}
    return parts | {"all": sum(parts.values())}


def _model_ready(
    job: TrainingJob,
    snapshot: Snapshot,
    *,
    encoder: Encoder,
    folder: Path,
    results: Results,
    seconds: dict[str, float],
    hourly_price: float | None,
) -> ModelReady:
    """The completion event, with a placeholder for the digest of the manifest that contains it."""
    request = job.request
    return ModelReady(
        request_id=request.request_id,
        model=request.model,
        version=job.version,
        model_uri=job.output_uri,
        manifest_sha256=_PLACEHOLDER_DIGEST,
        base_model=job.base_model,
        parent_version=results.started_from.version,
        compared_with=results.baseline.version,
        embedding_space_id=weights_digest(folder),
        dimension=encoder.dimension,
        normalized=encoder.normalized,
        requires_reindex=not results.after.has_index_of(results.baseline.measures),
        metrics_before=results.baseline.measures.held_out.metrics(),
        metrics_after=results.after.held_out.metrics(),
        gate=results.verdict,
        snapshot_uri=job.snapshot_uri,
        snapshot_sha256=job.snapshot_sha256,
        snapshot_offsets=tuple(offset for part in snapshot.manifest.parts for offset in part.offsets),
        snapshot_at=snapshot.manifest.created_at,
        training_seconds=results.record.seconds,
        seconds=seconds,
        cost_dollars=hourly_price * seconds["all"] / 3600 if hourly_price else None,
        work=TrainingWork(
            steps=len(results.record.losses),
            examples=examples_read(len(results.record.losses), len(results.measured_on.parts.train), request),
            trainable_layers=str(request.training.trainable_layers),
            machine=_machine(encoder.device),
        ),
        published_at=now(),
    )


def examples_read(steps: int, examples: int, request: FineTuneRequested) -> int:
    """How many examples so many steps read; the last step of an epoch may have fewer than a batch."""
    epochs, others = divmod(steps, -(-examples // request.training.batch_size))
    return epochs * examples + others * request.training.batch_size


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    return f"{os.cpu_count()} CPUs"
