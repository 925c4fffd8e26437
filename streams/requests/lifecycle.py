"""The lifecycle of fine-tune requests: a pure state machine for each model.

Every function takes the model's state and one event, and returns the transition: the next state and the events to
publish. Both are stored before anything is published, and after a crash events may be published twice, which their
consumers tolerate (commands and parts carry the request, jobs are started once).
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pydantic import AwareDatetime, Field

from foldtune.events import (
    QUEUEING_TIME,
    REPORTING_TIME,
    Event,
    FineTuneCancelled,
    FineTuneRequested,
    FineTuneStatus,
    Model,
    PlannedTraining,
    SnapshotCommand,
    SnapshotManifest,
    SnapshotPart,
    State,
    TrainingFinished,
    TrainingJob,
)
from foldtune.excerpts import bounded, first_names
from foldtune.knobs import ModelName
from foldtune.pairs import trained_pairs
from foldtune.topics import Topic, request_key
from streams.publishing.publisher import OutgoingEvent

# Topic and cause.
LossKind = tuple[str, str]
_LOSSES = {
    "expired": "expired before they were read",
    "truncated": "that were read are no longer on the topic, which lost its end",
    "recreated": "that were read are no longer on the topic, which was made anew",
}


class Active(Model):
    """A model's active request; there is at most one."""

    request: FineTuneRequested
    # Ids of requests for the same training, which waited beside this one: they share its statuses.
    merged: tuple[str, ...] = ()
    # Set once the request is cancelled while merged ones go on: its job and its reports keep its id.
    left: FineTuneStatus | None = None
    since: AwareDatetime
    parts: tuple[SnapshotPart, ...] = ()
    # Set once the training job is published; from then on the launcher and the trainer report the status. Until the
    # training has started it bounds the wait for a machine, then the training.
    deadline: AwareDatetime | None = None
    started: AwareDatetime | None = None
    status: FineTuneStatus

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The requests that end with this training."""
        return self.merged if self.left else (self.request.request_id, *self.merged)


class ModelState(Model):
    """Everything that the next transition of a model depends on."""

    model: ModelName
    active: Active | None = None
    waiting: tuple[FineTuneRequested, ...] = ()
    # By request id; releases up to 0.1 do not have it.
    waiting_since: dict[str, AwareDatetime] = Field(default_factory=dict, exclude_if=lambda since: not since)
    # Counts the transitions, so that no two states of a model are alike.
    version: int = 0


@dataclass(frozen=True)
class Transition:
    """The effect of one event."""

    state: ModelState
    outputs: tuple[OutgoingEvent, ...] = ()
    # Of the requests that end with it.
    final_statuses: tuple[FineTuneStatus, ...] = ()
    # Of a request that has ended before, told once more: from now on its run is to be stopped, too.
    stopped_statuses: tuple[FineTuneStatus, ...] = ()
    # Set when the snapshot is complete: next, the manifest is uploaded and the job published.
    manifest: SnapshotManifest | None = None


def requested(state: ModelState, request: FineTuneRequested, now: datetime) -> Transition:
    """A new request starts if the model is idle, else waits. A known one is answered with its current status."""
    if current := current_status(state, request.request_id, now):
        return answered(state, current)
    accepted = _accepted(request, now)
    if state.active is None:
        started = _start(state, request, (), now)
        return Transition(started.state, (_output(accepted), *started.outputs))
    since = state.waiting_since | {request.request_id: now}
    waiting = state.model_copy(update={"waiting": (*state.waiting, request), "waiting_since": since})
    return Transition(waiting, (_output(accepted), _output(_waiting(waiting, request, now))))


def current_status(state: ModelState, request_id: str, now: datetime) -> FineTuneStatus | None:
    """The status of an active or waiting request; ``None`` for any other."""
    active = state.active
    if active and request_id in active.request_ids:
        return active.status.model_copy(update={"request_id": request_id})
    waiting = next((other for other in state.waiting if other.request_id == request_id), None)
    return _waiting(state, waiting, now) if waiting else None


def answered(state: ModelState, status: FineTuneStatus) -> Transition:
    """Tells a request's status once more."""
    return Transition(state, (_output(status),))


def ended(state: ModelState, status: FineTuneStatus) -> Transition:
    """Ends a request that never became part of the state."""
    return Transition(state, (_output(status),), (status,))


