"""The wire contract: every event that foldtune publishes or consumes, as JSON on Kafka (UTF-8, RFC 3339 times in UTC).

Unknown fields are ignored on read, so that a newer producer does not stop an older worker; types are not coerced.
``docs/events.md`` and the JSON Schemas are generated from these models.
"""

import hashlib
import json
from datetime import UTC, date, datetime, timedelta
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
    PositiveInt,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from foldtune.excerpts import bounded, excerpt
from foldtune.knobs import (
    MAX_NAMED,
    AgentId,
    DataSelection,
    DatasetKnobs,
    FolderId,
    ModelName,
    TrainingKnobs,
    WeightKnobs,
)
from foldtune.policy import MAX_RULES, Rule, RuleName, check_rules

SCHEMA_VERSION = 1
# A batch with an invalid log is decoded log by log, which takes time.
MAX_ENVELOPE_LOGS = 5_000
# Per log, whatever the configured bound: validating a hundred thousand invalid passages takes seconds.
MAX_PASSAGES = 1_000

Id = Annotated[str, StringConstraints(min_length=1, max_length=256)]
MODEL_URI = r"^(hf|file|s3)://.+$"
BUCKET = r"^[a-z0-9][a-z0-9.-]{2,62}$"
REQUEST_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
RequestId = Annotated[str, StringConstraints(pattern=REQUEST_ID)]
VersionName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
# Of a model, in a job; older ones are not in question any more.
MAX_REJECTED = 1_000
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Arrow, Parquet and Kafka's offsets have 64 bits.
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
WebAddress = Annotated[str, StringConstraints(pattern=r"^https://.+$", max_length=2000)]
S3Uri = Annotated[str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]{2,62}/.+$", max_length=1200)]


def _utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        msg = "lies outside the years 1 to 9999 in UTC"
        raise ValueError(msg) from None


# Whoever writes them, they are cut and not refused: a status must not be lost for its reasons.
Reasons = Annotated[tuple[str, ...], AfterValidator(bounded)]
UtcTime = Annotated[AwareDatetime, AfterValidator(_utc)]


def now() -> datetime:
    """The current time, in UTC."""
    return datetime.now(UTC)


