"""What becomes of fine-tune requests: one model's story as a pure function of its events.

Every function takes the model's state and one event, and returns the next state with what is to be published. Both are
stored before anything is published, and what is published may be repeated after a crash: whoever reads it takes a
repetition for what it is (commands and parts carry the request, jobs are started once).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import AwareDatetime

from foldtune.events import (
    FineTuneCancelled,
    FineTuneRequested,
    FineTuneStatus,
    Model,
    SnapshotCommand,
    SnapshotManifest,
    SnapshotPart,
    State,
    TrainingFinished,
)
from foldtune.knobs import ModelName
from foldtune.topics import Topic
from streams.publishing.publisher import OutgoingEvent


class Active(Model):
    """The one request of a model that is being worked on."""

    request: FineTuneRequested
    # Requests that asked for the same while they waited: they share its fate.
    merged: tuple[str, ...] = ()
    since: AwareDatetime
    parts: tuple[SnapshotPart, ...] = ()
    # Set once the training job is published: from then on the launcher and the trainer say how it goes.
    deadline: AwareDatetime | None = None
    status: FineTuneStatus


class ModelState(Model):
    """All that must be known of a model to decide on its next event."""

    model: ModelName
    active: Active | None = None
    waiting: tuple[FineTuneRequested, ...] = ()


@dataclass(frozen=True)
class Step:
    """What follows from one event; ``ended`` are the requests whose story is over, with their last word."""

    state: ModelState
    outputs: tuple[OutgoingEvent, ...] = ()
    ended: tuple[FineTuneStatus, ...] = ()
    # A snapshot is whole: the manifest is to be written and the job published.
    complete: SnapshotManifest | None = None


def requested(state: ModelState, request: FineTuneRequested, now: datetime) -> Step:
    """A new request: worked on at once where nothing else is, else it waits. A known one is answered again."""
    active = state.active
    if known := under_way(state, request.request_id, now):
        return Step(state, (known,))
    accepted = _published(_status(request, State.ACCEPTED, now))
    if active is None:
        started = _start(state, request, (), now)
        return Step(started.state, (accepted, *started.outputs))
    waiting = state.model_copy(update={"waiting": (*state.waiting, request)})
    return Step(waiting, (accepted, _published(_status(request, State.WAITING, now))))


def under_way(state: ModelState, request_id: str, now: datetime) -> OutgoingEvent | None:
    """How a request stands that waits or is worked on; ``None`` for any other."""
    active = state.active
    if active and request_id in {active.request.request_id, *active.merged}:
        return _published(active.status.model_copy(update={"request_id": request_id}))
    waiting = next((other for other in state.waiting if other.request_id == request_id), None)
    return _published(_status(waiting, State.WAITING, now)) if waiting else None


def cancelled(state: ModelState, cancel: FineTuneCancelled, now: datetime) -> Step | None:
    """A request taken back; ``None`` where the model has no such request under way."""
    active = state.active
    who = f"cancelled by {cancel.requested_by}"
    if active and cancel.request_id == active.request.request_id:
        return _end(state, active, State.CANCELLED, now, (who,))
    if active and cancel.request_id in active.merged:
        rest = tuple(name for name in active.merged if name != cancel.request_id)
        last = _status(active.request, State.CANCELLED, now, (who,)).model_copy(
            update={"request_id": cancel.request_id}
        )
        left = state.model_copy(update={"active": active.model_copy(update={"merged": rest})})
        return Step(left, (_published(last),), (last,))
    for request in state.waiting:
        if request.request_id == cancel.request_id:
            last = _status(request, State.CANCELLED, now, (who,))
            others = tuple(other for other in state.waiting if other is not request)
            return Step(state.model_copy(update={"waiting": others}), (_published(last),), (last,))
    return None


def part_arrived(state: ModelState, part: SnapshotPart, partitions: int, min_examples: int, now: datetime) -> Step:
    """One partition's share of the snapshot; with the last one what to do is decided."""
    active = state.active
    if active is None or active.deadline or part.request_id != active.request.request_id:
        return Step(state)
    if part.partition in {known.partition for known in active.parts}:
        return Step(state)
    parts = tuple(sorted((*active.parts, part), key=lambda known: known.partition))
    gathered = state.model_copy(update={"active": active.model_copy(update={"parts": parts})})
    return snapshot_taken(gathered, partitions, min_examples, now) or Step(gathered)


def snapshot_taken(state: ModelState, partitions: int, min_examples: int, now: datetime) -> Step | None:
    """What is decided on the strength of all parts; ``None`` while some are missing, and once the job is out."""
    active = state.active
    if active is None or active.deadline or len(active.parts) < partitions:
        return None
    parts = active.parts
    if errors := tuple(f"partition {known.partition}: {known.error}" for known in parts if known.error):
        return _end(state, active, State.FAILED, now, errors, retryable=True)
    if reasons := tuple(_shortcomings(active.request, parts, min_examples)):
        return _end(state, active, State.REJECTED, now, reasons)
    manifest = SnapshotManifest(
        request_id=active.request.request_id, model=state.model, created_at=active.since, parts=parts
    )
    return Step(state, complete=manifest)