def cancelled(state: ModelState, cancel: FineTuneCancelled, now: datetime) -> Transition | None:
    """Ends an active, merged or waiting request; ``None`` if the model has no such request."""
    active = state.active
    reasons = (f"cancelled by {cancel.requested_by}",)
    if active and active.request_ids == (cancel.request_id,):
        return _end_active(state, active, State.CANCELLED, now, reasons)
    if active and cancel.request_id in active.request_ids:
        ended = _status(active.request, State.CANCELLED, now, reasons).continued(active.status, now)
        (status,) = _for_each(ended, (cancel.request_id,))
        if cancel.request_id == active.request.request_id:
            # The launcher of the training, which has this id, is not to stop it.
            status = status.model_copy(update={"run_continues": True})
            remaining = active.model_copy(update={"left": status})
        else:
            merged = tuple(request_id for request_id in active.merged if request_id != cancel.request_id)
            remaining = active.model_copy(update={"merged": merged})
        return Transition(state.model_copy(update={"active": remaining}), (_output(status),), (status,))
    for request in state.waiting:
        if request.request_id == cancel.request_id:
            status = _status(request, State.CANCELLED, now, reasons).continued(_waiting(state, request, now), now)
            waiting = tuple(other for other in state.waiting if other is not request)
            return Transition(state.model_copy(update={"waiting": waiting}), (_output(status),), (status,))
    return None


def part_received(
    state: ModelState, part: SnapshotPart, partitions: int, min_examples: int, now: datetime
) -> Transition:
    """Adds one partition's part to the snapshot of the active request; the last one completes it."""
    active = state.active
    if active is None or active.deadline or part.request_id != active.request.request_id:
        return Transition(state)
    if part.partition in {other.partition for other in active.parts}:
        return Transition(state)
    part = _without_known_names(part, active)
    parts = tuple(sorted((*active.parts, part), key=lambda part: part.partition))
    extended = state.model_copy(update={"active": active.model_copy(update={"parts": parts})})
    return snapshot_completed(extended, partitions, min_examples, now) or Transition(extended)


def _without_known_names(part: SnapshotPart, active: Active) -> SnapshotPart:
    """A part with the requested folders and agents that no earlier part has.

    All parts together then name each once, which is what the state has room for: the request's own size.
    """
    data = active.request.data
    folders = set(data.folders or ()) - {count.folder_id for other in active.parts for count in other.folders}
    agents = set(data.agents or ()) - {agent for other in active.parts for agent in other.agents}
    return part.model_copy(
        update={
            "folders": tuple(count for count in part.folders if count.folder_id in folders),
            "agents": tuple(agent for agent in part.agents if agent in agents),
        }
    )


def snapshot_completed(state: ModelState, partitions: int, min_examples: int, now: datetime) -> Transition | None:
    """Fails, rejects or proceeds once all parts are there; ``None`` before, and after the job is published."""
    active = state.active
    if active is None or active.deadline or len(active.parts) < partitions:
        return None
    if errors := tuple(f"partition {part.partition}: {part.error}" for part in active.parts if part.error):
        return _end_active(state, active, State.FAILED, now, errors, retryable=True)
    if reasons := tuple(_rejection_reasons(active.request, active.parts, min_examples)):
        return _end_active(state, active, State.REJECTED, now, reasons)
    manifest = SnapshotManifest(
        request_id=active.request.request_id, model=state.model, created_at=active.since, parts=active.parts
    )
    return Transition(state, manifest=manifest)


def failed(state: ModelState, reason: str, now: datetime) -> Transition | None:
    """Fails the active request for something that it needs and that cannot be written; ``None`` if there is none."""
    return _end_active(state, state.active, State.FAILED, now, (reason,)) if state.active else None


def job_published(state: ModelState, active: Active, job: OutgoingEvent, now: datetime) -> Transition:
    """Publishes the job, whose training must have started within ``QUEUEING_TIME``, else the request fails."""
    warnings = _with_gaps(active, active.status.warnings)
    told = {"at": now, "waiting_for": "launcher", "warnings": warnings, "planned": _planned(active, job.event)}
    waiting = active.status.model_copy(update=told)
    waiting = waiting.continued(active.status, now, "queued")
    published = active.model_copy(update={"deadline": now + QUEUEING_TIME + REPORTING_TIME, "status": waiting})
    statuses = _for_each(waiting, active.request_ids)
    return Transition(state.model_copy(update={"active": published}), (*map(_output, statuses), job))