class Model(BaseModel):
    """Base of events and their parts."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class Event(Model):
    """One Kafka message. Fields may be added at any time; a changed meaning takes a new ``schema_version``, which an
    older release refuses instead of misunderstanding it.
    """

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION

    def encode(self) -> bytes:
        """The event as JSON in UTF-8, without absent fields."""
        return self.model_dump_json(exclude_none=True).encode()


class EventType(BaseModel):
    """Only the ``type`` of an event, from which a reader selects the model that decodes it."""

    type: str = ""


# ── Published by the agent ───────────────────────────────────────────────────────────────────────────────────────────


class RetrievedPassage(Model):
    """One passage that the retriever returned; ``text`` is needed only for a passage without a ``documents`` event."""

    document_id: Id
    folder_id: FolderId
    rank: PositiveInt
    score: FiniteFloat | None = None
    text: str | None = None


class Rating(StrEnum):
    """Thumbs up or down."""

    LIKE = "like"
    DISLIKE = "dislike"


class Verdict(Model):
    """A user's judgement of an answer: a rating, the document that would have been right, or both.

    With neither, and a ``rating`` that is given as null, it takes back what was said before.
    """

    # Not strict: an agent may write "like", as in an event's JSON.
    rating: Annotated[Rating, Field(strict=False)] | None = Field(
        None, description="An explicit null, without `correct_document_id`, takes the verdict back"
    )
    correct_document_id: Id | None = None
    correct_folder_id: FolderId | None = Field(
        None, description="The folder of `correct_document_id`; needed where several folders have that id"
    )

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        # Not an empty verdict: a misspelt field must not take anything back.
        if self.correct_document_id is None and "rating" not in self.model_fields_set:
            msg = "one of rating and correct_document_id is needed"
            raise ValueError(msg)
        if self.correct_folder_id is not None and self.correct_document_id is None:
            msg = "correct_folder_id needs correct_document_id"
            raise ValueError(msg)
        return self

    @property
    def is_retraction(self) -> bool:
        """Whether it takes the verdict back."""
        return self.rating is None and self.correct_document_id is None

    @model_serializer(mode="wrap")
    def _with_its_null(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # ``Event.encode`` leaves out what is None, which is all that a retraction says.
        return serialize(self) or {"rating": None}


def _none_if_retracted(verdict: Verdict | None) -> Verdict | None:
    return None if verdict is None or verdict.is_retraction else verdict


class ChatLog(Event):
    """One answered question. It belongs to ``folder_id``; the SDK publishes a copy to the folder of each cited
    document, else to that of the top passage, as other producers should.
    """

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
    feedback: Annotated[Verdict | None, AfterValidator(_none_if_retracted)] = None


class ChatLogBatch(Event):
    """Many logs of one folder in one message. Each is validated by itself: only the invalid ones are rejected."""

    type: Literal["chat_log_batch"] = "chat_log_batch"
    folder_id: FolderId
    logs: Annotated[tuple[ChatLog, ...], Field(min_length=1, max_length=MAX_ENVELOPE_LOGS)]


class Feedback(Event):
    """A verdict on a log, which may arrive later; the newest verdict of a log counts."""

    type: Literal["feedback"] = "feedback"
    feedback_id: Id
    occurred_at: UtcTime
    log_id: Id
    folder_id: FolderId = Field(description="The folder of the log, even if the correct document is in another")
    verdict: Verdict


class DocumentUpserted(Event):
    """A new or changed passage, with its whole text."""

    type: Literal["document_upserted"] = "document_upserted"
    document_id: Id
    folder_id: FolderId
    occurred_at: UtcTime
    title: str = ""
    text: Annotated[str, StringConstraints(min_length=1)]


class DocumentDeleted(Event):
    """A passage was deleted: until it is upserted again, snapshots have neither it nor examples whose positive it is.

    ``left_out`` counts these. Erasing a document does the same.
    """

    type: Literal["document_deleted"] = "document_deleted"
    document_id: Id
    folder_id: FolderId
    occurred_at: UtcTime


class ErasureRequested(Event):
    """Erases what names one subject from state, changelog and later snapshots, in every folder or in one.

    Covers events that occurred up to ``occurred_at``, also those that arrive later; of logs and feedback, as clocks may
    be ahead, also those dated up to ``bounds.future`` after it. A subject is a `user`, `log`, `conversation` or `agent`
    (their logs; of a log also its feedback), a `document` (its text, also in logs) or a `folder` (all of it, and its
    documents' texts in other folders' logs). The state keeps a keyed digest of ``subject_id``, and this topic its name.
    """

    type: Literal["erasure_requested"] = "erasure_requested"
    erasure_id: Id = Field(description="Random: it is kept, and stands in the confirmations")
    occurred_at: UtcTime
    subject: Literal["user", "log", "conversation", "document", "folder", "agent"]
    subject_id: Id
    folder_id: FolderId | None = Field(
        None, description="Only in this folder; of a document, only that of this folder. Workers of 0.1 ignore it"
    )


class ErasureConfirmed(Event):
    """An erasure has been applied to all that a partition of the training sets holds. One for each partition.

    It may be repeated. A worker applies erasures at once to what arrives and to snapshots, and to what it holds when
    ``worker.erasure_interval`` has passed since it last did.
    """

    type: Literal["erasure_confirmed"] = "erasure_confirmed"
    erasure_id: Id
    app_id: Annotated[str, StringConstraints(max_length=128)] = Field(
        description="Of the worker: each has its own sets"
    )
    partition: Count
    at: UtcTime
    records: Count = Field(description="Records that were changed, by this and by all erasures applied at that time")
    compacted_by: UtcTime = Field(description="When the brokers have removed it from the changelog, by their settings")


# ── Requests and their status ────────────────────────────────────────────────────────────────────────────────────────


class ModelReference(Model):
    """A base model: ``hf://ORG/NAME`` (with a commit hash as ``revision``), ``file:///FOLDER`` or ``s3://BUCKET/PREFIX``."""

    uri: Annotated[str, StringConstraints(pattern=MODEL_URI, max_length=1200)]
    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,128}$")] | None = None
    weights_sha256: Sha256 | None = Field(None, description="Digest that model.safetensors must have")


class FineTuneRequested(Event):
    """Requests one fine-tuned model. Idempotent: a repeated ``request_id`` gets the status of the first request."""

    type: Literal["fine_tune_requested"] = "fine_tune_requested"
    request_id: RequestId = Field(
        description="Ids that begin with `auto-` or `schedule-` are the policy's and schedule's"
    )
    model: ModelName
    requested_at: UtcTime
    requested_by: Id = Field("unknown", description="A pseudonym or a team: erasures do not reach it")
    origin: Literal["person", "api", "policy"] = Field("api", description="`policy`: the policy's or the schedule's")
    base_model: ModelReference | None = Field(None, description="Default: the worker's trainer.base_model")
    data: DataSelection = DataSelection()
    dataset: DatasetKnobs = DatasetKnobs()
    training: TrainingKnobs = TrainingKnobs()
    weights: WeightKnobs = WeightKnobs()
    seed: Count = 0

    @property
    def digest(self) -> str:
        """Of what is asked for; a default that is written out is the same, and so is one of a later release."""
        fields = {"base_model", "data", "dataset", "training", "weights", "seed"}
        asked = self.model_dump(mode="json", include=fields, exclude_defaults=True)
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class FineTuneCancelled(Event):
    """Cancels a request in any state that is not final."""

    type: Literal["fine_tune_cancelled"] = "fine_tune_cancelled"
    request_id: RequestId
    model: ModelName
    requested_at: UtcTime
    requested_by: Id = Field("unknown", description="A pseudonym or a team: erasures do not reach it")