def job_published(state: ModelState, active: Active, deadline: datetime) -> ModelState:
    """The job is out; should nobody report its end by the deadline, it has failed."""
    return state.model_copy(update={"active": active.model_copy(update={"deadline": deadline})})


def reported(state: ModelState, status: FineTuneStatus, now: datetime) -> Step:
    """What the launcher or the trainer says of the active request; with its end the next one begins.

    Nobody else publishes statuses, so a request that was cancelled or has timed out does not end a second time. After a
    crash between a job and the state that knows of it, reports may come before the parts that lead to the job again.
    """
    active = state.active
    if active is None or status.request_id != active.request.request_id:
        return Step(state)
    told = (status, *(status.model_copy(update={"request_id": name}) for name in active.merged))
    outputs = [_published(one) for one in told]
    if not status.state.terminal:
        running = active.model_copy(update={"status": status})
        return Step(state.model_copy(update={"active": running}), tuple(outputs))
    if status.state is State.COMPLETED:
        finished = TrainingFinished(request_id=status.request_id, model=state.model)
        outputs.append(OutgoingEvent(Topic.SNAPSHOT_COMMANDS, finished))
    return _next(state, tuple(outputs), told, now)


def timed_out(state: ModelState, snapshot_timeout: timedelta, partitions: int, now: datetime) -> Step | None:
    """Ends a request whose snapshot or training nobody has reported the end of in time; else ``None``."""
    active = state.active
    if active is None:
        return None
    if active.deadline is None and now - active.since > snapshot_timeout:
        missing = sorted(set(range(partitions)) - {part.partition for part in active.parts})
        what = f"no answer from partitions {missing}" if missing else "its manifest could not be written"
        reason = f"snapshot: {what} within {snapshot_timeout}"
        return _end(state, active, State.FAILED, now, (reason,), retryable=True)
    if active.deadline is not None and now > active.deadline:
        reason = f"training: no end was reported by {active.deadline.isoformat()}"
        return _end(state, active, State.FAILED, now, (reason,), retryable=True)
    return None


def _start(state: ModelState, request: FineTuneRequested, merged: tuple[str, ...], now: datetime) -> Step:
    status = _status(request, State.SNAPSHOTTING, now)
    active = Active(request=request, merged=merged, since=now, status=status)
    # Each owner of a partition fills in its own.
    command = SnapshotCommand(request=request, partition=0, issued_at=now)
    followers = tuple(_published(status.model_copy(update={"request_id": name})) for name in merged)
    return Step(
        state.model_copy(update={"active": active}),
        (_published(status), *followers, OutgoingEvent(Topic.SNAPSHOT_COMMANDS, command)),
    )


def _end(
    state: ModelState,
    active: Active,
    last: State,
    now: datetime,
    reasons: tuple[str, ...],
    *,
    retryable: bool = False,
) -> Step:
    status = _status(active.request, last, now, reasons).model_copy(update={"retryable": retryable})
    ended = (status, *(status.model_copy(update={"request_id": name}) for name in active.merged))
    return _next(state, tuple(_published(one) for one in ended), ended, now)


def _next(
    state: ModelState, outputs: tuple[OutgoingEvent, ...], ended: tuple[FineTuneStatus, ...], now: datetime
) -> Step:
    idle = state.model_copy(update={"active": None})
    if not state.waiting:
        return Step(idle, outputs, ended)
    first, *others = state.waiting
    same = tuple(other.request_id for other in others if _asks_for(other) == _asks_for(first))
    rest = tuple(other for other in others if other.request_id not in same)
    started = _start(idle.model_copy(update={"waiting": rest}), first, same, now)
    return Step(started.state, (*outputs, *started.outputs), ended)


def _asks_for(request: FineTuneRequested) -> tuple[object, ...]:
    return request.base_model, request.data, request.dataset, request.training, request.weights, request.seed


def _shortcomings(request: FineTuneRequested, parts: Iterable[SnapshotPart], min_examples: int) -> Iterable[str]:
    parts = tuple(parts)
    known = {count.folder_id for part in parts for count in part.folders}
    for folder in request.data.folders or ():
        if folder not in known:
            yield f"data.folders: unknown folder {folder!r}"
    seen = {agent for part in parts for agent in part.agents}
    for agent in request.data.agents or ():
        if agent not in seen:
            yield f"data.agents: no logs of agent {agent!r}"
    examples = sum(part.positives for part in parts)
    if examples < min_examples:
        left_out: Counter[str] = Counter()
        for part in parts:
            left_out.update(part.left_out)
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        yield f"data: {examples} examples, at least {min_examples}; left out: {reasons or 'none'}"


def _status(request: FineTuneRequested, state: State, now: datetime, reasons: tuple[str, ...] = ()) -> FineTuneStatus:
    return FineTuneStatus(request_id=request.request_id, model=request.model, state=state, at=now, reasons=reasons)


def _published(status: FineTuneStatus) -> OutgoingEvent:
    return OutgoingEvent(Topic.FINE_TUNE_STATUS, status, status.request_id)