def reported(
    state: ModelState,
    status: FineTuneStatus,
    max_training: timedelta,
    now: datetime,
    finished: TrainingFinished | None = None,
) -> Transition:
    """Publishes a status that the launcher or the trainer reports of the active request; a final one starts the next.

    A completed one publishes ``finished``, too, to those who count what is new.

    The first report of a running training sets the deadline by which its end must be reported, ``max_training`` later.

    Statuses are published from here only, so a request that was cancelled or timed out does not end twice. After a
    crash between publishing a job and storing that, reports may arrive before the parts that lead to the job again.
    """
    active = state.active
    if active is None or status.request_id != active.request.request_id:
        return Transition(state)
    if status.log_url and status.state is State.RUNNING and active.status.log_url in {None, status.log_url}:
        # The launcher's report of an attempt, which may come after the trainer has told why that failed. The page of a
        # new attempt is another one.
        status = status.model_copy(update={"reasons": status.reasons or active.status.reasons})
    if status.log_url is None:
        # Only the launcher knows the page of the run's log, and the trainer reports later.
        status = status.model_copy(update={"log_url": active.status.log_url})
    if status.state is State.FAILED:
        # The launcher knows how the trainer ended, and the trainer's last report why.
        reasons = bounded(tuple(dict.fromkeys((*status.reasons, *active.status.reasons))))
        status = status.model_copy(update={"reasons": reasons})
    status = status.model_copy(update={"warnings": _with_gaps(active, status.warnings)})
    status = status.continued(active.status, now)
    statuses = _for_each(status, active.request_ids)
    outputs = tuple(map(_output, statuses))
    if not status.state.terminal:
        running = active.model_copy(update={"status": status})
        if active.started is None and status.state in {State.RUNNING, State.EVALUATING}:
            running = running.model_copy(update={"started": now, "deadline": now + max_training})
        return Transition(state.model_copy(update={"active": running}), outputs)
    if status.state is State.COMPLETED:
        finished = finished or TrainingFinished(request_id=status.request_id, model=state.model)
        return _start_next(state, (*outputs, OutgoingEvent(Topic.SNAPSHOT_COMMANDS, finished)), statuses, now)
    return _stop(state, active, statuses, now)


def timed_out(state: ModelState, snapshot_timeout: timedelta, partitions: int, now: datetime) -> Transition | None:
    """Ends the active request if its snapshot or its final status is overdue; else ``None``."""
    active = state.active
    if active is None:
        return None
    if active.deadline is None and now - active.since > snapshot_timeout:
        missing = sorted(set(range(partitions)) - {part.partition for part in active.parts})
        problem = f"no answer from partitions {missing}" if missing else "its manifest could not be written"
        reason = f"snapshot: {problem} within {snapshot_timeout}"
        return _end_active(state, active, State.FAILED, now, (reason,), retryable=True)
    if active.deadline is not None and now > active.deadline:
        missing_report = "no end" if active.started else "no start"
        reason = f"training: {missing_report} was reported by {active.deadline.isoformat()}"
        return _end_active(state, active, State.FAILED, now, (reason,), retryable=True)
    return None


def _start(state: ModelState, request: FineTuneRequested, merged: tuple[str, ...], now: datetime) -> Transition:
    before = _waiting(state, request, now) if request.request_id in state.waiting_since else _accepted(request, now)
    status = _status(request, State.SNAPSHOTTING, now).continued(before, now)
    active = Active(request=request, merged=merged, since=now, status=status)
    # Goes to every partition; each owner fills in its own number.
    command = SnapshotCommand(request=request, partition=0, issued_at=now)
    statuses = _for_each(status, (request.request_id, *merged))
    left = {other.request_id for other in state.waiting}
    since = {request_id: at for request_id, at in state.waiting_since.items() if request_id in left}
    return Transition(
        state.model_copy(update={"active": active, "waiting_since": since}),
        (*map(_output, statuses), OutgoingEvent(Topic.SNAPSHOT_COMMANDS, command)),
    )


def _end_active(
    state: ModelState,
    active: Active,
    final: State,
    now: datetime,
    reasons: tuple[str, ...],
    *,
    retryable: bool = False,
) -> Transition:
    more = {"retryable": retryable, "warnings": _with_gaps(active, ())}
    status = _status(active.request, final, now, reasons).model_copy(update=more).continued(active.status, now)
    statuses = _for_each(status, active.request_ids)
    return _stop(state, active, statuses, now)


def _stop(state: ModelState, active: Active, final_statuses: tuple[FineTuneStatus, ...], now: datetime) -> Transition:
    """Ends a training without a model, and starts the next; the run's leader, if it had left, is told once more."""
    stopped = (active.left.model_copy(update={"run_continues": None}),) if active.left else ()
    outputs = tuple(map(_output, (*final_statuses, *stopped)))
    return replace(_start_next(state, outputs, final_statuses, now), stopped_statuses=stopped)