class State(StrEnum):
    """The state of a request. Each request reaches exactly one final state."""

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
        """Whether this is a final state."""
        return self in {State.COMPLETED, State.REJECTED, State.FAILED, State.CANCELLED}


class Progress(Model):
    """Progress of a running training."""

    step: Count
    steps: Annotated[Count, Field(ge=1)]
    loss: FiniteFloat
    examples_per_second: FiniteFloat
    eta_seconds: FiniteFloat
    validation: Annotated[tuple[FiniteFloat, ...], Field(max_length=100)] = Field(
        (), description="nDCG@10 on the validation questions after each epoch"
    )


# Of a training's loss; the number of points is halved whenever there are more.
MAX_CURVE_POINTS = 200
_MAX_STATES = 32


class StateTime(Model):
    """A state of a request, and when it began."""

    state: Annotated[str, StringConstraints(max_length=32)]
    at: UtcTime


class PlannedTraining(Model):
    """What a job was asked to do, by which its time is estimated."""

    base_model: ModelReference
    trainable_layers: Annotated[str, StringConstraints(max_length=16)]
    examples: Count = Field(description="About how many are read in all epochs together, by the snapshot's positives")


class FineTuneStatus(Event):
    """A new state of a request, which is model and id together. A model's statuses are in one partition, in order."""

    type: Literal["fine_tune_status"] = "fine_tune_status"
    request_id: RequestId
    model: ModelName
    state: State
    at: UtcTime
    reasons: Reasons = Field(
        (),
        description="Why it was rejected or failed, each with field and bound if there is one; "
        "of a `running` one, why an attempt failed; of a completed one, what the gate found",
    )
    warnings: Reasons = ()
    retryable: bool = False
    progress: Progress | None = None
    model_uri: S3Uri | None = None
    waiting_for: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="`launcher`: the job is published, and no launcher has taken it yet"
    )
    run_continues: bool | None = Field(
        None, description="Of a cancelled request: whether its training goes on, for other requests that share it"
    )
    promoted: bool | None = Field(None, description="Of a completed request: whether the model passed the gate")
    log_uri: S3Uri | None = None
    log_url: WebAddress | None = Field(None, description="Web page of the run's log, if the launcher has one")
    states: Annotated[tuple[StateTime, ...], Field(max_length=_MAX_STATES)] = Field(
        (), description="The states so far, this one last, by the worker's time; `queued`: waits for a launcher"
    )
    loss_curve: Annotated[tuple[tuple[Count, FiniteFloat], ...], Field(max_length=MAX_CURVE_POINTS)] = Field(
        (), description="Steps, each with the loss there (a mean over some before it)"
    )
    validation_curve: Annotated[tuple[FiniteFloat, ...], Field(max_length=100)] = Field(
        (), description="nDCG@10 on the validation questions after each epoch"
    )

    planned: PlannedTraining | None = Field(None, description="Once the snapshot is complete")
    asked_sha256: Sha256 | None = Field(
        None, description="Of what was asked for: another request under the same id differs"
    )

    def continued(self, before: "FineTuneStatus", at: datetime, state: str | None = None) -> "FineTuneStatus":
        """With the times and curves of a status of the same request before it; ``state`` is another word for this one.

        A training that begins anew, or goes on from a checkpoint, replaces what it repeats.
        """
        name, states, progress = state or self.state.value, before.states, self.progress
        if not states or states[-1].state != name:
            states = (*states[: _MAX_STATES - 1], StateTime(state=name, at=at))
        loss, validation = before.loss_curve, before.validation_curve
        if progress:
            point = progress.step, float(f"{progress.loss:.4g}")
            loss = (*(former for former in loss if former[0] < progress.step), point)
            if len(loss) > MAX_CURVE_POINTS:
                loss = (*loss[:-1][::2], loss[-1])
            validation = progress.validation or validation
        curves = {"loss_curve": loss, "validation_curve": validation}
        carried = {"planned": self.planned or before.planned, "asked_sha256": self.asked_sha256 or before.asked_sha256}
        return self.model_copy(update={"states": states, **curves, **carried})


# ── Between worker, launcher and trainer ─────────────────────────────────────────────────────────────────────────────


