"""Drives executions in a process: the loop that consumes ``training-jobs``.

One thread does everything and never waits for a training: it polls Kafka all the time, with its partitions paused while
all slots are taken, so it stays a member of the group for the hours that a job takes. An event's offset is committed
when its job is settled on the ledger; the events of a launcher that died are redelivered to another.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import structlog
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata, TopicPartition
from pydantic import ValidationError

from foldtune.dead_letters import reject_record
from foldtune.errors import TRANSIENT_ERRORS
from foldtune.events import FineTuneStatus, State, TrainingJob, now
from foldtune.excerpts import excerpt
from foldtune.in_flight import InFlightOffsets
from foldtune.kafka import MEMBERSHIP, POLL_MILLISECONDS, Publisher, consumer
from foldtune.object_store import ObjectStore
from foldtune.reasons import explain
from foldtune.reports import publish_report
from foldtune.settings import Settings
from foldtune.topics import Topic
from launchers.base_model import base_model_problem
from launchers.ended_requests import EndedRequests
from launchers.execution import Execution
from launchers.heartbeats import DEAD_SECONDS, HeartbeatOwnership
from launchers.ledger import Ledger
from launchers.ownership import LeaseOwnership
from launchers.port import Launcher

log = structlog.get_logger(__name__)

GROUP = "foldtune-launcher"
RETRY_SECONDS = 1.0
# Longer than a trainer's grace to write its checkpoint, ...
STOP_SECONDS = 26.5
# ... and than that by a few calls: a cluster kills a process 30 s after SIGTERM.
END_SECONDS = 28.0


class JobConsumer:
    """Runs the jobs of ``training-jobs``, ``parallel`` at a time."""

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        launcher: Launcher,
        *,
        parallel: int = 1,
    ) -> None:
        self._settings = settings
        self._store = store
        self._launcher = launcher
        self._parallel = parallel
        self._executions: dict[tuple[TopicPartition, int], Execution] = {}
        # Of the executions: what their dead letters would hold.
        self._records: dict[tuple[TopicPartition, int], Any] = {}
        self._offsets: dict[TopicPartition, InFlightOffsets] = {}

    def watched(self) -> list[str]:
        """The requests whose runs go on, or have ended without a record of that."""
        return [execution.job.request.request_id for execution in list(self._executions.values()) if execution.running]

    def run(self, stop: threading.Event) -> None:
        """Consume until ``stop`` is set; then interrupt the runs, which leaves their jobs to the next launcher."""
        with ExitStack() as clients:
            connected = None
            while not connected and not stop.is_set():
                with _retried(stop):
                    connected = clients.enter_context(self._connected())
            if connected:
                self._consume(*connected, stop)

    def _consume(self, jobs: Any, ended: EndedRequests, publisher: Publisher, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                with _retried(stop):
                    self._receive(jobs, ended, publisher)
                    ended.refresh()
                self._advance(ended, publisher)
                self._commit(jobs)
        finally:
            self._stop()

    @contextmanager
    def _connected(self) -> Iterator[tuple[Any, EndedRequests, Publisher]]:
        kafka = self._settings.kafka
        with (
            Publisher(kafka) as publisher,
            consumer(kafka) as status_reader,
            consumer(kafka, Topic.TRAINING_JOBS, group=f"{kafka.topic_prefix}{GROUP}", **MEMBERSHIP) as jobs,
        ):
            ended = EndedRequests(status_reader, Topic.FINE_TUNE_STATUS.named(kafka.topic_prefix))
            ended.catch_up()
            yield jobs, ended, publisher

    def _receive(self, jobs: Any, ended: EndedRequests, publisher: Publisher) -> None:
        slots_taken = sum(not execution.elsewhere for execution in self._executions.values())
        partitions = jobs.assignment()
        if slots_taken >= self._parallel:
            jobs.pause(*partitions)
        else:
            jobs.resume(*partitions)
        # A rebalance in here may bring a partition that is not paused: one event too many then waits for its slot.
        for partition, records in jobs.poll(timeout_ms=POLL_MILLISECONDS, max_records=1).items():
            for record in records:
                offsets = self._offsets.setdefault(partition, InFlightOffsets())
                if offsets.start(record.offset):
                    try:
                        self._accept(partition, record, ended, publisher)
                    except TRANSIENT_ERRORS:
                        # To be read again: an offset in flight that nothing settles would hold up its partition.
                        offsets.forget(record.offset)
                        jobs.seek(partition, record.offset)
                        raise

    def _accept(self, partition: TopicPartition, record: Any, ended: EndedRequests, publisher: Publisher) -> None:
        try:
            job = TrainingJob.model_validate_json(record.value or b"")
        except ValidationError as error:
            reject_record(publisher, record, error)
            self._offsets[partition].settle(record.offset)
            return
        ledger = Ledger(self._store, job.request.model, job.request.request_id)
        detached = self._launcher.detached
        self._records[partition, record.offset] = record
        self._executions[partition, record.offset] = Execution(
            job,
            ledger=ledger,
            ownership=LeaseOwnership(self._launcher.submit_timeout) if detached else HeartbeatOwnership(ledger),
            launcher=self._launcher,
            report=partial(publish_report, publisher),
            max_attempts=self._settings.trainer.max_attempts,
            request_ended=partial(_caught_up_and_ended, ended, job),
            base_model_problem=partial(
                base_model_problem, job.base_model, self._store, self._settings.trainer.model_folders
            ),
        )

    def _advance(self, ended: EndedRequests, publisher: Publisher) -> None:
        for (partition, offset), execution in list(self._executions.items()):
            request = execution.job.request
            state = ended.state(request.model, request.request_id)
            # A trainer that has reported its model as completed ends by itself.
            cancelled = state is not None and not (state is State.COMPLETED and execution.running)
            running = sum(other.running for other in self._executions.values())
            try:
                settled = _advance(execution, may_start=running < self._parallel, cancelled=cancelled)
            except (OSError, MemoryError):
                raise
            except Exception as error:
                # A defect that this job meets must not end the others, nor this process, which would meet it again.
                settled = _give_up(execution, self._records[partition, offset], publisher, error)
            if settled:
                self._offsets[partition].settle(offset)
                del self._executions[partition, offset], self._records[partition, offset]

    def _commit(self, jobs: Any) -> None:
        """Commit the offsets of settled events, in the partitions that are still assigned."""
        assigned = jobs.assignment()
        for partition, offsets in self._offsets.items():
            position = offsets.committable()
            if position is None:
                continue
            if partition in assigned:
                try:
                    jobs.commit({partition: OffsetAndMetadata(position, "", -1)})
                except KafkaError as error:
                    # Revoked at this moment: its next owner finds the job settled on the ledger.
                    source = {"topic": partition.topic, "partition": partition.partition, "offset": position}
                    log.warning("offset not committed", **source, error=str(error))
                    continue
            offsets.committed(position)

    def _stop(self) -> None:
        """Interrupt all runs and record that; those that take too long die with this process. Detached runs go on."""
        if self._launcher.detached:
            return
        for execution in self._executions.values():
            try:
                execution.interrupt()
            except TRANSIENT_ERRORS as error:
                request_id = execution.job.request.request_id
                log.warning("claim not given back", request_id=request_id, error=str(error))
        running = [execution for execution in self._executions.values() if execution.running]
        deadline = time.monotonic() + STOP_SECONDS
        while any(execution.running for execution in running) and time.monotonic() < deadline:
            for execution in running:
                if execution.running:
                    _advance(execution, may_start=False)
            time.sleep(0.05)
        for execution in running:
            log_left(execution.job.request.request_id, recorded=not execution.running)


@contextmanager
def _retried(stop: threading.Event) -> Iterator[None]:
    """Outlasts brokers that do not answer: the caller's loop tries again, and the runs go on meanwhile."""
    try:
        yield
    except TRANSIENT_ERRORS as error:
        log.warning("transient error, will retry", error=excerpt(str(error)))
        stop.wait(RETRY_SECONDS)


