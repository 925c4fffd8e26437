"""The wire contract: every event that foldtune reads or writes, as JSON on Kafka (UTF-8, times as RFC 3339 UTC).

Unknown fields are ignored on read, so a newer producer does not stop an older worker; wrong types are not coerced.
``docs/events.md`` and the JSON Schemas are made from these models.
"""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from foldtune.knobs import AgentId, DataSelection, DatasetKnobs, FolderId, ModelName, TrainingKnobs, WeightKnobs

SCHEMA_VERSION = 1
# An envelope with a mistake in it is read log by log.
MAX_ENVELOPE_LOGS = 5_000
# Of one log, whatever the configured bound: reading what is wrong with a hundred thousand takes seconds.
MAX_PASSAGES = 1_000

Id = Annotated[str, StringConstraints(min_length=1, max_length=256)]
REQUEST_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
RequestId = Annotated[str, StringConstraints(pattern=REQUEST_ID)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
WebAddress = Annotated[str, StringConstraints(pattern=r"^https://.+$", max_length=2000)]
S3Uri = Annotated[str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]{2,62}/.+$", max_length=1200)]


def _utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        msg = "lies outside the years 1 to 9999 in UTC"
        raise ValueError(msg) from None


UtcTime = Annotated[AwareDatetime, AfterValidator(_utc)]


def now() -> datetime:
    """The present moment, in UTC."""
    return datetime.now(UTC)


class Model(BaseModel):
    """What all parts of an event share."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class Event(Model):
    """A message of its own. A field may be added at any time; a changed meaning takes a new ``schema_version``."""

    schema_version: PositiveInt = SCHEMA_VERSION

    def encode(self) -> bytes:
        """The event as it goes on the wire."""
        return self.model_dump_json(exclude_none=True).encode()


# ── What the agent tells ─────────────────────────────────────────────────────────────────────────────────────────────


class RetrievedPassage(Model):
    """One passage that the retriever returned; ``text`` is needed only where no ``documents`` event carries it."""

    document_id: Id
    folder_id: FolderId
    rank: PositiveInt
    score: FiniteFloat | None = None
    text: str | None = None


class Rating(StrEnum):
    """A user's thumb."""

    LIKE = "like"
    DISLIKE = "dislike"


class Verdict(Model):
    """What a user thought of an answer: a thumb, or the document that would have been right, or both."""

    rating: Rating | None = None
    correct_document_id: Id | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.rating is None and self.correct_document_id is None:
            msg = "one of rating and correct_document_id is needed"
            raise ValueError(msg)
        return self


class ChatLog(Event):
    """One answered question. It belongs to the folder of the cited document, else to that of the top passage."""

    type: Literal["chat_log"] = "chat_log"
    log_id: Id
    occurred_at: UtcTime
    agent_id: AgentId
    conversation_id: Id | None = None
    user_id: Id | None = Field(None, description="A pseudonym, never a name or an address")
    question: Annotated[str, StringConstraints(min_length=1)]
    answer: str | None = None
    folder_id: FolderId
    retrieved: Annotated[tuple[RetrievedPassage, ...], Field(max_length=MAX_PASSAGES), FailFast()] = ()
    cited_document_ids: Annotated[tuple[Id, ...], Field(max_length=MAX_PASSAGES), FailFast()] = ()
    feedback: Verdict | None = None


class ChatLogBatch(Event):
    """Many logs of one folder in one message. Each log stands alone: a bad one does not spoil its neighbours."""

    type: Literal["chat_log_batch"] = "chat_log_batch"
    folder_id: FolderId
    logs: Annotated[tuple[ChatLog, ...], Field(min_length=1, max_length=MAX_ENVELOPE_LOGS)]


class Feedback(Event):
    """A verdict on an earlier (or not yet seen) log; the newest one of a log counts."""

    type: Literal["feedback"] = "feedback"
    feedback_id: Id
    occurred_at: UtcTime
    log_id: Id
    folder_id: FolderId = Field(description="The folder of the log, even where the named document lives elsewhere")
    verdict: Verdict


class DocumentUpserted(Event):
    """The text of one passage, new or changed."""

    type: Literal["document_upserted"] = "document_upserted"
    document_id: Id
    folder_id: FolderId
    occurred_at: UtcTime
    title: str = ""
    text: Annotated[str, StringConstraints(min_length=1)]


class DocumentDeleted(Event):
    """A passage that is gone; examples whose positive it was go with it."""

    type: Literal["document_deleted"] = "document_deleted"
    document_id: Id
    folder_id: FolderId
    occurred_at: UtcTime


class ErasureRequested(Event):
    """Everything that carries the named identity must leave the state, its changelog and later snapshots."""

    type: Literal["erasure_requested"] = "erasure_requested"
    erasure_id: Id
    occurred_at: UtcTime
    subject: Literal["user", "log", "conversation", "document"]
    subject_id: Id


# ── What is asked, and what becomes of it ────────────────────────────────────────────────────────────────────────────


class ModelReference(Model):
    """A base model: ``hf://ORG/NAME`` (with ``revision``), ``file:///FOLDER`` or ``s3://BUCKET/PREFIX``."""

    uri: Annotated[str, StringConstraints(pattern=r"^(hf|file|s3)://.+$", max_length=1200)]
    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,128}$")] | None = None
    weights_sha256: Sha256 | None = Field(None, description="Digest that model.safetensors must have")