class TopicOffset(Model):
    """All events of a partition below ``offset`` are included, and later ones are not, except erasures.

    Offsets never go back: of a topic that was made anew, or lost its end, they go on where they were.
    """

    topic: Annotated[str, StringConstraints(max_length=249)]
    partition: Count
    offset: Count


class SnapshotCommand(Event):
    """Commands the owner of a partition to export the examples that the request selects."""

    type: Literal["snapshot_command"] = "snapshot_command"
    request: FineTuneRequested
    partition: Count
    issued_at: UtcTime


# A rule's name, and a digest of what it selects.
RuleKey = Annotated[str, StringConstraints(max_length=128)]


class TrainingFinished(Event):
    """Informs the owner of a partition that the examples of the request's snapshot have been trained on."""

    type: Literal["training_finished"] = "training_finished"
    request_id: RequestId
    model: ModelName
    rules: Annotated[tuple[Annotated[str, StringConstraints(max_length=128)], ...], Field(max_length=64)] | None = (
        Field(
            None, description="Keys of the policy's rules whose folders its selection covers; of releases up to 0.1 all"
        )
    )
    everything: bool = Field(False, description="Whether its selection covers any rule")


class FolderCount(Model):
    """Size of one folder in a snapshot."""

    folder_id: FolderId
    examples: Count
    documents: Count


# Of a preview: questions that may be asked for, logs of each, and documents whose texts may be.
MAX_PREVIEW_QUESTIONS, MAX_PREVIEW_LOGS, MAX_PREVIEW_DOCUMENTS = 10, 20, 1_000
# Of an answer: folders by name, and bytes of texts. What does not fit is not sent, and counted.
MAX_PREVIEW_FOLDERS, MAX_PREVIEW_BYTES = 200, 512 * 1024
# Of a question its words, and documents that have most of them in common.
MAX_PREVIEW_WORDS, MAX_PREVIEW_NEAR = 64, 20


class DocumentReference(Model):
    """A document; without a folder, those of any folder that have its id."""

    document_id: Id
    folder_id: FolderId | None = None


class PreviewRequested(Event):
    """Asks the owner of each partition what a request with this selection would train on.

    Or, with ``documents``, for their texts: those that the questions of its first answer were shown. Or, with ``near``,
    for texts that have most in common with these questions.
    """

    type: Literal["preview_requested"] = "preview_requested"
    preview_id: Id
    data: DataSelection = DataSelection()
    questions: Annotated[int, Field(ge=0, le=MAX_PREVIEW_QUESTIONS)] = Field(
        0, description="How many questions, drawn by their words, to answer with; users' words"
    )
    documents: Annotated[tuple[DocumentReference, ...], Field(max_length=MAX_PREVIEW_DOCUMENTS)] = ()
    near: Annotated[
        tuple[
            Annotated[
                dict[Annotated[str, StringConstraints(max_length=256)], NonNegativeFloat],
                Field(max_length=MAX_PREVIEW_WORDS),
            ],
            ...,
        ],
        Field(max_length=MAX_PREVIEW_QUESTIONS),
    ] = Field((), description="Of each question its words, with their weights; users' words")
    seconds: Annotated[int, Field(ge=1, le=60)] = Field(
        20, description="After its record's time, no answer is waited for any more"
    )


class ShownPassage(Model):
    """A passage that an answer was given from; ``text`` if the log carried it."""

    document_id: Id
    folder_id: FolderId
    rank: PositiveInt
    text: str | None = None
    use: Annotated[str, StringConstraints(max_length=64)] = Field(
        description="`candidate` for a negative, or why not: `positive`, `cited`, `deleted` (the document), `unjudged` "
        "(shown with a disliked answer). Later releases may have others"
    )


class PreviewLog(Model):
    """A log that is an example, with all that it showed."""

    log_id: Id
    occurred_at: UtcTime
    folder_id: FolderId
    agent_id: AgentId
    question: str
    label: Annotated[str, StringConstraints(max_length=64)]
    strength: NonNegativeFloat
    positive: DocumentReference | None = None
    positive_text: str | None = None
    shown: Annotated[tuple[ShownPassage, ...], Field(max_length=MAX_PASSAGES)] = ()


class PreviewDocument(Model):
    """The present text of a document."""

    document_id: Id
    folder_id: FolderId
    title: str
    text: str


