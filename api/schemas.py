"""The forms of answers, and those of bodies for the OpenAPI document."""

from collections.abc import Mapping
from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.json_schema import models_json_schema

from api.submission import RequestBody
from foldtune.events import (
    MAX_STATS_DAYS,
    AuditEntry,
    FineTuneStatus,
    FolderCount,
    GateVerdict,
    Id,
    ManifestFile,
    ModelReady,
    ModelReference,
    ModelReviewed,
    PolicyDecided,
    RetrainingPolicy,
)
from foldtune.knobs import FolderId, WrittenTime
from foldtune.policy import MAX_RULES, Rule, check_rules

_REFERENCE = "#/components/schemas/{model}"


class InvalidField(BaseModel):
    """What is wrong with a field or parameter."""

    name: str
    reason: str = Field(description="With the bound")


class Problem(BaseModel):
    """What is wrong with a call (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[str] = Field(description="One line for each thing that is wrong")
    fields: list[InvalidField] = []
    request_id: str | None = Field(None, description="Of a request that was perhaps published: send it again under it")


class Me(BaseModel):
    """Whoever calls."""

    name: str
    roles: list[str]
    routes: dict[str, list[str] | None] = Field(
        description="The routes that these roles may call, each with the models that they may call it for; null for all"
    )


class Accepted(BaseModel):
    """A request that was published."""

    request_id: str
    model: str


class RequestList(BaseModel):
    """The newest statuses of requests, the newest first."""

    items: list[FineTuneStatus]
    next: str | None = Field(description="The `cursor` of the next page; a page may be short, or empty, and have one")


class AuditList(BaseModel):
    """Entries, the newest first."""

    items: list[AuditEntry]
    next: str | None = Field(description="The `cursor` of the next page")


# ── Models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Reviewed(BaseModel):
    """What people have said about a version."""

    approval: Literal["not_required", "waiting", "approved", "rejected"] | None = Field(
        None, description="`waiting` for an approval, which the model needs; none of a version that was not promoted"
    )
    review: ModelReviewed | None = Field(None, description="Who has decided, and why")


class VersionFigures(Reviewed):
    """A version; one that was not promoted has its figures at its own address only."""

    version: str
    request_id: str
    promoted: bool
    published_at: datetime | None
    compared_with: str | None = Field(None, description="The version it was measured against, if not the base model")
    ndcg_at_10_before: float | None = Field(None, description="Of that model, on the same questions")
    ndcg_at_10: float | None
    questions: int | None = Field(None, description="How many were held out, on which both were measured")
    gate: GateVerdict | None


class ModelSummary(BaseModel):
    """A model and its newest versions."""

    model: str
    versions: int
    recent: list[VersionFigures] = Field([], description="The newest promoted versions, the newest first: at most ten")
    deployable: str | None = Field(
        None, description="What a deployment serves that takes the newest: a promoted version that needs no approval"
    )
    deployable_since: datetime | None = Field(None, description="When that was published, or approved where it must be")
    waiting: int = Field(0, description="How many versions newer than that wait for an approval")


class ModelList(BaseModel):
    """Models by name."""

    items: list[ModelSummary]
    next: str | None = Field(description="The `cursor` of the next page")


class TrainingEstimate(BaseModel):
    """How long a training takes, and what it costs, by earlier ones of its base model and trainable layers."""

    model_config = ConfigDict(from_attributes=True)

    seconds: float
    cost_dollars: float | None = Field(description="null if their machine has no price (trainer.hourly_price)")
    trainings: int = Field(description="How many earlier ones it is by: of promoted versions, on the newest's machine")
    machine: str


class RequestTime(BaseModel):
    """How long a request's job was to take, and how long it took, however it ended."""

    estimate: TrainingEstimate | None = Field(
        description="By trainings before its job was published; null if there was none like it, or no job"
    )
    seconds: float | None = Field(description="From the first attempt's start to the end, or to now; null before")
    cost_dollars: float | None = Field(description="At the price of the estimate's machine")
    ended: bool


class RequestLog(BaseModel):
    """The end of a training's log."""

    attempt: int
    bytes: int = Field(description="Of the whole log")
    text: str = Field(description="Its last 64 KiB, from the beginning of a line")


class Estimated(BaseModel):
    """What was known before a training."""

    estimate: TrainingEstimate | None = Field(
        None, description="What an estimate for its examples was before it, to compare with"
    )