class FineTuneRequested(Event):
    """Asks for one fine-tuned model. The same ``request_id`` again is answered with what became of the first."""

    type: Literal["fine_tune_requested"] = "fine_tune_requested"
    request_id: RequestId
    model: ModelName
    requested_at: UtcTime
    requested_by: Id = "unknown"
    origin: Literal["person", "api", "policy"] = "api"
    base_model: ModelReference | None = Field(None, description="Without it, the worker's configured base model")
    data: DataSelection = DataSelection()
    dataset: DatasetKnobs = DatasetKnobs()
    training: TrainingKnobs = TrainingKnobs()
    weights: WeightKnobs = WeightKnobs()
    seed: NonNegativeInt = 0


class FineTuneCancelled(Event):
    """Takes a request back, wherever it is."""

    type: Literal["fine_tune_cancelled"] = "fine_tune_cancelled"
    request_id: RequestId
    model: ModelName
    requested_at: UtcTime
    requested_by: Id = "unknown"


class State(StrEnum):
    """The stations of a request. Each request ends in exactly one terminal state."""

    ACCEPTED = "accepted"
    WAITING = "waiting"
    SNAPSHOTTING = "snapshotting"
    SUBMITTED = "submitted"
    RUNNING = "running"
    EVALUATING = "evaluating"
    COMPLETED = "completed"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether nothing follows."""
        return self in {State.COMPLETED, State.REJECTED, State.FAILED, State.CANCELLED}


class Progress(Model):
    """Where a running training stands."""

    step: NonNegativeInt
    steps: PositiveInt
    loss: FiniteFloat
    examples_per_second: FiniteFloat
    eta_seconds: FiniteFloat


class FineTuneStatus(Event):
    """What became of a request so far. Keyed by request, partitioned by model name, so a model's story is in order."""

    type: Literal["fine_tune_status"] = "fine_tune_status"
    request_id: RequestId
    model: ModelName
    state: State
    at: UtcTime
    reasons: tuple[str, ...] = Field((), description="Why it was rejected or failed: each names a field and a bound")
    warnings: tuple[str, ...] = ()
    retryable: bool = False
    progress: Progress | None = None
    model_uri: S3Uri | None = None
    promoted: bool | None = Field(None, description="Once completed: whether the gate let the model through")
    log_uri: S3Uri | None = None
    log_url: WebAddress | None = Field(None, description="The page of the run's log, where its launcher has one")


# ── Between the parts ────────────────────────────────────────────────────────────────────────────────────────────────


class TopicOffset(Model):
    """Everything below ``offset`` of a partition is in, and nothing from there on but erasures."""

    topic: str
    partition: NonNegativeInt
    offset: NonNegativeInt


class SnapshotCommand(Event):
    """Tells the owner of one partition to export what the request selects there."""

    type: Literal["snapshot_command"] = "snapshot_command"
    request: FineTuneRequested
    partition: NonNegativeInt
    issued_at: UtcTime


class TrainingFinished(Event):
    """Tells the owner of one partition that what the request's snapshot held has been learnt from."""

    type: Literal["training_finished"] = "training_finished"
    request_id: RequestId
    model: ModelName


class FolderCount(Model):
    """What a snapshot holds of one folder."""

    folder_id: FolderId
    examples: NonNegativeInt
    documents: NonNegativeInt


class SnapshotFile(Model):
    """One immutable object of a snapshot."""

    uri: S3Uri
    sha256: Sha256
    rows: NonNegativeInt


class SnapshotPart(Event):
    """One partition's share of a snapshot, or why there is none."""

    type: Literal["snapshot_part"] = "snapshot_part"
    request_id: RequestId
    model: ModelName
    partition: NonNegativeInt
    examples: SnapshotFile | None = None
    documents: SnapshotFile | None = None
    folders: tuple[FolderCount, ...] = Field((), description="Of the folders that the request names, those here")
    folder_count: NonNegativeInt = Field(0, description="Folders here that the request selects, named or not")
    positives: NonNegativeInt = Field(0, description="Examples that name a passage which is right")
    agents: tuple[AgentId, ...] = Field((), description="Of the requested agents, those that have logs here")
    offsets: tuple[TopicOffset, ...] = ()
    left_out: dict[str, NonNegativeInt] = Field({}, description="Logs that made no example, by reason")
    seconds: NonNegativeFloat = Field(0.0, description="What the export took")
    store_seconds: NonNegativeFloat = Field(0.0, description="What of that was spent on the object store")
    error: str | None = None