class Preview(Event):
    """What one partition answers to a ``preview_requested``, or why it cannot."""

    type: Literal["preview"] = "preview"
    preview_id: Id
    partition: Count
    at: UtcTime = Field(description="When it was counted")
    labels: dict[Annotated[str, StringConstraints(max_length=256)], Count] = Field(
        {}, max_length=64, description="Number of examples, by label"
    )
    positives: Count = Field(0, description="Number of examples with a positive")
    pairs: Count = Field(0, description="Of these, distinct pairs of question and document")
    documents: Count = 0
    folder_count: Count = Field(0, description="Number of selected folders in this partition, named or not")
    folders: tuple[FolderCount, ...] = Field(
        (), max_length=MAX_PREVIEW_FOLDERS, description="Folders that were named, those with the fewest examples first"
    )
    left_out: dict[Annotated[str, StringConstraints(max_length=256)], Count] = Field(
        {}, max_length=64, description="Number of logs without an example, by reason, as in a snapshot's parts"
    )
    ignored: dict[Annotated[str, StringConstraints(max_length=256)], Count] = Field({}, max_length=64)
    logs: tuple[PreviewLog, ...] = Field(
        (),
        max_length=MAX_PREVIEW_QUESTIONS * MAX_PREVIEW_LOGS,
        description="The logs of the partition's first questions, by the order in which questions are drawn",
    )
    texts: tuple[PreviewDocument, ...] = Field((), max_length=MAX_PREVIEW_DOCUMENTS)
    cut: Count = Field(0, description="Logs and texts that did not fit into this record")
    seconds: NonNegativeFloat = 0.0
    error: Annotated[str, AfterValidator(excerpt)] | None = None


class SnapshotFile(Model):
    """One immutable object of a snapshot."""

    uri: S3Uri
    sha256: Sha256
    rows: Count


class LostRecords(Model):
    """Records that a topic lost: `expired` before they were read, `truncated` or `recreated` with the topic since."""

    topic: Annotated[str, StringConstraints(max_length=249)]
    cause: Annotated[str, StringConstraints(max_length=64)]
    records: Count
    last_at: UtcTime = Field(description="When a loss was noticed last")


class SnapshotPart(Event):
    """One partition's share of a snapshot, or the error of its export."""

    type: Literal["snapshot_part"] = "snapshot_part"
    request_id: RequestId
    model: ModelName
    partition: Count
    examples: SnapshotFile | None = None
    documents: SnapshotFile | None = None
    other_examples: SnapshotFile | None = Field(
        None, description="A sample of folders that the request does not name, on which its model is measured too"
    )
    other_documents: SnapshotFile | None = None
    folders: tuple[FolderCount, ...] = Field(
        (), max_length=MAX_NAMED, description="Folders named in the request that this partition has"
    )
    folder_count: Count = Field(0, description="Number of selected folders in this partition, named or not")
    positives: Count = Field(0, description="Number of examples with a positive")
    agents: tuple[AgentId, ...] = Field(
        (), max_length=MAX_NAMED, description="Requested agents that have logs in this partition"
    )
    offsets: Annotated[tuple[TopicOffset, ...], Field(max_length=64)] = ()
    left_out: dict[Annotated[str, StringConstraints(max_length=256)], Count] = Field(
        {}, max_length=64, description="Number of logs without an example, by reason"
    )
    ignored: dict[Annotated[str, StringConstraints(max_length=256)], Count] = Field(
        {},
        max_length=64,
        description="Number of verdicts and logs that do not count, by reason; a status warns of them",
    )
    lost: tuple[LostRecords, ...] = Field(
        (), max_length=64, description="What the partition's topics lost that the request might have selected"
    )
    seconds: NonNegativeFloat = Field(0.0, description="Duration of the export")
    store_seconds: NonNegativeFloat = Field(0.0, description="Of that, time spent on the object store")
    error: Annotated[str, AfterValidator(excerpt)] | None = None


class SnapshotManifest(Event):
    """A complete snapshot: the files that a training job reads, and the offsets of the events in them."""

    type: Literal["snapshot_manifest"] = "snapshot_manifest"
    request_id: RequestId
    model: ModelName
    created_at: UtcTime
    parts: tuple[SnapshotPart, ...]

    @property
    def examples(self) -> int:
        """Number of examples in all parts."""
        return sum(part.examples.rows for part in self.parts if part.examples)

    @property
    def documents(self) -> int:
        """Number of documents in all parts."""
        return sum(part.documents.rows for part in self.parts if part.documents)


class FolderQuality(Model):
    """One measure of a folder's quality, now and before: how many answers were good, of how many."""

    folder_id: FolderId
    measure: Annotated[str, StringConstraints(max_length=32)] = Field(
        description="`cited_first` of what was cited, `liked` of what was rated, `answered` of what was asked"
    )
    good: Count
    all: Count
    good_before: Count
    all_before: Count