class VersionDetails(ModelReady, Reviewed, Estimated):
    """All that is known of a version."""


class VersionSummary(VersionFigures, Estimated):
    """A version, and what it took."""

    seconds: float | None = Field(None, description="That its job took")
    cost_dollars: float | None = None


class VersionList(BaseModel):
    """Versions, the newest first."""

    items: list[VersionSummary]
    next: str | None = Field(description="The `cursor` of the next page")


class FileList(BaseModel):
    """The files of a version."""

    items: list[ManifestFile]


class FileLink(BaseModel):
    """Where a file can be fetched without a token."""

    url: str
    seconds: int = Field(description="For how long")


class EvaluationList(BaseModel):
    """Rows of `evaluation.parquet`."""

    items: list[dict[str, Any]]
    total: int
    next: str | None = Field(description="The `cursor` of the next page")


class Ancestor(Reviewed):
    """A version and what it was made from."""

    version: str
    request_id: str
    parent_version: str | None
    compared_with: str | None
    base_model: ModelReference
    snapshot_uri: str
    snapshot_sha256: str
    snapshot_at: datetime | None
    published_at: datetime


class Lineage(BaseModel):
    """A version, the one that its training started from, and so on to the base model."""

    items: list[Ancestor]


# ── Folders ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_Counts = dict[str, int]


class DayLogs(BaseModel):
    """A day's logs."""

    day: date
    logs: int


class DayCount(DayLogs):
    """A day's logs, and how many of them are examples."""

    examples: int


class LogsPerDay(BaseModel):
    """Logs by day (UTC)."""

    items: list[DayLogs] = Field(description=f"Days with logs, in order: the newest {MAX_STATS_DAYS}")


class LogCounts(BaseModel):
    """How many logs there are, and of what kinds."""

    logs: int
    examples: int = Field(description="Labelled logs with a positive: all but those with the label `disliked`")
    labels: _Counts
    cited: int = Field(description="Logs with a citation; the others had no answer in the documents")
    cited_first: int = Field(description="Logs whose best citation was retrieved at rank 1")
    liked: int
    disliked: int


class DayFigures(LogCounts):
    """The logs of a day (UTC)."""

    day: date


class FolderItem(LogCounts):
    """A folder; logs, examples and their kinds are those from `since` to `until`, if these are given."""

    folder_id: str
    as_of: datetime = Field(description="When the figures were true; logs and documents may have come since")
    documents: int
    newest_log_at: datetime | None
    days: list[DayCount] = Field(description="Days with logs, in order: the newest `newest_days`")
    complete: bool = Field(
        description="Whether all days since `since` are counted: of the oldest only a sum may be known"
    )
    left_out: _Counts = Field(description="Logs of any day without an example, by reason")


class FolderList(BaseModel):
    """Folders by id."""

    items: list[FolderItem]
    next: str | None = Field(description="The `cursor` of the next page; a page may be short, or empty, and have one")
    as_of: datetime | None = Field(description="When all figures were true; null before every worker has told them")
    pending: int = Field(description="Folders that have changed and are not counted yet, of all that there are")


class AgentFigures(BaseModel):
    """A folder's labelled logs of one agent, of any day."""

    agent_id: str
    examples: int
    labels: _Counts


class FolderDetails(FolderItem):
    """A folder by day and by agent."""

    days: list[DayFigures] = Field(description="Days with logs, in order")  # type: ignore[assignment]
    earlier: DayFigures | None = Field(description="The sum of all days before `days`, under the last of them")
    agents: list[AgentFigures] = Field(description="Those with most labelled logs first")
    other_agents: _Counts = Field(description="The labels of all further agents")


class ReviewBody(BaseModel):
    """What an approver says about a version."""

    model_config = ConfigDict(extra="forbid")

    comment: Annotated[str, StringConstraints(max_length=1000)] | None = None


# ── Automatic retraining ─────────────────────────────────────────────────────────────────────────────────────────────


class PolicyBody(BaseModel):
    """A model's policy; it replaces the one before, and what the workers' settings say, as a whole."""

    model_config = ConfigDict(extra="forbid")

    rules: Annotated[tuple[Rule, ...], Field(max_length=MAX_RULES), AfterValidator(check_rules)] = Field(
        description="Tried in this order; without any, nothing is trained automatically"
    )
    paused: bool = False
    comment: Annotated[str, StringConstraints(max_length=1000)] | None = None


