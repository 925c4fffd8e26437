"""The coordinator: brings the events of a model to its state machine, and what follows from them to the world."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import structlog
from msgspec import Struct
from pydantic import BaseModel, ValidationError

from foldtune.errors import ObjectStoreError
from foldtune.events import (
    REPORTING_TIME,
    FineTuneCancelled,
    FineTuneRequested,
    FineTuneStatus,
    ModelReference,
    RequestId,
    SnapshotManifest,
    SnapshotPart,
    State,
    TrainingJob,
    TrainingProgressed,
    now,
)
from foldtune.kafka import partition_of
from foldtune.knobs import ModelName
from foldtune.object_keys import key_segment, model_prefix, snapshot_prefix
from foldtune.object_store import ObjectStore
from foldtune.reasons import reasons_of
from foldtune.settings import Settings
from foldtune.topics import Topic
from streams.errors import PartitionLostError
from streams.metrics import REQUESTS_ENDED
from streams.partitions.changelog_table import Table
from streams.publishing.dead_letters import invalid_record, send_to_dead_letters
from streams.publishing.publisher import EventPublisher, OutgoingEvent, OutgoingRecord, outgoing_records
from streams.requests import lifecycle, retraining_policy
from streams.requests.lifecycle import ModelState, Step

_log = structlog.get_logger()
_TURN = b"t|turn"
# Requests that wait are kept in the state of their model, which is one message of the changelog.
_REQUEST_BYTES, _WAITING_BYTES = 256 * 1024, 768 * 1024
_UNTOLD = b"u|"


class OutboxEntry(Struct, frozen=True):
    """What follows from a decision: messages, and the last words by the keys that they are kept under."""

    messages: tuple[OutgoingRecord, ...]
    ended: dict[str, str]


ENCODER = msgspec.json.Encoder()
DECODER = msgspec.json.Decoder(OutboxEntry)


class _Named(BaseModel):
    """As much of a broken request as is needed to answer it."""

    request_id: RequestId
    model: ModelName


class _Typed(BaseModel):
    type: str = ""


class Coordinator:
    """Owns the models whose names fall into this worker's partitions. One event at a time for each partition."""

    def __init__(self, table: Table, outbox: EventPublisher, store: ObjectStore, settings: Settings) -> None:
        self._table = table
        self._outbox = outbox
        self._store = store
        self._settings = settings
        self._partitions = settings.kafka.partitions
        self._one_at_a_time = asyncio.Lock()
        # By partition and model.
        self._issuing: dict[tuple[int, str], asyncio.Task[None]] = {}
        self._takers: dict[Topic, Callable[[int, bytes], Awaitable[None]]] = {
            Topic.FINE_TUNE_REQUESTS: self._take_request,
            Topic.SNAPSHOT_PARTS: self._take_part,
            Topic.TRAINING_REPORTS: self._take_report,
            Topic.TRAINING_PROGRESS: self._take_progress,
        }

    async def take(self, topic: Topic, partition: int, messages: Sequence[Any]) -> None:
        """Handle events of a control topic; what cannot be read goes to the dead letters.

        Raises:
            PartitionLostError: the events are their new owner's.
        """
        for message in messages:
            if message.value is None:
                continue
            try:
                async with self._one_at_a_time:
                    await self._catch_up(partition)
                    await self._takers[topic](partition, message.value)
            except ValidationError as error:
                await send_to_dead_letters(self._outbox, topic, message, invalid_record(message, error))

    async def tick(self, partition: int) -> None:
        """End what nobody reports the end of, and let the policy ask for what is due. Raises like ``take``."""
        async with self._one_at_a_time:
            if any(self._table.keys(partition, _UNTOLD)):
                await self._catch_up(partition)
            for key in list(self._table.keys(partition, b"m|")):
                model = key.removeprefix(b"m|").decode()
                if self._timed_out(partition, model):
                    await self._catch_up(partition)
                    if step := self._timed_out(partition, model):
                        await self._follow(partition, step)
                self._issue_soon(partition, model)
            for rule in self._settings.policy.rules:
                if partition_of(rule.model, self._partitions) == partition:
                    await self._ask_if_due(partition, rule.model)

    # ── One event ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _take_request(self, partition: int, value: bytes) -> None:
        if _Typed.model_validate_json(value).type == "fine_tune_cancelled":
            cancel = FineTuneCancelled.model_validate_json(value)
            step = lifecycle.cancelled(self._state(partition, cancel.model), cancel, now())
            if step:
                await self._follow(partition, step)
            return
        try:
            request = FineTuneRequested.model_validate_json(value)
        except ValidationError as error:
            named = _Named.model_validate_json(value)
            await self._reject(partition, named.request_id, named.model, reasons_of(error))
            return
        step = lifecycle.requested(self._state(partition, request.model), request, now())
        if reasons := tuple(self._refusals(partition, request, len(value), step)):
            await self._reject(partition, request.request_id, request.model, reasons)
        elif known := self._ended(partition, request.model, request.request_id):
            await self._publish_status(partition, known)
        else:
            _log.info("requested", request_id=request.request_id, model=request.model, origin=request.origin)
            await self._follow(partition, step)

    async def _take_part(self, partition: int, value: bytes) -> None:
        part = SnapshotPart.model_validate_json(value)
        state = self._state(partition, part.model)
        minimum = self._settings.worker.min_examples
        await self._follow(partition, lifecycle.part_arrived(state, part, self._partitions, minimum, now()))
        self._issue_soon(partition, part.model)

    async def _take_report(self, partition: int, value: bytes) -> None:
        status = FineTuneStatus.model_validate_json(value)
        state = self._state(partition, status.model)
        step = lifecycle.reported(state, status, now())
        if step.state == state:
            return
        if status.state is State.COMPLETED:
            learnt = retraining_policy.trained(self._policy(partition, status.model), status.request_id)
            await self._table.write(partition, {_policy_key(status.model): _json(learnt)})
        await self._follow(partition, step)

    async def _take_progress(self, partition: int, value: bytes) -> None:
        progress = TrainingProgressed.model_validate_json(value)
        known = retraining_policy.progressed(self._policy(partition, progress.model), progress)
        await self._table.write(partition, {_policy_key(progress.model): _json(known)})
        await self._ask_if_due(partition, progress.model)

    async def _ask_if_due(self, partition: int, model: str) -> None:
        if self._due(partition, model) is None:
            return
        await self._catch_up(partition)
        if request := self._due(partition, model):
            await self._outbox.publish((OutgoingEvent(Topic.FINE_TUNE_REQUESTS, request, model),), partition)
            asked = retraining_policy.asked(self._policy(partition, model), request)
            await self._table.write(partition, {_policy_key(model): _json(asked)})

    def _due(self, partition: int, model: str) -> FineTuneRequested | None:
        rule = next((rule for rule in self._settings.policy.rules if rule.model == model), None)
        state = self._state(partition, model)
        if rule is None or state.active or state.waiting:
            return None
        return retraining_policy.due(self._policy(partition, model), rule, now())

    def _timed_out(self, partition: int, model: str) -> Step | None:
        state = self._state(partition, model)
        return lifecycle.timed_out(state, self._settings.worker.snapshot_timeout, self._partitions, now())

    # ── What follows ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _follow(self, partition: int, step: Step) -> None:
        # What was decided is durable before anybody hears of it: were it told first, a crash in between could lead to
        # another decision, and a request to two ends. What is to be told is durable before that, under the digest of
        # the state that it goes with: with that state, and not before, it holds.
        state = _json(step.state)
        untold = OutboxEntry(
            tuple(outgoing_records(step.outputs, partition)),
            {_ended_key(last.model, last.request_id).decode(): last.encode().decode() for last in step.ended},
        )
        await self._table.write(partition, {_untold_key(step.state.model, state): ENCODER.encode(untold)})
        await self._table.write(partition, {b"m|" + step.state.model.encode(): state})
        await self._tell(partition)
        for last in step.ended:
            REQUESTS_ENDED.labels(last.state.value).inc()
            _log.info("ended", request_id=last.request_id, model=last.model, state=last.state, reasons=last.reasons)

    async def _tell(self, partition: int) -> None:
        """Publish what was decided, here or by a worker that did not come to tell it."""
        for key in list(self._table.keys(partition, _UNTOLD)):
            model = key.removeprefix(_UNTOLD).split(b"|")[0]
            if key == _untold_key(model.decode(), self._table.get(partition, b"m|" + model) or b""):
                untold = DECODER.decode(self._table.get(partition, key) or b"")
                ended = {name.encode(): last.encode() for name, last in untold.ended.items()}
                if ended:
                    await self._table.write(partition, ended)
                await self._outbox.send(untold.messages)
            await self._table.write(partition, {key: None})

    # ── The job ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _issue_soon(self, partition: int, model: str) -> None:
        """Have the job of a whole snapshot published, beside everything else: the object store may take minutes."""
        task = self._issuing.get((partition, model))
        if task and not task.done():
            return
        self._issuing.pop((partition, model), None)
        if task:
            # What it could not recover from, the worker cannot.
            task.result()
        if self._whole(self._state(partition, model)):
            self._issuing[partition, model] = asyncio.create_task(self._issue(partition, model))

    async def _issue(self, partition: int, model: str) -> None:
        state = self._state(partition, model)
        manifest = self._whole(state)
        if not (manifest and state.active):
            return
        with suppress(PartitionLostError):
            try:
                job = await self._job(state.active.request, manifest)
            except ObjectStoreError:
                # Whoever looks at the clock tries again.
                _log.exception("no manifest yet", model=model, request_id=manifest.request_id)
                return
            async with self._one_at_a_time:
                await self._catch_up(partition)
                # What was decided meanwhile, here or elsewhere, was decided without knowing of this job.
                if self._state(partition, model) == state:
                    deadline = now() + self._settings.trainer.max_duration * self._settings.trainer.max_attempts
                    issued = lifecycle.job_published(state, state.active, deadline + REPORTING_TIME)
                    await self._follow(partition, Step(issued, (job,)))

    def _whole(self, state: ModelState) -> SnapshotManifest | None:
        step = lifecycle.snapshot_taken(state, self._partitions, self._settings.worker.min_examples, now())
        return step.complete if step else None

    async def _job(self, request: FineTuneRequested, manifest: SnapshotManifest) -> OutgoingEvent:
        content = manifest.encode()
        key = f"{snapshot_prefix(request.model, request.request_id)}/manifest.json"
        await asyncio.to_thread(self._store.put, key, content)
        # The time of the snapshot, not of this attempt: a repetition makes the same version and the same job.
        version = f"{manifest.created_at:%Y%m%dT%H%M%S}-{key_segment(request.request_id)[-8:]}"
        job = TrainingJob(
            request=request,
            base_model=request.base_model or self._settings.trainer.base_model,
            snapshot_uri=self._store.uri(key),
            snapshot_sha256=hashlib.sha256(content).hexdigest(),
            output_uri=self._store.uri(model_prefix(request.model, version)),
            version=version,
            published_at=manifest.created_at,
            max_seconds=int(self._settings.trainer.max_duration.total_seconds()),
        )
        return OutgoingEvent(Topic.TRAINING_JOBS, job, request.request_id)

    async def _reject(self, partition: int, request_id: str, model: str, reasons: tuple[str, ...]) -> None:
        # Under an id that is taken already, another event ends nothing: how that request stands is the answer.
        if known := self._ended(partition, model, request_id):
            await self._publish_status(partition, known)
            return
        if standing := lifecycle.under_way(self._state(partition, model), request_id, now()):
            await self._outbox.publish((standing,), partition)
            return
        status = FineTuneStatus(request_id=request_id, model=model, state=State.REJECTED, at=now(), reasons=reasons)
        await self._publish_status(partition, status)
        await self._table.write(partition, {_ended_key(model, request_id): status.encode()})
        REQUESTS_ENDED.labels(status.state.value).inc()
        _log.info("ended", request_id=request_id, model=model, state=status.state, reasons=reasons)

    async def _publish_status(self, partition: int, status: FineTuneStatus) -> None:
        await self._outbox.publish((OutgoingEvent(Topic.FINE_TUNE_STATUS, status, status.request_id),), partition)

    def _refusals(self, partition: int, request: FineTuneRequested, size: int, step: Step) -> Iterator[str]:
        if size > _REQUEST_BYTES:
            yield f"event: {size} bytes, at most {_REQUEST_BYTES}"
        if partition_of(request.model, self._partitions) != partition:
            yield f"key: the event must be keyed by its model name {request.model!r}"
        if request in step.state.waiting and (waiting := len(_json(step.state))) > _WAITING_BYTES:
            yield f"model: requests of {waiting} bytes wait for {request.model!r}, at most {_WAITING_BYTES}"
        base: ModelReference | None = request.base_model
        if base and base.uri.startswith("hf://") and base.revision is None:
            yield "base_model.revision: a hub model needs one, so that the same request means the same model"
        if base and base.uri.startswith("s3://") and not base.uri.startswith(f"s3://{self._store.bucket}/"):
            yield f"base_model.uri: must be in the bucket {self._store.bucket!r}"

    async def _catch_up(self, partition: int) -> None:
        """Know what another worker may have decided meanwhile, before deciding anything that others will hear of.

        A worker that was paused for longer than its session wakes up with an old state, in which a request may be
        overdue that has long ended. A write of its own brings in all that was written since, told or not.
        """
        await self._table.write(partition, {_TURN: b""})
        await self._tell(partition)

    # ── State ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _state(self, partition: int, model: str) -> ModelState:
        value = self._table.get(partition, b"m|" + model.encode())
        return ModelState.model_validate_json(value) if value else ModelState(model=model)

    def _policy(self, partition: int, model: str) -> retraining_policy.PolicyState:
        value = self._table.get(partition, _policy_key(model))
        return retraining_policy.PolicyState.model_validate_json(value) if value else retraining_policy.PolicyState()

    def _ended(self, partition: int, model: str, request_id: str) -> FineTuneStatus | None:
        value = self._table.get(partition, _ended_key(model, request_id))
        return FineTuneStatus.model_validate_json(value) if value else None


def _policy_key(model: str) -> bytes:
    return b"p|" + model.encode()


def _ended_key(model: str, request_id: str) -> bytes:
    return f"r|{model}|{request_id}".encode()


def _untold_key(model: str, state: bytes) -> bytes:
    return _UNTOLD + f"{model}|{hashlib.sha256(state).hexdigest()[:32]}".encode()


def _json(model: BaseModel) -> bytes:
    return model.model_dump_json(exclude_none=True).encode()