class TrainingProgressed(Event):
    """Number of labels of one partition that the model has not been trained on.

    Of logs with a citation or a verdict, and of feedback that names a document: a log with both counts twice.
    """

    type: Literal["training_progressed"] = "training_progressed"
    model: ModelName
    partition: Count
    new_examples: Count
    trained_request_id: RequestId | None = None
    rule: RuleKey | None = Field(
        None, description="Name of the policy's rule, and a digest of what it selects; releases up to 0.1 have one"
    )
    usable: Count | None = Field(None, description="Usable examples in the rule's folders")
    documents: Count = 0
    changed_documents: Count = Field(0, description="Documents that have changed since the training, if a rule asks")
    quality: Annotated[tuple[FolderQuality, ...], Field(max_length=8)] = Field(
        (), description="The folders whose quality has fallen most, if a rule asks"
    )
    quality_tests: Count = Field(0, description="Folders and measures that were compared")


# Of a folder's figures by day and by agent: with names of any length they fit into a quarter of a record.
MAX_STATS_DAYS, MAX_STATS_AGENTS = 400, 50
Counts = dict[Annotated[str, StringConstraints(max_length=256)], Count]


class FolderDay(Model):
    """A folder's logs of one day (UTC)."""

    day: date
    logs: Count = 0
    labels: Counts = Field({}, max_length=64, description="Number of labelled logs, by label")
    cited: Count = Field(0, description="Logs with a citation; the others had no answer in the documents")
    cited_first: Count = Field(0, description="Logs whose best citation was retrieved at rank 1")
    liked: Count = 0
    disliked: Count = 0


class AgentCount(Model):
    """A folder's labelled logs of one agent, by label."""

    agent_id: AgentId
    labels: Annotated[Counts, Field(max_length=64)] = {}


class FolderStats(Event):
    """What a folder's training set holds in one partition, counted as a snapshot would, as of ``at``.

    Counted anew once the folder has changed (`worker.stats_interval`). All of a partition's folders are as old as the
    `folder_stats_refreshed` beside them says. Of a folder without anything all counts are 0.
    """

    type: Literal["folder_stats"] = "folder_stats"
    folder_id: FolderId
    partition: Count
    at: UtcTime
    offsets: Annotated[tuple[TopicOffset, ...], Field(max_length=64)] = Field(
        (), description="What is counted of each topic"
    )
    examples: Count = Field(description="Labelled logs with a positive: all but those with the label `disliked`")
    documents: Count
    newest_log_at: UtcTime | None = None
    labels: Annotated[Counts, Field(max_length=64)] = {}
    days: Annotated[tuple[FolderDay, ...], Field(max_length=MAX_STATS_DAYS)] = Field(
        (), description="Days with logs, in order; the newest ones, of more than there may be"
    )
    earlier: FolderDay | None = Field(None, description="The sum of all days before `days`, under the last of them")
    agents: Annotated[tuple[AgentCount, ...], Field(max_length=MAX_STATS_AGENTS)] = Field(
        (), description="Agents with labelled logs, those with most first"
    )
    other_agents: Annotated[Counts, Field(max_length=64)] = Field({}, description="The sum of all further agents")
    left_out: Annotated[Counts, Field(max_length=64)] = Field(
        {}, description="Number of logs without an example, by reason, as in a snapshot's parts"
    )


class FolderStatsRefreshed(Event):
    """All ``folder_stats`` of a partition hold as of ``at``; without it they would be as old as the worker is gone."""

    type: Literal["folder_stats_refreshed"] = "folder_stats_refreshed"
    partition: Count
    at: UtcTime
    folders: Count = Field(description="Folders of the partition")
    pending: Count = Field(0, description="Folders that have changed and are not counted yet: their stats are older")
    pending_since: UtcTime | None = Field(None, description="When the first of these changed")


# After the deadline of a job's last attempt, its end must be reported within this time.
REPORTING_TIME = timedelta(hours=1)
# A job that has not begun to run within this time of its publication is not started any more.
QUEUEING_TIME = timedelta(days=7)


class TrainingJob(Event):
    """A self-contained training job, which a launcher or a person can run at any time, and repeat."""

    type: Literal["training_job"] = "training_job"
    request: FineTuneRequested
    base_model: ModelReference
    snapshot_uri: S3Uri
    snapshot_sha256: Sha256
    output_uri: S3Uri = Field(description="Prefix of the model's artifacts; manifest.json is written last")
    version: str
    published_at: UtcTime
    max_seconds: Annotated[int, Field(ge=1, le=10**9)]
    warnings: Reasons = ()
    rejected_versions: Annotated[tuple[VersionName, ...], Field(max_length=MAX_REJECTED)] = Field(
        (), description="Versions of the model that people have rejected, the newest: none of them is the incumbent"
    )


# ── Automatic retraining ─────────────────────────────────────────────────────────────────────────────────────────────


