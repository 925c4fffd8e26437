"""The coordinator: feeds events to the state machines of models, stores the transitions and publishes their outputs."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar

import msgspec
import structlog
from msgspec import Struct
from pydantic import BaseModel, ValidationError

from foldtune import excerpts
from foldtune.bounds import epoch_ms
from foldtune.errors import InfrastructureError, InvalidEventError, RecordRefusedError
from foldtune.events import (
    REPORTING_TIME,
    FineTuneCancelled,
    FineTuneRequested,
    FineTuneStatus,
    ModelReference,
    PolicyDecided,
    RequestId,
    RetrainingPolicy,
    SnapshotManifest,
    SnapshotPart,
    State,
    TrainingFinished,
    TrainingJob,
    TrainingProgressed,
)
from foldtune.kafka import partition_of
from foldtune.knobs import ModelName
from foldtune.object_keys import key_segment, model_prefix, snapshot_manifest_key
from foldtune.object_store import ObjectStore
from foldtune.reasons import explain, kind_of
from foldtune.request_ids import POLICY_PREFIX, RESERVED, is_reserved, is_scheduled
from foldtune.settings import Settings
from foldtune.status_order import first_end
from foldtune.topics import Topic, request_key
from streams.errors import PartitionLostError, UnreadableStateError
from streams.metrics import FAILED_TIMERS, REQUESTS_ENDED
from streams.partitions.broker_clock import now
from streams.partitions.changelog_table import Table
from streams.partitions.consumer import is_at_fault
from streams.partitions.fencing import FencedTable
from streams.publishing.publisher import EventPublisher, OutgoingEvent, OutgoingRecord, outgoing_records
from streams.requests import lifecycle, retraining_policy
from streams.requests.lifecycle import Active, ModelState, Transition
from streams.requests.policies import Policies
from streams.requests.rejections import Rejections
from streams.requests.retraining_policy import Decision, PolicyState, Situation
from streams.threads import MANIFESTS, run_in

_log = structlog.get_logger()
# Of the clocks that EventBridge and the brokers go by.
_SCHEDULE_SKEW = timedelta(minutes=5)
_COMMIT = re.compile("[0-9a-f]{40}")
_M = TypeVar("_M", bound=BaseModel)
# In the dead letter of an entry that cannot be decoded.
_OUTBOX_ORIGIN = "outbox"
_MODEL_PREFIX = b"m|"
_POLICY_PREFIX = b"p|"
_OUTBOX_PREFIX = b"u|"
_ENDS_READ_KEY = b"x|ends"
_WRITTEN_AT_ONCE = 1_000
# The figures of a decision that has not changed are told again after this time.
_RETOLD = timedelta(minutes=1)
# Waiting requests are part of their model's state, which must fit into one message of the changelog.
_MAX_REQUEST_BYTES, _MAX_WAITING_BYTES = 256 * 1024, 768 * 1024
# Requests for the same training share its statuses, and all of these are written at once.
_MAX_WAITING = 50
# What launcher and trainer report; the others are decided here.
_OF_RUNS = frozenset(State) - {State.ACCEPTED, State.WAITING, State.SNAPSHOTTING, State.REJECTED}
# Without these messages a request hangs until it times out.
_REQUIRED = (Topic.SNAPSHOT_COMMANDS.label, Topic.TRAINING_JOBS.label)


class OutboxEntry(Struct, frozen=True):
    """What follows from a transition: messages to publish, and values by the keys to store them under."""

    messages: tuple[OutgoingRecord, ...]
    # Final statuses, and the state of the policy; the name is that of the stored form.
    ended: dict[str, str]


class _RequestIds(BaseModel):
    """The part of any event about a request by which it is answered."""

    request_id: RequestId
    model: ModelName
    # Of any kind: a request with an invalid type is answered, too.
    type: object = ""


class Coordinator:
    """Handles the models that hash to this worker's partitions. One event at a time."""

    def __init__(
        self,
        table: Table,
        publisher: EventPublisher,
        store: ObjectStore,
        settings: Settings,
        statuses: Callable[[int], AsyncIterator[Any]],
        *,
        policies: Policies | None = None,
        rejections: Rejections | None = None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        """``statuses`` reads what a partition of ``fine-tune-status`` holds; the policy goes by ``clock``.

        Without ``policies`` those of the settings count; without ``rejections`` no version is rejected.
        """
        self._statuses = statuses
        # Final statuses need no fence: each is written as it was decided once, by whoever completes the decision.
        self._table = FencedTable(table, (_MODEL_PREFIX, _POLICY_PREFIX, _OUTBOX_PREFIX))
        self._publisher = publisher
        self._store = store
        self._settings = settings
        self._policies = policies or Policies(settings)
        self._rejections = rejections
        self._clock = clock
        # When a policy was published for those who read the topic, and the newest decision told, both since this start.
        self._published: dict[str, datetime] = {}
        self._told: dict[str, PolicyDecided] = {}
        self._partitions = settings.kafka.partitions
        self._lock = asyncio.Lock()
        # Statuses read so far, of requests that had ended: progress before the first record is handled.
        self.statuses_read = 0
        # Jobs being published, by partition and model.
        self._publishing: dict[tuple[int, str], asyncio.Task[None]] = {}
        self._handlers: dict[Topic, Callable[[int, bytes], Awaitable[None]]] = {
            Topic.SNAPSHOT_PARTS: self._handle_part,
            Topic.TRAINING_REPORTS: self._handle_report,
            Topic.TRAINING_PROGRESS: self._handle_progress,
        }

    async def handle(self, topic: Topic, partition: int, messages: Sequence[Any]) -> None:
        """Handle events of a control topic.

        Raises:
            PartitionLostError: another worker owns the partition now; the events are redelivered to it.
            pydantic.ValidationError, InvalidEventError: an event is invalid.
            UnreadableStateError: the state of an event's model cannot be decoded.
        """
        for message in messages:
            if message.value is not None:
                async with self._lock:
                    await self._synchronize(partition)
                    if topic is Topic.FINE_TUNE_REQUESTS:
                        await self._handle_request(partition, message.value, message.timestamp)
                    else:
                        await self._handlers[topic](partition, message.value)

    async def tick(self, partition: int) -> None:
        """Flush the outbox, end overdue requests, publish pending jobs and decide by the policies.

        Raises like ``handle``.
        """
        async with self._lock:
            # A claim is written, so the brokers' time is known from here on.
            if not self._table.claimed(partition) or any(self._table.keys(partition, _OUTBOX_PREFIX)):
                await self._synchronize(partition)
            for key in list(self._table.keys(partition, _MODEL_PREFIX)):
                with _failures_logged(partition, key):
                    model = key.removeprefix(_MODEL_PREFIX).decode()
                    if self._timed_out(partition, model):
                        await self._synchronize(partition)
                        if transition := self._timed_out(partition, model):
                            await self._commit(partition, transition)
                    self._start_publishing_job(partition, model)
            for model in self._policies.models(partition):
                with _failures_logged(partition, _model_key(model)):
                    await self._decide(partition, model)
            for policy in self._policies.unpublished(partition):
                await self._publish_policy(partition, policy)

    # ── Events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _handle_request(self, partition: int, value: bytes, written_ms: int) -> None:
        ids = _RequestIds.model_validate_json(value)
        if (owner := partition_of(ids.model, self._partitions)) != partition:
            # Of a producer with another partitioner. Only this model's own coordinator may say how the request stands.
            if self._is_too_old(written_ms):
                # It would be young again, and was passed on before, by workers with another app_id.
                raise InvalidEventError(f"of another partition, {self._too_old}")
            _log.warning("request of another partition passed on", request_id=ids.request_id, model=ids.model)
            record = OutgoingRecord(Topic.FINE_TUNE_REQUESTS.label, owner, ids.model, value.decode(errors="replace"))
            await self._publisher.send((record,))
            return
        if ids.type == "fine_tune_cancelled":
            cancel = FineTuneCancelled.model_validate_json(value)
            if cancellation := lifecycle.cancelled(self._model_state(partition, cancel.model), cancel, now()):
                await self._commit(partition, cancellation)
            return
        if is_reserved(ids.request_id) and not self._known_status(partition, ids.model, ids.request_id):
            # No rejection: it would end the request that policy or schedule will make under this id.
            self._check_author(partition, _decode_request(value), written_ms)
        try:
            request = _decode_request(value)
        except (ValidationError, InvalidEventError) as error:
            if kind_of(error) == "unknown_version":
                # No rejection, which would be the request's end: it waits in the dead letters for the upgrade.
                raise
            await self._reject(partition, ids.request_id, ids.model, explain(error))
            return
        state = self._model_state(partition, request.model)
        transition = lifecycle.requested(state, request, now())
        if reasons := tuple(self._rejection_reasons(request, transition, written_ms)):
            await self._reject(partition, request.request_id, request.model, reasons)
        elif final_status := self._final_status(partition, request.model, request.request_id):
            await self._commit(partition, lifecycle.answered(state, final_status))
        else:
            _log.info("request received", request_id=request.request_id, model=request.model, origin=request.origin)
            try:
                await self._store_transition(partition, transition)
            except RecordRefusedError as error:
                await self._reject(partition, request.request_id, request.model, (str(error),))

    async def _handle_part(self, partition: int, value: bytes) -> None:
        part = SnapshotPart.model_validate_json(value)
        self._check_partition(part.partition)
        state = self._model_state(partition, part.model)
        min_examples = self._settings.worker.min_examples
        transition = lifecycle.part_received(state, part, self._partitions, min_examples, now())
        if transition.state != state:
            await self._commit(partition, transition)
        self._start_publishing_job(partition, part.model)

    async def _handle_report(self, partition: int, value: bytes) -> None:
        status = FineTuneStatus.model_validate_json(value)
        self._check_report(status)
        state = self._model_state(partition, status.model)
        trainer = self._settings.trainer
        max_training = trainer.max_duration * trainer.max_attempts + REPORTING_TIME
        before, policy = self._policy_state(partition, status.model), self._policies.of(status.model)
        finished = None
        if status.state is State.COMPLETED and state.active:
            finished = TrainingFinished(
                request_id=status.request_id,
                model=status.model,
                rules=retraining_policy.covers(before, policy, state.active.request),
                everything=retraining_policy.covers_everything(state.active.request),
            )
        transition = lifecycle.reported(state, status, max_training, now(), finished)
        if transition.state == state:
            return
        after = before
        if state.active and status.state.terminal:
            started = state.active.started
            seconds = (now() - started).total_seconds() if started else 0.0
            after = retraining_policy.with_end(before, status, seconds, self._clock())
        if state.active and finished:
            after = retraining_policy.with_training(after, policy, state.active.request, state.active.since)
        await self._commit(partition, transition, None if after == before else after)

    async def _handle_progress(self, partition: int, value: bytes) -> None:
        progress = TrainingProgressed.model_validate_json(value)
        self._check_partition(progress.partition)
        before = self._policy_state(partition, progress.model)
        after = retraining_policy.with_progress(before, progress)
        if after != before:
            await self._table.write(partition, {_policy_key(progress.model): _json(after)})
            await self._decide(partition, progress.model)

    def _check_report(self, status: FineTuneStatus) -> None:
        if status.state not in _OF_RUNS:
            raise InvalidEventError(f"state: {status.state}, which no launcher or trainer reports")
        models = self._store.uri(model_prefix(status.model, ""))
        if status.model_uri and not status.model_uri.startswith(models):
            raise InvalidEventError(f"model_uri: {excerpts.name(status.model_uri)} is not below {models}")

    def _check_partition(self, partition: int) -> None:
        if partition >= self._partitions:
            raise InvalidEventError(f"partition {partition}, at most {self._partitions - 1}")

    # ── Automatic retraining ─────────────────────────────────────────────────────────────────────────────────────────

    async def _decide(self, partition: int, model: str) -> None:
        """Decide on a model by its policy; request what is due, and tell each change of the decision.

        Request, decision and the policy's state are one transition: after a crash all of them are repeated, or none.
        """
        if (decision := self._decision(partition, model)) is None:
            return
        if decision.changed or decision.request:
            await self._synchronize(partition)
            if (decision := self._decision(partition, model)) and (decision.changed or decision.request):
                event, request = decision.event, decision.request
                outputs = (OutgoingEvent(Topic.FINE_TUNE_REQUESTS, request, model),) if request else ()
                change = f"{model}/{event.at.isoformat()}"
                decided = (OutgoingEvent(Topic.POLICY_DECISIONS, event, key) for key in (change, model))
                transition = Transition(self._model_state(partition, model), (*outputs, *decided))
                await self._commit(partition, transition, decision.state)
                self._told[model] = event
                _log.info("policy decided", model=model, decision=event.decision, rule=event.rule)
        elif self._is_outdated(decision.event):
            # A decision that is lost is told again with the next.
            await self._publisher.publish((OutgoingEvent(Topic.POLICY_DECISIONS, decision.event, model),), partition)
            self._told[model] = decision.event

    def _decision(self, partition: int, model: str) -> Decision | None:
        policy = self._policies.of(model)
        if policy is None or not self._policies.loaded:
            return None
        state, policy_state = self._model_state(partition, model), self._policy_state(partition, model)
        last = policy_state.last_request_id
        under_way = state.active.request.request_id if state.active else None
        situation = Situation(
            under_way=under_way or next((request.request_id for request in state.waiting), None),
            last_status=self._known_status(partition, model, last) if last else None,
            min_examples=self._settings.worker.min_examples,
            hourly_price=self._settings.trainer.hourly_price,
        )
        return retraining_policy.decide(policy, policy_state, situation, self._clock())

    def _is_outdated(self, event: PolicyDecided) -> bool:
        """Whether the figures told last are other ones, and a minute old."""
        told = self._told.get(event.model)
        if told is None:
            return True
        if 0 <= (event.at - told.at).total_seconds() < _RETOLD.total_seconds():
            return False
        return event.model_copy(update={"at": told.at}) != told

    async def _publish_policy(self, partition: int, policy: RetrainingPolicy) -> None:
        """What the settings say, for those who read the topic; again only if it is not seen there for a while."""
        published_at = self._published.get(policy.model)
        if published_at is None or not published_at <= policy.at < published_at + _RETOLD:
            await self._publisher.publish((OutgoingEvent(Topic.POLICIES, policy, policy.model),), partition)
            self._published[policy.model] = policy.at

    def _timed_out(self, partition: int, model: str) -> Transition | None:
        state = self._model_state(partition, model)
        return lifecycle.timed_out(state, self._settings.worker.snapshot_timeout, self._partitions, now())

    # ── Transactional outbox ─────────────────────────────────────────────────────────────────────────────────────────

    async def _commit(self, partition: int, transition: Transition, policy: PolicyState | None = None) -> None:
        """Store and publish a transition; one that is too large to be written fails the active request instead."""
        try:
            await self._store_transition(partition, transition, policy)
        except RecordRefusedError as error:
            failure = lifecycle.failed(self._model_state(partition, transition.state.model), str(error), now())
            if failure is None:
                raise
            await self._store_transition(partition, failure)

    async def _store_transition(
        self, partition: int, transition: Transition, policy: PolicyState | None = None
    ) -> None:
        """Store a transition, and only then publish what follows from it.

        Were it published first, a crash in between could lead to another decision, and a request to two final states.

        1. Store the outbox entry, under the digest of the new state: it does not count with any other state.
        2. Store the new state, which commits the entry.
        3. Flush the outbox. After a crash before its end, the partition's next owner does this.

        Raises:
            RecordRefusedError: entry or state are too large; the transition does not count.
        """
        model = transition.state.model
        state = _json(transition.state.model_copy(update={"version": transition.state.version + 1}))
        ends = (*transition.final_statuses, *transition.stopped_statuses)
        puts = {_final_status_key(status.model, status.request_id): status.encode() for status in ends}
        if policy:
            puts[_policy_key(model)] = _json(policy)
        entry = OutboxEntry(
            tuple(_records(transition.outputs, partition)),
            {key.decode(): value.decode() for key, value in puts.items()},
        )
        await self._table.write(partition, {_outbox_key(model, state): msgspec.json.encode(entry)})
        await self._table.write(partition, {_model_key(model): state})
        await self._flush_outbox(partition)
        for status in transition.final_statuses:
            _record_end(status)

    async def _flush_outbox(self, partition: int) -> None:
        """Complete the transitions that this worker or a former owner committed.

        1. Store the final statuses, so that a request with the same id is answered instead of started, and the policy.
        2. Publish the messages.
        3. Delete the entry.
        """
        for key in list(self._table.keys(partition, _OUTBOX_PREFIX)):
            model = key.removeprefix(_OUTBOX_PREFIX).split(b"|")[0].decode()
            value, state = self._table.get(partition, key), self._table.get(partition, _model_key(model))
            # An entry of any other state was not committed.
            refused: tuple[OutgoingRecord, ...] = ()
            if value and key == _outbox_key(model, state or b""):
                refused = await self._publish_entry(partition, key, value)
            await self._table.write(partition, {key: None})
            if any(record.topic in _REQUIRED for record in refused):
                reason = f"{refused[0].topic}: a record of {len(refused[0].value)} bytes cannot be written"
                if failure := lifecycle.failed(self._model_state(partition, model), reason, now()):
                    await self._store_transition(partition, failure)

    async def _publish_entry(self, partition: int, key: bytes, value: bytes) -> tuple[OutgoingRecord, ...]:
        """Store the final statuses of an outbox entry and publish its messages; returns those that were refused."""
        try:
            entry = msgspec.json.decode(value, type=OutboxEntry)
        except msgspec.MsgspecError as error:
            # All models of the partition would wait for it.
            _log.exception("outbox entry not readable", partition=partition, key=key)
            await self._publisher.send_to_dead_letters(value, key, str(error), (_OUTBOX_ORIGIN, partition, -1))
            return ()
        if final := {name.encode(): status.encode() for name, status in entry.ended.items()}:
            await self._table.write(partition, final)
        return await self._publisher.send(entry.messages)

    async def _synchronize(self, partition: int) -> None:
        """Before a decision: apply what others have decided, take over the partition if need be, flush the outbox.

        A zombie resumes with a stale state, in which a request may be overdue that ended long ago; it ends here.
        """
        await self._table.synchronize(partition)
        if self._table.get(partition, _ENDS_READ_KEY) is None:
            await self._read_ends(partition)
        await self._flush_outbox(partition)

    async def _read_ends(self, partition: int) -> None:
        """Before the first request: which ones have ended, as workers with another app_id have published.

        Those are read again from the beginning, and must not be taken for new ones.
        """
        begun_ms, ends = epoch_ms(now()), dict[bytes, bytes | None]()
        async for record in self._statuses(partition):
            self.statuses_read += 1
            try:
                status = FineTuneStatus.model_validate_json(record.value or b"")
            except ValidationError as error:
                _log.warning("invalid status skipped", partition=partition, error="; ".join(explain(error)))
                continue
            if status.state.terminal:
                key = _final_status_key(status.model, status.request_id)
                if first := ends.get(key):
                    status = first_end(FineTuneStatus.model_validate_json(first), status)
                ends[key] = status.encode()
        known = {key for key in ends if self._table.get(partition, key) is not None}
        new = [(key, value) for key, value in ends.items() if key not in known]
        for start in range(0, len(new), _WRITTEN_AT_ONCE):
            await self._table.write(partition, dict(new[start : start + _WRITTEN_AT_ONCE]))
        # Once a count was stored here: as a time it is before every record.
        await self._table.write(partition, {_ENDS_READ_KEY: b"%d" % begun_ms})
        _log.info("ended requests read", partition=partition, requests=len(new))

    # ── Training jobs ────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_publishing_job(self, partition: int, model: str) -> None:
        """Publish the job of a complete snapshot in the background: the object store may take minutes."""
        task = self._publishing.get((partition, model))
        if task and not task.done():
            return
        self._publishing.pop((partition, model), None)
        if task:
            # Raises what the task failed with: brokers or disk.
            task.result()
        if self._complete_manifest(self._model_state(partition, model)):
            self._publishing[partition, model] = asyncio.create_task(self._publish_job(partition, model))

    async def _publish_job(self, partition: int, model: str) -> None:
        state = self._model_state(partition, model)
        manifest = self._complete_manifest(state)
        if not (manifest and state.active):
            return
        with suppress(PartitionLostError):
            try:
                following: Transition | None = await self._job_transition(state, state.active, manifest)
            except InfrastructureError:
                # The next tick retries.
                _log.exception("manifest upload failed, will retry", model=model, request_id=manifest.request_id)
                return
            except Exception as error:
                if not is_at_fault(error):
                    raise
                _log.exception("training job not made", model=model, request_id=manifest.request_id)
                following = lifecycle.failed(state, "; ".join(explain(error)), now())
            async with self._lock:
                await self._synchronize(partition)
                # Dropped if the state has changed meanwhile: that decision did not know of this job.
                if following and self._model_state(partition, model) == state:
                    await self._commit(partition, following)

    async def _job_transition(self, state: ModelState, active: Active, manifest: SnapshotManifest) -> Transition:
        job = await self._upload_manifest(active.request, manifest)
        output = OutgoingEvent(Topic.TRAINING_JOBS, job, request_key(state.model, job.request.request_id))
        return lifecycle.job_published(state, active, output, now())

    def _complete_manifest(self, state: ModelState) -> SnapshotManifest | None:
        min_examples = self._settings.worker.min_examples
        transition = lifecycle.snapshot_completed(state, self._partitions, min_examples, now())
        return transition.manifest if transition else None

    async def _upload_manifest(self, request: FineTuneRequested, manifest: SnapshotManifest) -> TrainingJob:
        """Upload the manifest; returns the job that refers to it."""
        content = manifest.encode()
        key = snapshot_manifest_key(request.model, request.request_id)
        new = await run_in(MANIFESTS, self._store.put_if_absent, key, content)
        if not new and await run_in(MANIFESTS, self._store.get, key) != content:
            # No retry: workers with another app_id have made a snapshot of this request. It stays as it is, and so does
            # their job, if it has begun: the launchers' ledger keeps the first of a request.
            key = snapshot_manifest_key(request.model, request.request_id, hashlib.sha256(content).hexdigest())
            await run_in(MANIFESTS, self._store.put_if_absent, key, content)
        rejected, warnings = await self._rejected_versions(request.model)
        # From the time of the snapshot, not of this attempt: a retry makes the same version and the same job.
        version = f"{manifest.created_at:%Y%m%dT%H%M%S}-{key_segment(request.request_id)[-8:]}"
        return TrainingJob(
            request=request,
            base_model=request.base_model or self._settings.trainer.base_model,
            snapshot_uri=self._store.uri(key),
            snapshot_sha256=hashlib.sha256(content).hexdigest(),
            output_uri=self._store.uri(model_prefix(request.model, version)),
            version=version,
            published_at=manifest.created_at,
            max_seconds=int(self._settings.trainer.max_duration.total_seconds()),
            warnings=warnings,
            rejected_versions=rejected,
        )

    async def _rejected_versions(self, model: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The rejected versions, or a warning that they are not known: no training waits for what is no input."""
        if self._rejections is None:
            return (), ()
        try:
            return await self._rejections.of(model), ()
        except Exception as error:
            # As where policies cannot be read.
            _log.warning("reviews not read", model=model, error=repr(error))
            return (), (f"a rejected version may be the incumbent, as reviews were not read: {type(error).__name__}",)

    # ── Rejections ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _reject(self, partition: int, request_id: str, model: str, reasons: tuple[str, ...]) -> None:
        # An invalid event with the id of an earlier request does not end that request; its status is the answer.
        state = self._model_state(partition, model)
        if status := self._known_status(partition, model, request_id):
            await self._commit(partition, lifecycle.answered(state, status))
            return
        status = FineTuneStatus(request_id=request_id, model=model, state=State.REJECTED, at=now(), reasons=reasons)
        await self._commit(partition, lifecycle.ended(state, status))

    def _rejection_reasons(self, request: FineTuneRequested, transition: Transition, written_ms: int) -> Iterator[str]:
        if self._is_too_old(written_ms):
            yield f"event: {self._too_old}"
        if request in transition.state.waiting and (waiting := len(_json(transition.state))) > _MAX_WAITING_BYTES:
            yield f"model: requests of {waiting} bytes wait for {request.model!r}, at most {_MAX_WAITING_BYTES}"
        if request in transition.state.waiting and (waiting := len(transition.state.waiting)) > _MAX_WAITING:
            yield f"model: {waiting} requests wait for {request.model!r}, at most {_MAX_WAITING}"
        allowed = self._settings.requests
        if allowed.models and request.model not in allowed.models:
            yield f"model: {request.model!r} is none of requests.models"
        base: ModelReference | None = request.base_model
        if base and allowed.base_models and not any(_covers(entry, base.uri) for entry in allowed.base_models):
            yield f"base_model.uri: {excerpts.name(base.uri)} is none of requests.base_models"
        if base and base.uri.startswith("hf://") and not _COMMIT.fullmatch(base.revision or ""):
            yield "base_model.revision: a hub model needs a full commit hash, so that a request always means one model"
        if base and base.uri.startswith("s3://") and not base.uri.startswith(f"s3://{self._store.bucket}/"):
            yield f"base_model.uri: must be in the bucket {self._store.bucket!r}"

    def _check_author(self, partition: int, request: FineTuneRequested, written_ms: int) -> None:
        """Refuse a reserved id of anyone but its owner, as far as events without signatures tell.

        Raises:
            InvalidEventError: neither the policy nor the schedule writes this request.
        """
        if request.request_id.startswith(POLICY_PREFIX):
            state, policy = self._policy_state(partition, request.model), self._policies.of(request.model)
            is_own = retraining_policy.is_own(
                state,
                has_rule=policy is not None and bool(policy.rules),
                request=request,
                written_ms=written_ms,
                state_begun_ms=int(self._table.get(partition, _ENDS_READ_KEY) or 0),
            )
            if not is_own:
                raise InvalidEventError(f"{RESERVED}, and this is none of the policy's")
            return
        if not is_scheduled(request):
            raise InvalidEventError(f"{RESERVED}, and the schedule writes other requests")
        if (models := self._settings.schedule.models) and request.model not in models:
            raise InvalidEventError(f"{RESERVED}, and {request.model!r} is none of schedule.models")
        if request.requested_at > now() + _SCHEDULE_SKEW:
            raise InvalidEventError(f"{RESERVED}, and {request.requested_at.isoformat()} has not come yet")

    def _is_too_old(self, written_ms: int) -> bool:
        # Brokers without timestamps say -1.
        return 0 < written_ms < (now() - self._settings.worker.max_request_age).timestamp() * 1000

    @property
    def _too_old(self) -> str:
        return f"published more than {self._settings.worker.max_request_age} ago (worker.max_request_age)"

    # ── State ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _model_state(self, partition: int, model: str) -> ModelState:
        return self._decoded(partition, _model_key(model), ModelState) or ModelState(model=model)

    def _final_status(self, partition: int, model: str, request_id: str) -> FineTuneStatus | None:
        return self._decoded(partition, _final_status_key(model, request_id), FineTuneStatus)

    def _known_status(self, partition: int, model: str, request_id: str) -> FineTuneStatus | None:
        """The status of a request that was taken before."""
        final, state = self._final_status(partition, model, request_id), self._model_state(partition, model)
        return final or lifecycle.current_status(state, request_id, now())

    def _policy_state(self, partition: int, model: str) -> PolicyState:
        return self._decoded(partition, _policy_key(model), PolicyState) or PolicyState()

    def _decoded(self, partition: int, key: bytes, kind: type[_M]) -> _M | None:
        value = self._table.get(partition, key)
        try:
            return kind.model_validate_json(value) if value else None
        except ValidationError as error:
            raise UnreadableStateError(partition, key, *explain(error)) from error


@contextmanager
def _failures_logged(partition: int, key: bytes) -> Iterator[None]:
    """What fails for one model must not stop the others."""
    try:
        yield
    except Exception as error:
        if not is_at_fault(error):
            raise
        FAILED_TIMERS.labels("tick").inc()
        _log.exception("model failed", partition=partition, key=key)


def _covers(entry: str, uri: str) -> bool:
    # Without the detour of a path: "s3://BUCKET/PREFIX/../…" begins with the entry, too.
    below = entry.endswith("/") and uri.startswith(entry) and ".." not in uri.split("/")
    return below or uri == entry


def _decode_request(value: bytes) -> FineTuneRequested:
    if len(value) > _MAX_REQUEST_BYTES:
        raise InvalidEventError(f"{len(value)} bytes, at most {_MAX_REQUEST_BYTES}")
    return FineTuneRequested.model_validate_json(value)


def _model_key(model: str) -> bytes:
    return _MODEL_PREFIX + model.encode()


def _policy_key(model: str) -> bytes:
    return _POLICY_PREFIX + model.encode()


def _final_status_key(model: str, request_id: str) -> bytes:
    return f"r|{model}|{request_id}".encode()


def _outbox_key(model: str, state: bytes) -> bytes:
    return _OUTBOX_PREFIX + f"{model}|{hashlib.sha256(state).hexdigest()[:32]}".encode()


def _records(outputs: tuple[OutgoingEvent, ...], partition: int) -> Iterator[OutgoingRecord]:
    """The records of a transition; a status once more under the id alone, by which SDKs of version 0.1 search."""
    for record in outgoing_records(outputs, partition):
        yield record
        if record.topic == Topic.FINE_TUNE_STATUS.label and record.key:
            yield msgspec.structs.replace(record, key=record.key.split("/")[1])


def _json(model: BaseModel) -> bytes:
    return model.model_dump_json(exclude_none=True).encode()


def _record_end(status: FineTuneStatus) -> None:
    REQUESTS_ENDED.labels(status.state.value).inc()
    _log.info(
        "request ended",
        request_id=status.request_id,
        model=status.model,
        state=status.state,
        reasons=status.reasons,
    )