def _start_next(
    state: ModelState, outputs: tuple[OutgoingEvent, ...], final_statuses: tuple[FineTuneStatus, ...], now: datetime
) -> Transition:
    idle = state.model_copy(update={"active": None})
    if not state.waiting:
        return Transition(idle, outputs, final_statuses)
    first, *others = state.waiting
    merged = tuple(other.request_id for other in others if _training_inputs(other) == _training_inputs(first))
    waiting = tuple(other for other in others if other.request_id not in merged)
    started = _start(idle.model_copy(update={"waiting": waiting}), first, merged, now)
    return Transition(started.state, (*outputs, *started.outputs), final_statuses)


def _training_inputs(request: FineTuneRequested) -> tuple[object, ...]:
    return request.base_model, request.data, request.dataset, request.training, request.weights, request.seed


def _rejection_reasons(request: FineTuneRequested, parts: tuple[SnapshotPart, ...], min_examples: int) -> Iterator[str]:
    folders = {count.folder_id for part in parts for count in part.folders}
    unknown = [folder for folder in request.data.folders or () if folder not in folders]
    yield from first_names(unknown, before="data.folders: unknown folder", more="data.folders: {} more unknown folders")
    agents = {agent for part in parts for agent in part.agents}
    unknown = [agent for agent in request.data.agents or () if agent not in agents]
    yield from first_names(unknown, before="data.agents: no logs of agent", more="data.agents: no logs of {} more")
    examples = sum(part.positives for part in parts)
    if examples < min_examples:
        left_out: Counter[str] = Counter()
        for part in parts:
            left_out.update(part.left_out)
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        yield f"data: {examples} examples, at least {min_examples}; left out: {counts or 'none'}"


def _planned(active: Active, job: Event) -> PlannedTraining | None:
    if not isinstance(job, TrainingJob):
        return None
    knobs, positives = active.request.training, sum(part.positives for part in active.parts)
    return PlannedTraining(
        base_model=job.base_model,
        trainable_layers=str(knobs.trainable_layers),
        examples=knobs.epochs * trained_pairs(positives),
    )


def _with_gaps(active: Active, warnings: tuple[str, ...]) -> tuple[str, ...]:
    """The warnings, and what the snapshot lacks because topics lost it, or because it does not count."""
    records, last, partitions = Counter[LossKind](), dict[LossKind, datetime](), defaultdict[LossKind, list[int]](list)
    for part in active.parts:
        for lost in part.lost:
            kind = lost.topic, lost.cause
            records[kind] += lost.records
            last[kind] = max(lost.last_at, last.get(kind, lost.last_at))
            partitions[kind].append(part.partition)
    told = [
        f"{kind[0]}: {count} records {_LOSSES.get(kind[1], kind[1])}, the last noticed at "
        f"{last[kind].isoformat(timespec='seconds')}, of partitions {', '.join(map(str, partitions[kind]))}"
        for kind, count in sorted(records.items())
    ]
    ignored = Counter[str]()
    for part in active.parts:
        ignored.update(part.ignored)
    told += [f"ignored: {count} {reason}" for reason, count in sorted(ignored.items())]
    return bounded(tuple(dict.fromkeys((*warnings, *told))))


def _status(request: FineTuneRequested, state: State, now: datetime, reasons: tuple[str, ...] = ()) -> FineTuneStatus:
    return FineTuneStatus(
        request_id=request.request_id,
        model=request.model,
        state=state,
        at=now,
        reasons=reasons,
        asked_sha256=request.digest,
    )


def _accepted(request: FineTuneRequested, now: datetime) -> FineTuneStatus:
    status = _status(request, State.ACCEPTED, now)
    return status.continued(status, now)


def _waiting(state: ModelState, request: FineTuneRequested, now: datetime) -> FineTuneStatus:
    since = state.waiting_since.get(request.request_id, now)
    return _status(request, State.WAITING, now).continued(_accepted(request, since), since)


def _for_each(status: FineTuneStatus, request_ids: tuple[str, ...]) -> tuple[FineTuneStatus, ...]:
    """The same status for several requests."""
    return tuple(status.model_copy(update={"request_id": request_id}) for request_id in request_ids)


def _output(status: FineTuneStatus) -> OutgoingEvent:
    """The event of a status. A final one has a key of its own, which no other can overwrite by compaction."""
    key = request_key(status.model, status.request_id)
    return OutgoingEvent(Topic.FINE_TUNE_STATUS, status, key if status.state.terminal else f"{key}/progress")