class RetrainingPolicy(Event):
    """A model's policy as it is from now on; the newest record of a model counts, as a whole.

    What the worker's settings say (`policy.rules`) is published here with `origin` `settings`, and again when they
    change, as long as nobody has set another policy.
    """

    type: Literal["retraining_policy"] = "retraining_policy"
    model: ModelName
    at: UtcTime
    by: Id = Field("unknown", description="A pseudonym or a team: erasures do not reach it")
    comment: Annotated[str, StringConstraints(max_length=1000)] | None = None
    origin: Annotated[str, StringConstraints(max_length=32)] = Field(
        "person", description="`settings` if the worker's settings say so; everything else goes before them"
    )
    rules: Annotated[tuple[Rule, ...], Field(max_length=MAX_RULES), AfterValidator(check_rules)] = Field(
        (), description="Tried in this order; without any, nothing is trained automatically"
    )
    paused: bool = False


class Condition(Model):
    """One condition of a rule: a figure against its bound."""

    condition: Annotated[str, StringConstraints(max_length=32)] = Field(
        description="`new_examples`, `changed_documents`, `calendar` or `quality`"
    )
    met: bool
    figure: FiniteFloat | None = Field(None, description="Of `calendar`, the seconds since it was due")
    bound: FiniteFloat | None = None
    since: UtcTime | None = Field(None, description="When it was met")
    text: Annotated[str, AfterValidator(excerpt)] = Field("", description="The same, in words")


class Block(Model):
    """What keeps a rule from requesting a training, whether or not its conditions are met."""

    block: Annotated[str, StringConstraints(max_length=32)] = Field(
        description="`paused`, `in_flight`, `cooldown`, `quiet_hours`, `min_examples`, `after_failure`, "
        "`monthly_trainings` or `monthly_dollars`"
    )
    until: UtcTime | None = Field(None, description="When it ends by itself, if that is known")
    text: Annotated[str, AfterValidator(excerpt)] = ""


class RuleFigures(Model):
    """A rule's conditions, and what is in its way."""

    rule: RuleName
    conditions: tuple[Condition, ...]
    blocks: tuple[Block, ...] = ()


class PolicyDecided(Event):
    """What the policy has decided on a model, with the figures that it has decided by.

    Each change is kept under a key of its own; under the model alone is the newest, whose figures are at most a minute
    older than those of the worker.
    """

    type: Literal["policy_decided"] = "policy_decided"
    model: ModelName
    at: UtcTime
    decision: Annotated[str, StringConstraints(max_length=32)] = Field(
        description="`requested`: now; `blocked`: a rule's condition is met, and something is in its way; `waiting`: "
        "none is; `paused`; `off`: there are no rules"
    )
    since: UtcTime = Field(description="When this decision was first made")
    rule: RuleName | None = Field(None, description="The rule that has requested, or whose condition is met")
    request_id: RequestId | None = None
    rules: Annotated[tuple[RuleFigures, ...], Field(max_length=MAX_RULES)] = ()
    next_at: UtcTime | None = Field(None, description="When the clock alone may change it")


class ModelReviewed(Event):
    """A person's judgement of a version. A rejection is final; without it, an approval is what deployers wait for."""

    type: Literal["model_reviewed"] = "model_reviewed"
    model: ModelName
    version: VersionName
    approved: bool
    by: Id = Field(description="A pseudonym or a team: erasures do not reach it")
    comment: Annotated[str, StringConstraints(max_length=1000)] | None = None
    at: UtcTime


# ── Models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class RetrievalMetrics(Model):
    """Means over the held-out questions; each is searched for in all documents of the snapshot."""

    recall_at_1: FiniteFloat
    recall_at_5: FiniteFloat
    recall_at_10: FiniteFloat
    recall_at_50: FiniteFloat | None = None
    recall_at_100: FiniteFloat | None = None
    mrr_at_10: FiniteFloat
    ndcg_at_10: FiniteFloat
    questions: Count
    documents: Count


class GateVerdict(Model):
    """Whether the new model may replace the incumbent, with reasons."""

    promote: bool
    outcome: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None,
        description="`better` if promoted; else `too_few_questions`, `not_better`, `chance`, `too_small`, or `refused` "
        "although it is better. Releases up to 0.1 do not say it, and later ones may have others",
    )
    reasons: tuple[str, ...]
    ndcg_gain: FiniteFloat
    ndcg_gain_interval: tuple[FiniteFloat, FiniteFloat] = Field(description="95% interval of the paired gains' mean")


def _safe_relative(path: str) -> str:
    """Reject a path that could lead out of the folder that the model is downloaded to."""
    if "\\" in path or "\0" in path or ":" in path or any(part in {"", ".", ".."} for part in path.split("/")):
        msg = f"not a relative path below the manifest's folder: {path!r}"
        raise ValueError(msg)
    return path