class PolicyItem(BaseModel):
    """A model's policy, and what it has decided last."""

    policy: RetrainingPolicy
    decision: PolicyDecided | None


class PolicyList(BaseModel):
    """Policies by model."""

    items: list[PolicyItem]
    next: str | None = Field(description="The `cursor` of the next page")


class PolicyExplanation(BaseModel):
    """Why a model is trained, or is not: each rule's figures against their bounds, and what is in the way."""

    decision: PolicyDecided | None = Field(
        description="The newest, whose figures are about a minute old at most; none before a worker has decided"
    )
    changes: list[PolicyDecided] = Field(description="Each change of the decision, the newest first")


# ── Previews ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class FailedPartition(BaseModel):
    """A partition that could not be counted."""

    partition: int
    error: str


class TrainingPreview(BaseModel):
    """About how much will be trained on: which questions are near-duplicates or follow-ups, the training finds out."""

    pairs: int = Field(description="Distinct pairs of question and right document")
    held_out: int = Field(description="Of these, not trained on, since versions are compared on them")
    validation: int = Field(description="Of these, not trained on, since the epoch is chosen on them")
    examples: int
    steps: int


class PassagePreview(BaseModel):
    """The right passage."""

    folder_id: str | None
    document_id: str
    text: str = Field(description="Its first thousand characters")


class ShownPreview(BaseModel):
    """A passage that was shown with a question, and what becomes of it."""

    folder_id: str
    document_id: str
    rank: int
    text: str | None = Field(description="Its first thousand characters, if there is a text")
    jaccard: float | None = Field(description="Similarity of its words with those of the right passage")
    reason: str = Field(
        description="`negative`, or why it is none: `positive`, `cited`, `deleted`, `unjudged` (shown with a disliked "
        "answer), `no_text`, `text_changed`, `same_passage_twice`, `known_positive`, or `near_positive_by_words`, "
        "whose Jaccard is at or above `dataset.exclusion_threshold`"
    )
    taken: bool = Field(description="Whether it is among the first `dataset.hard_negatives` of them")


class ExamplePreview(BaseModel):
    """A question with one of its right passages."""

    positive: PassagePreview
    labels: _Counts = Field(description="Of its logs")
    shown: list[ShownPreview]


class QuestionPreview(BaseModel):
    """A question as a training pairs it, over all of its logs."""

    question: str
    held_out: bool = Field(description="Whether it is one of those that no version is trained on")
    folders: list[str]
    logs: int
    left_out: _Counts = Field(description="Logs that make no example of their own, by reason")
    examples: list[ExamplePreview]


class MinedCandidate(BaseModel):
    """A document near the question that was not shown with it."""

    folder_id: str | None
    document_id: str | None
    text: str = Field(description="Its first thousand characters")
    score: float = Field(description="Similarity to the question, by the base model")
    jaccard: float = Field(description="Similarity of its words with those of the right passage")
    reason: str = Field(
        description="`negative`, or why it is none: `near_positive_by_words`, or `above_score_margin`, whose score is "
        "so near that of the right passage, or above it, that it may be right, too"
    )
    taken: bool = Field(
        description="Whether it is among the first `dataset.hard_negatives`; those that were shown come first"
    )


class MinedExample(BaseModel):
    """A question with one of its right passages."""

    question: str
    positive: str
    score: float = Field(description="Of the right passage")
    candidates: list[MinedCandidate] = Field(description="The nearest first")


class MinedAnswer(BaseModel):
    """What the process that searches answers."""

    error: str | None = None
    documents: int = 0
    examples: list[MinedExample] = []


class MinedPreview(BaseModel):
    """Hard negatives that a training would find by itself for the questions of a preview."""

    state: Literal["by_training", "pending", "ready", "failed"] = Field(
        description="`pending`: they follow at `GET /previews/{id}/mined`; `by_training`: not in a preview"
    )
    reason: str | None = None
    documents: int = Field(
        0, description="How many were searched: those that were shown, and those with most words of the questions"
    )
    examples: list[MinedExample] = []