def log_left(request_id: str, *, recorded: bool) -> None:
    """Say who takes up the job of a run that was interrupted, and when."""
    if recorded:
        log.info("run interrupted, left to the next launcher", request_id=request_id)
    else:
        within = f"{DEAD_SECONDS:.0f} s, on this machine at once"
        log.warning("run interrupted without a record, left to the next launcher", request_id=request_id, within=within)


def _give_up(execution: Execution, record: Any, publisher: Publisher, error: Exception) -> bool:
    """End a job that cannot be carried out: its run, its request and its event; ``False`` to try that again."""
    request = execution.job.request
    with suppress(Exception):
        execution.interrupt()
    reasons = explain(error)
    status = FineTuneStatus(
        request_id=request.request_id, model=request.model, state=State.FAILED, at=now(), reasons=reasons
    )
    try:
        reject_record(publisher, record, error)
        publish_report(publisher, status)
    except TRANSIENT_ERRORS as unreachable:
        log.warning("transient error, will retry", request_id=request.request_id, error=str(unreachable))
        return False
    return True


def _caught_up_and_ended(ended: EndedRequests, job: TrainingJob) -> bool:
    ended.catch_up()
    return ended.state(job.request.model, job.request.request_id) is not None


def _advance(execution: Execution, *, may_start: bool, cancelled: bool = False) -> bool:
    try:
        if cancelled:
            execution.cancel()
        return execution.advance(may_start=may_start)
    except TRANSIENT_ERRORS as error:
        log.warning("transient error, will retry", request_id=execution.job.request.request_id, error=str(error))
        return False