class SnapshotManifest(Event):
    """A whole snapshot: what a training job reads, and exactly which events it was made of."""

    type: Literal["snapshot_manifest"] = "snapshot_manifest"
    request_id: RequestId
    model: ModelName
    created_at: UtcTime
    parts: tuple[SnapshotPart, ...]

    @property
    def examples(self) -> int:
        """Examples in all parts."""
        return sum(part.examples.rows for part in self.parts if part.examples)

    @property
    def documents(self) -> int:
        """Documents in all parts."""
        return sum(part.documents.rows for part in self.parts if part.documents)


class TrainingProgressed(Event):
    """How many labelled logs of one partition the model has not been trained on yet."""

    type: Literal["training_progressed"] = "training_progressed"
    model: ModelName
    partition: NonNegativeInt
    new_examples: NonNegativeInt
    trained_request_id: RequestId | None = None


# How long after the deadline of all its attempts the end of a job must have been reported.
REPORTING_TIME = timedelta(hours=1)


class TrainingJob(Event):
    """All that a launcher, or a person, needs to run the training, now or again."""

    type: Literal["training_job"] = "training_job"
    request: FineTuneRequested
    base_model: ModelReference
    snapshot_uri: S3Uri
    snapshot_sha256: Sha256
    output_uri: S3Uri = Field(description="Prefix of the model's artifacts, manifest.json last")
    version: str
    published_at: UtcTime
    max_seconds: PositiveInt
    warnings: tuple[str, ...] = ()


# ── What comes out ───────────────────────────────────────────────────────────────────────────────────────────────────


class RetrievalMetrics(Model):
    """Means over the held-out questions, each searched for in the snapshot's documents."""

    recall_at_1: FiniteFloat
    recall_at_5: FiniteFloat
    recall_at_10: FiniteFloat
    mrr_at_10: FiniteFloat
    ndcg_at_10: FiniteFloat
    questions: NonNegativeInt
    documents: NonNegativeInt


class GateVerdict(Model):
    """Whether the new model may replace the incumbent, and why."""

    promote: bool
    reasons: tuple[str, ...]
    ndcg_gain: FiniteFloat
    ndcg_gain_interval: tuple[FiniteFloat, FiniteFloat] = Field(description="95% paired bootstrap interval")


def _safe_relative(path: str) -> str:
    """Refuse what could name a file outside of the folder that it is unpacked into."""
    if "\\" in path or "\0" in path or ":" in path or any(part in {"", ".", ".."} for part in path.split("/")):
        msg = f"not a relative path below the manifest's folder: {path!r}"
        raise ValueError(msg)
    return path


class ManifestFile(Model):
    """One file of a model. A reader checks size and digest before it uses any."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=512), AfterValidator(_safe_relative)] = Field(
        description="Relative to the manifest, with forward slashes"
    )
    sha256: Sha256
    bytes: NonNegativeInt


class ModelManifest(Event):
    """``manifest.json``, written last: a model without it is not there."""

    type: Literal["model_manifest"] = "model_manifest"
    files: Annotated[tuple[ManifestFile, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_file_once(self) -> Self:
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths):
            msg = "a file is named twice"
            raise ValueError(msg)
        return self


class ModelReady(Event):
    """A model is on S3 and has passed the gate. Whether and when it serves is the subscriber's decision."""

    type: Literal["model_ready"] = "model_ready"
    request_id: RequestId
    model: ModelName
    version: str = Field(description="Sorts in the order of publication")
    model_uri: S3Uri
    manifest_sha256: Sha256
    base_model: ModelReference
    parent_version: str | None = None
    embedding_space_id: str = Field(description="Embeddings with equal ids may be compared")
    dimension: PositiveInt
    normalized: bool
    requires_reindex: bool = Field(description="Whether documents must be embedded again")
    metrics_before: RetrievalMetrics
    metrics_after: RetrievalMetrics
    gate: GateVerdict
    snapshot_uri: S3Uri
    snapshot_sha256: Sha256
    snapshot_offsets: tuple[TopicOffset, ...]
    training_seconds: FiniteFloat
    published_at: UtcTime


EVENTS: tuple[type[Event], ...] = (
    ChatLog,
    ChatLogBatch,
    Feedback,
    DocumentUpserted,
    DocumentDeleted,
    ErasureRequested,
    FineTuneRequested,
    FineTuneCancelled,
    FineTuneStatus,
    SnapshotCommand,
    TrainingFinished,
    SnapshotPart,
    SnapshotManifest,
    TrainingProgressed,
    TrainingJob,
    ModelManifest,
    ModelReady,
)


def json_schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of every event, by its ``type``."""
    return {event.model_fields["type"].default: event.model_json_schema() for event in EVENTS}