class PreviewResult(BaseModel):
    """What a request would train on: counted by the owners of the partitions, as an export counts."""

    preview_id: str
    at: datetime = Field(description="When the first of them counted")
    complete: bool = Field(description="Whether all partitions are counted")
    missing: list[int] = Field(description="Partitions whose owner has not answered")
    failed: list[FailedPartition]
    examples: int = Field(description="Labelled logs with a positive")
    labels: _Counts
    left_out: _Counts = Field(description="Logs without an example, by reason")
    ignored: _Counts = Field(description="Verdicts and logs that do not count, by reason")
    documents: int
    folder_count: int
    folders: list[FolderCount] = Field(description="Of those that are named, the ones with the fewest examples first")
    training: TrainingPreview
    estimate: TrainingEstimate | None = Field(description="Of its job; null if there was none like it, on any machine")
    mined: MinedPreview
    questions: list[QuestionPreview] | None = Field(
        description="Ten, drawn by their words, always the same ones; null without the role `privacy`"
    )
    texts_missing: list[int] = Field(
        description="Partitions that did not send all texts in time: passages of theirs may be `no_text` for that alone"
    )
    cut: int = Field(description="Logs of these questions that did not fit")


# ── Dead letters ─────────────────────────────────────────────────────────────────────────────────────────────────────


class DeadLetterItem(BaseModel):
    """A record that was rejected, without its bytes."""

    id: str
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    at: datetime
    error: str
    folder_id: str | None
    bytes: int
    failures: int
    replayed: bool


class CauseCount(BaseModel):
    """How many dead letters have one cause."""

    topic: str | None = Field(description="Where they came from, without prefix")
    cause: str = Field(description="The reason without the values in it, as the parameter `cause` takes it")
    count: int


class DeadLetterList(BaseModel):
    """Dead letters, the newest first."""

    items: list[DeadLetterItem]
    causes: list[CauseCount] | None = Field(
        description="Of all that are known, replayed ones too: the twenty most frequent; null for a caller who is "
        "limited to models or folders"
    )
    next: str | None = Field(description="The `cursor` of the next page; a page may be short, or empty, and have one")


class DeadLetterValue(BaseModel):
    """What was rejected; in `text`, bytes that are not UTF-8 are escaped."""

    id: str
    key: str | None
    headers: dict[str, str]
    text: str
    base64: str


class ReplayBody(BaseModel):
    """Which dead letters to replay."""

    model_config = ConfigDict(extra="forbid")

    ids: Annotated[
        list[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}:[0-9]{1,18}$")]],
        Field(min_length=1, max_length=100),
    ]


class RefusedReplay(BaseModel):
    """Why a dead letter was not replayed."""

    id: str
    reason: str


class ReplayResult(BaseModel):
    """What became of a replay."""

    replayed: int
    refused: list[RefusedReplay]


# ── Erasures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class ErasureBody(BaseModel):
    """What to erase."""

    model_config = ConfigDict(extra="forbid")

    subject: Literal["user", "log", "conversation", "document", "folder", "agent"]
    subject_id: Id
    folder_id: FolderId | None = Field(None, description="Only in this folder")
    all_folders: bool = Field(False, description="Of a document: those with this id in every folder")
    before: WrittenTime | None = Field(None, description="Only events that occurred until then; default: now")


class ErasureAsked(BaseModel):
    """An erasure that was published."""

    erasure_id: str


class AffectedFolder(BaseModel):
    """How many records of a folder an erasure affects."""

    folder_id: str
    logs: int
    feedback: int
    documents: int
    passages: int = Field(description="In logs")


class ErasurePreview(BaseModel):
    """What an erasure would affect in the topics; the training sets may hold less."""

    folders: list[AffectedFolder]


class ErasureConfirmation(BaseModel):
    """A partition that an erasure was applied to."""

    app_id: str
    partition: int
    at: datetime
    records: int


class ErasureProgress(BaseModel):
    """How far an erasure has come."""

    erasure_id: str
    partitions: int
    done: bool = Field(description="Whether every partition has confirmed it, of each worker's sets that has any")
    compacted_by: datetime | None = Field(description="When the brokers will have removed it from the changelogs")
    confirmations: list[ErasureConfirmation]


BODIES: Mapping[str, type[BaseModel]] = {
    "RequestBody": RequestBody,
    "ReviewBody": ReviewBody,
    "PolicyBody": PolicyBody,
    "ReplayBody": ReplayBody,
    "ErasureBody": ErasureBody,
}


def component_schemas() -> dict[str, Any]:
    """The schemas of all bodies and their parts."""
    _, schema = models_json_schema([(kind, "validation") for kind in BODIES.values()], ref_template=_REFERENCE)
    return dict(schema["$defs"])


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a route that reads its body itself."""
    schema = {"$ref": _REFERENCE.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