class ManifestFile(Model):
    """One file of a model. Readers verify size and digest before they use any file."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=512), AfterValidator(_safe_relative)] = Field(
        description="Relative to the manifest, with forward slashes"
    )
    sha256: Sha256
    bytes: Count


class ModelManifest(Event):
    """``manifest.json`` of a model, written last: without it, the model does not exist."""

    type: Literal["model_manifest"] = "model_manifest"
    files: Annotated[tuple[ManifestFile, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_file_once(self) -> Self:
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths):
            msg = "a file is named twice"
            raise ValueError(msg)
        return self


class TrainingWork(Model):
    """What a training did, by which the time of others is estimated."""

    steps: Count
    examples: Count = Field(description="Read in all steps together: each of the training set once in an epoch")
    trainable_layers: Annotated[str, StringConstraints(max_length=16)]
    machine: Annotated[str, StringConstraints(max_length=256)] = Field(description="Number and kind of its processors")


class ModelReady(Event):
    """A model is on S3 and has passed the gate. Subscribers decide whether and when to serve it."""

    type: Literal["model_ready"] = "model_ready"
    request_id: RequestId
    model: ModelName
    version: str = Field(description="Sorts by time of publication")
    model_uri: S3Uri
    manifest_sha256: Sha256
    base_model: ModelReference
    parent_version: str | None = Field(
        None,
        description="The version that the training started from, if not from the base model. Of releases up to "
        "0.1 it is what `compared_with` is since",
    )
    compared_with: str | None = Field(
        None, description="The version that it was measured against, if not the base model"
    )
    embedding_space_id: str = Field(description="Embeddings are comparable if their ids are equal")
    dimension: Annotated[Count, Field(ge=1)]
    normalized: bool
    requires_reindex: bool = Field(
        description="Whether all documents must be embedded again, given those of compared_with, or of the base model"
    )
    metrics_before: RetrievalMetrics
    metrics_after: RetrievalMetrics
    gate: GateVerdict
    snapshot_uri: S3Uri
    snapshot_sha256: Sha256
    snapshot_offsets: tuple[TopicOffset, ...]
    snapshot_at: UtcTime | None = Field(None, description="When the snapshot was requested: it has no later logs")
    training_seconds: FiniteFloat
    seconds: dict[Annotated[str, StringConstraints(max_length=64)], NonNegativeFloat] = Field(
        {},
        max_length=64,
        description="Of the job's parts up to its publication, and `all`; of earlier attempts only the training",
    )
    cost_dollars: NonNegativeFloat | None = Field(None, description="`all` at trainer.hourly_price, if that is set")
    work: TrainingWork | None = Field(None, description="Releases up to 0.1 do not say it")
    published_at: UtcTime


# ── Who did what ─────────────────────────────────────────────────────────────────────────────────────────────────────


class AuditEntry(Event):
    """What a caller of the HTTP API changes, or which users' texts they read. Written before it is done."""

    type: Literal["audit_entry"] = "audit_entry"
    audit_id: Id
    at: UtcTime
    who: Id = Field(description="The name in the caller's token: a pseudonym or a team, as erasures do not reach it")
    action: Annotated[str, StringConstraints(pattern=r"^[a-z_]+(\.[a-z_]+)?$", max_length=64)] = Field(
        description="`request.create` for example; later releases may have others"
    )
    target: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        description="What it is done to: `model/request_id` of a request, the id of a dead letter or an erasure, …"
    )
    model: ModelName | None = None
    folders: tuple[FolderId, ...] | None = Field(
        None, max_length=MAX_NAMED, description="The folders that it is about; all where there are none"
    )
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    trace_id: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="The call's `X-Request-Id`, which its log line has, too"
    )


EVENTS: tuple[type[Event], ...] = (
    ChatLog,
    ChatLogBatch,
    Feedback,
    DocumentUpserted,
    DocumentDeleted,
    ErasureRequested,
    ErasureConfirmed,
    FineTuneRequested,
    FineTuneCancelled,
    FineTuneStatus,
    PreviewRequested,
    Preview,
    SnapshotCommand,
    TrainingFinished,
    SnapshotPart,
    SnapshotManifest,
    TrainingProgressed,
    FolderStats,
    FolderStatsRefreshed,
    TrainingJob,
    RetrainingPolicy,
    PolicyDecided,
    ModelReviewed,
    ModelManifest,
    ModelReady,
    AuditEntry,
)


def json_schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of every event, by ``type``."""
    return {event.model_fields["type"].default: event.model_json_schema() for event in EVENTS}
