"""The state machine of a model: its transitions, and that every request has exactly one final status."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from foldtune.events import (
    MAX_CURVE_POINTS,
    QUEUEING_TIME,
    REPORTING_TIME,
    FineTuneCancelled,
    FineTuneRequested,
    FineTuneStatus,
    FolderCount,
    LostRecords,
    ModelReference,
    PlannedTraining,
    Progress,
    SnapshotCommand,
    SnapshotPart,
    State,
    TrainingFinished,
    TrainingJob,
)
from foldtune.knobs import DataSelection, TrainingKnobs, WeightKnobs
from foldtune.pairs import trained_pairs
from foldtune.topics import Topic
from streams.publishing.publisher import OutgoingEvent
from streams.requests import lifecycle
from streams.requests.lifecycle import ModelState, Transition
from tests.examples import examples

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PARTITIONS = 2
TRAINING = timedelta(hours=1)
# Any event: what it says is the coordinator's.
JOB = OutgoingEvent(Topic.TRAINING_JOBS, TrainingFinished(request_id="r", model="m"), "m/r")


def request(name: str, **changes: Any) -> FineTuneRequested:
    return FineTuneRequested(request_id=name, model="m", requested_at=NOW, **changes)


def part(name: str, partition: int, examples: int = 30, **changes: Any) -> SnapshotPart:
    folders = (FolderCount(folder_id=f"f{partition}", examples=examples, documents=10),)
    return SnapshotPart(request_id=name, model="m", partition=partition, folders=folders, positives=examples, **changes)


def status(name: str, state: State) -> FineTuneStatus:
    return FineTuneStatus(request_id=name, model="m", state=state, at=NOW)


def bare(status: FineTuneStatus | None) -> FineTuneStatus:
    """A status without the times of its states, and without what was asked for."""
    assert status
    return status.model_copy(update={"states": (), "asked_sha256": None})


def states(transition: Transition) -> list[tuple[str, State]]:
    events = [output.event for output in transition.outputs]
    return [(event.request_id, event.state) for event in events if isinstance(event, FineTuneStatus)]


def commands(transition: Transition) -> list[str]:
    events = [output.event for output in transition.outputs]
    return [event.request.request_id for event in events if isinstance(event, SnapshotCommand)]


def gather(state: ModelState, name: str, **changes: Any) -> Transition:
    for partition in range(PARTITIONS):
        transition = lifecycle.part_received(state, part(name, partition, **changes), PARTITIONS, 20, NOW)
        state = transition.state
    return transition


@pytest.mark.parametrize("end", [State.FAILED, State.CANCELLED, State.COMPLETED])
def test_every_end_of_a_training_says_what_was_planned(end: State) -> None:
    asked = request("r", training=TrainingKnobs(epochs=3, trainable_layers=2))
    job = TrainingJob(
        request=asked,
        base_model=ModelReference(uri="hf://org/model"),
        snapshot_uri="s3://bucket/snapshot",
        snapshot_sha256="0" * 64,
        output_uri="s3://bucket/models",
        version="1",
        published_at=NOW,
        max_seconds=60,
    )
    state = gather(lifecycle.requested(ModelState(model="m"), asked, NOW).state, "r", examples=500).state
    assert state.active
    assert state.active.status.planned is None
    state = lifecycle.job_published(state, state.active, OutgoingEvent(Topic.TRAINING_JOBS, job, "m/r"), NOW).state
    state = lifecycle.reported(state, status("r", State.RUNNING), TRAINING, NOW).state
    if end is State.CANCELLED:
        cancel = FineTuneCancelled(request_id="r", model="m", requested_at=NOW)
        ended = lifecycle.cancelled(state, cancel, NOW)
    else:
        ended = lifecycle.reported(state, status("r", end), TRAINING, NOW)
    assert ended
    (final,) = ended.final_statuses
    planned = PlannedTraining(base_model=job.base_model, trainable_layers="2", examples=3 * trained_pairs(1_000))
    assert (final.state, final.planned, final.asked_sha256) == (end, planned, asked.digest)


def training(name: str = "r", *waiting: FineTuneRequested) -> ModelState:
    state = lifecycle.requested(ModelState(model="m"), request(name), NOW).state
    for other in waiting:
        state = lifecycle.requested(state, other, NOW).state
    state = gather(state, name).state
    assert state.active
    return lifecycle.job_published(state, state.active, JOB, NOW).state


def test_a_request_starts_a_snapshot_of_every_partition() -> None:
    transition = lifecycle.requested(ModelState(model="m"), request("r"), NOW)
    assert states(transition) == [("r", State.ACCEPTED), ("r", State.SNAPSHOTTING)]
    assert commands(transition) == ["r"]
    (command,) = [output for output in transition.outputs if output.topic is Topic.SNAPSHOT_COMMANDS]
    assert command.key is None


def test_a_repeated_request_is_answered_and_starts_nothing() -> None:
    first = lifecycle.requested(ModelState(model="m"), request("r"), NOW)
    again = lifecycle.requested(first.state, request("r"), NOW)
    assert again.state == first.state
    assert (states(again), commands(again)) == ([("r", State.SNAPSHOTTING)], [])


def test_a_complete_snapshot_leads_to_one_job() -> None:
    state = lifecycle.requested(ModelState(model="m"), request("r"), NOW).state
    transition = gather(state, "r")
    assert transition.manifest
    assert [part.partition for part in transition.manifest.parts] == [0, 1]
    assert transition.state.active
    running = lifecycle.job_published(transition.state, transition.state.active, JOB, NOW).state
    assert lifecycle.part_received(running, part("r", 1), PARTITIONS, 20, NOW).manifest is None


def test_a_redelivered_part_counts_once() -> None:
    state = lifecycle.requested(ModelState(model="m"), request("r"), NOW).state
    once = lifecycle.part_received(state, part("r", 0), PARTITIONS, 20, NOW)
    twice = lifecycle.part_received(once.state, part("r", 0), PARTITIONS, 20, NOW)
    assert twice.state == once.state
    assert twice.manifest is None


def test_too_few_examples_are_rejected_with_the_counts() -> None:
    state = lifecycle.requested(ModelState(model="m"), request("r"), NOW).state
    transition = gather(state, "r", examples=5, left_out={"no label": 4})
    assert states(transition) == [("r", State.REJECTED)]
    assert transition.final_statuses[0].reasons == ("data: 10 examples, at least 20; left out: 8 no label",)
    assert transition.state.active is None


def test_unknown_folders_and_agents_are_named() -> None:
    data = DataSelection(folders=("f0", "nowhere"), agents=("nobody",))
    state = lifecycle.requested(ModelState(model="m"), request("r", data=data), NOW).state
    transition = gather(state, "r")
    assert transition.final_statuses[0].reasons == (
        "data.folders: unknown folder 'nowhere'",
        "data.agents: no logs of agent 'nobody'",
    )


def test_a_failed_part_fails_the_request_as_retryable() -> None:
    state = lifecycle.requested(ModelState(model="m"), request("r"), NOW).state
    transition = gather(state, "r", error="refused")
    (last,) = transition.final_statuses
    assert (last.state, last.retryable) == (State.FAILED, True)
    assert last.reasons == ("partition 0: refused", "partition 1: refused")


def test_the_next_request_waits_for_the_first_to_end() -> None:
    state = training("r", request("s", weights=WeightKnobs(focus=2.0)))
    transition = lifecycle.reported(state, status("r", State.COMPLETED), TRAINING, NOW)
    assert commands(transition) == ["s"]
    assert tuple(map(bare, transition.final_statuses)) == (status("r", State.COMPLETED),)
    assert any(isinstance(output.event, TrainingFinished) for output in transition.outputs)


def test_waiting_requests_for_the_same_training_are_merged() -> None:
    state = training("r", request("s"), request("t"), request("u", seed=1))
    started = lifecycle.reported(state, status("r", State.COMPLETED), TRAINING, NOW).state
    assert started.active
    assert (started.active.request.request_id, started.active.merged) == ("s", ("t",))
    running = lifecycle.job_published(gather(started, "s").state, started.active, JOB, NOW).state
    transition = lifecycle.reported(running, status("s", State.COMPLETED), TRAINING, NOW)
    assert [status.request_id for status in transition.final_statuses] == ["s", "t"]
    assert ("t", State.COMPLETED) in states(transition)
    assert commands(transition) == ["u"]


def test_a_status_is_published_for_all_merged_requests() -> None:
    started = lifecycle.reported(
        training("r", request("s"), request("t")), status("r", State.FAILED), TRAINING, NOW
    ).state
    assert started.active
    running = lifecycle.job_published(gather(started, "s").state, started.active, JOB, NOW).state
    transition = lifecycle.reported(running, status("s", State.RUNNING), TRAINING, NOW)
    assert states(transition) == [("s", State.RUNNING), ("t", State.RUNNING)]
    assert transition.state.active
    assert bare(transition.state.active.status) == status("s", State.RUNNING)


def test_a_request_can_be_cancelled_in_every_state() -> None:
    def cancel(name: str) -> FineTuneCancelled:
        return FineTuneCancelled(request_id=name, model="m", requested_at=NOW, requested_by="ann")

    state = training("r", request("s"), request("t"))
    waiting = lifecycle.cancelled(state, cancel("t"), NOW)
    assert waiting
    assert states(waiting) == [("t", State.CANCELLED)]
    running = lifecycle.cancelled(waiting.state, cancel("r"), NOW)
    assert running
    assert running.final_statuses[0].reasons == ("cancelled by ann",)
    assert commands(running) == ["s"]
    assert lifecycle.cancelled(running.state, cancel("r"), NOW) is None
    # A report that the trainer sent before it was cancelled.
    late = lifecycle.reported(running.state, status("r", State.COMPLETED), TRAINING, NOW)
    assert (late.state, late.outputs) == (running.state, ())


def test_a_request_without_a_final_status_times_out() -> None:
    snapshotting = lifecycle.requested(ModelState(model="m"), request("r"), NOW).state
    limit = timedelta(minutes=5)
    assert lifecycle.timed_out(snapshotting, limit, PARTITIONS, NOW + limit) is None
    late = lifecycle.timed_out(snapshotting, limit, PARTITIONS, NOW + limit * 2)
    assert late
    assert late.final_statuses[0].reasons == ("snapshot: no answer from partitions [0, 1] within 0:05:00",)
    whole = gather(snapshotting, "r").state
    unwritten = lifecycle.timed_out(whole, limit, PARTITIONS, NOW + limit * 2)
    assert unwritten
    assert unwritten.final_statuses[0].reasons == ("snapshot: its manifest could not be written within 0:05:00",)
    queued = lifecycle.timed_out(training(), limit, PARTITIONS, NOW + QUEUEING_TIME + 2 * REPORTING_TIME)
    assert queued
    assert queued.final_statuses[0].retryable
    assert "no start was reported" in queued.final_statuses[0].reasons[0]


def test_the_time_of_a_training_begins_with_its_first_step() -> None:
    later = NOW + timedelta(days=3)
    queued = lifecycle.reported(training(), status("r", State.SUBMITTED), TRAINING, NOW).state
    assert lifecycle.timed_out(queued, TRAINING, PARTITIONS, later) is None
    running = lifecycle.reported(queued, status("r", State.RUNNING), TRAINING, later).state
    # A second attempt has no more time than the first.
    again = lifecycle.reported(running, status("r", State.SUBMITTED), TRAINING, later).state
    again = lifecycle.reported(again, status("r", State.RUNNING), TRAINING, later + TRAINING / 2).state
    assert lifecycle.timed_out(again, TRAINING, PARTITIONS, later + TRAINING) is None
    lost = lifecycle.timed_out(again, TRAINING, PARTITIONS, later + TRAINING + timedelta(seconds=1))
    assert lost
    assert "no end was reported" in lost.final_statuses[0].reasons[0]


def test_a_request_says_that_it_waits_for_a_launcher() -> None:
    state = training("r")
    assert state.active
    assert (state.active.status.state, state.active.status.waiting_for) == (State.SNAPSHOTTING, "launcher")
    submitted = lifecycle.reported(state, status("r", State.SUBMITTED), TRAINING, NOW).state
    assert submitted.active
    assert submitted.active.status.waiting_for is None


def test_the_page_of_the_log_stays_in_later_reports() -> None:
    page = status("r", State.RUNNING).model_copy(update={"log_url": "https://log"})
    state = lifecycle.reported(training(), page, TRAINING, NOW).state
    last = lifecycle.reported(state, status("r", State.FAILED), TRAINING, NOW)
    assert last.final_statuses[0].log_url == "https://log"


def test_a_failure_tells_what_the_trainer_has_reported_of_its_last_attempt() -> None:
    def told(state: State, *reasons: str) -> FineTuneStatus:
        return status("r", state).model_copy(update={"reasons": reasons})

    first = lifecycle.reported(training(), told(State.RUNNING, "no bucket"), TRAINING, NOW).state
    again = lifecycle.reported(first, told(State.RUNNING), TRAINING, NOW).state
    last = lifecycle.reported(again, told(State.RUNNING, "disk full"), TRAINING, NOW).state
    exit_code = "the trainer could not finish and requested a retry"
    # A launcher on the trainer's machine has read its log.
    for reasons in ((exit_code,), (exit_code, "disk full")):
        (failed,) = lifecycle.reported(last, told(State.FAILED, *reasons), TRAINING, NOW).final_statuses
        assert failed.reasons == (exit_code, "disk full")
    (failed,) = lifecycle.reported(again, told(State.FAILED, exit_code), TRAINING, NOW).final_statuses
    assert failed.reasons == (exit_code,)
    (completed,) = lifecycle.reported(last, told(State.COMPLETED), TRAINING, NOW).final_statuses
    assert completed.reasons == ()
    many = lifecycle.reported(last, told(State.RUNNING, *(str(number) for number in range(25))), TRAINING, NOW).state
    (failed,) = lifecycle.reported(many, told(State.FAILED, *"abcdefgh"), TRAINING, NOW).final_statuses
    assert (len(failed.reasons), failed.reasons[-1]) == (26, "and 8 more")


def test_a_late_report_of_the_launcher_keeps_why_the_attempt_failed_and_that_of_the_next_one_does_not() -> None:
    def page(number: int) -> FineTuneStatus:
        return status("r", State.RUNNING).model_copy(update={"log_url": f"https://log/{number}"})

    def end_after(*reports: FineTuneStatus) -> tuple[str, ...]:
        state = training()
        for report in (*reports, status("r", State.FAILED)):
            transition = lifecycle.reported(state, report, TRAINING, NOW)
            state = transition.state
        return transition.final_statuses[0].reasons

    error = status("r", State.RUNNING).model_copy(update={"reasons": ("disk full",)})
    assert end_after(error, page(1)) == ("disk full",)
    assert end_after(page(1), error, page(1)) == ("disk full",)
    assert end_after(page(1), error, page(2)) == ()
    assert end_after(page(1), error, page(1), status("r", State.RUNNING)) == ()


def shared_training() -> ModelState:
    """Of requests s, t and u, of which s leads; its job is published."""
    state = training("r", request("s"), request("t"), request("u"))
    started = lifecycle.reported(state, status("r", State.FAILED), TRAINING, NOW).state
    assert started.active
    return lifecycle.job_published(gather(started, "s").state, started.active, JOB, NOW).state


def cancel(state: ModelState, name: str) -> Transition:
    event = FineTuneCancelled(request_id=name, model="m", requested_at=NOW, requested_by="ann")
    transition = lifecycle.cancelled(state, event, NOW)
    assert transition
    return transition


def test_where_a_training_ends_without_a_model_its_cancelled_leader_is_told_to_stop_too() -> None:
    left = cancel(shared_training(), "s").state
    failed = lifecycle.reported(left, status("s", State.FAILED), TRAINING, NOW)
    assert states(failed) == [("t", State.FAILED), ("u", State.FAILED), ("s", State.CANCELLED)]
    (stopped,) = [
        output.event
        for output in failed.outputs
        if isinstance(output.event, FineTuneStatus) and output.event.request_id == "s"
    ]
    assert stopped.run_continues is None
    assert failed.stopped_statuses == (stopped,)


def test_a_cancelled_leader_leaves_its_training_to_those_who_share_it() -> None:
    left = cancel(shared_training(), "s")
    assert [(status.request_id, status.state) for status in left.final_statuses] == [("s", State.CANCELLED)]
    assert left.final_statuses[0].run_continues
    assert lifecycle.cancelled(left.state, FineTuneCancelled(request_id="s", model="m", requested_at=NOW), NOW) is None
    running = lifecycle.reported(left.state, status("s", State.RUNNING), TRAINING, NOW)
    assert states(running) == [("t", State.RUNNING), ("u", State.RUNNING)]
    done = lifecycle.reported(running.state, status("s", State.COMPLETED), TRAINING, NOW)
    assert [status.request_id for status in done.final_statuses] == ["t", "u"]


def test_a_training_is_stopped_once_nobody_wants_it() -> None:
    state = cancel(cancel(shared_training(), "s").state, "u").state
    last = cancel(state, "t")
    assert [status.request_id for status in last.final_statuses] == ["t"]
    # The launcher knows the training by the id of its leader.
    told = [output.event for output in last.outputs if isinstance(output.event, FineTuneStatus)]
    assert [(status.request_id, status.state, status.run_continues) for status in told] == [
        ("t", State.CANCELLED, None),
        ("s", State.CANCELLED, None),
    ]
    assert last.stopped_statuses == (told[1],)
    assert last.state.active is None


class Histories(RuleBasedStateMachine):
    """Random histories with redelivery: each request ends exactly once, and only one is active at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.state = ModelState(model="m")
        self.requested: list[str] = []
        self.ended: list[str] = []

    def apply(self, transition: Transition | None) -> None:
        if transition is None:
            return
        self.state = transition.state
        if transition.manifest and transition.state.active:
            self.state = lifecycle.job_published(transition.state, transition.state.active, JOB, NOW).state
        self.ended += [status.request_id for status in transition.final_statuses]

    @rule(seed=st.integers(0, 1))
    def request(self, seed: int) -> None:
        name = f"r{len(self.requested)}"
        self.requested.append(name)
        self.apply(lifecycle.requested(self.state, request(name, seed=seed), NOW))

    @precondition(lambda self: bool(set(self.requested) - set(self.ended)))
    @rule(pick=st.randoms())
    def repeat_request(self, pick: Any) -> None:
        name = pick.choice(sorted(set(self.requested) - set(self.ended)))
        known = next((other for other in self.state.waiting if other.request_id == name), None)
        self.apply(lifecycle.requested(self.state, known or request(name), NOW))

    @precondition(lambda self: self.requested)
    @rule(pick=st.randoms(), partition=st.integers(0, 1), examples=st.integers(5, 30))
    def part(self, pick: Any, partition: int, examples: int) -> None:
        arrived = part(pick.choice(self.requested), partition, examples)
        self.apply(lifecycle.part_received(self.state, arrived, PARTITIONS, 20, NOW))

    @precondition(lambda self: self.requested)
    @rule(pick=st.randoms(), state=st.sampled_from(State))
    def report(self, pick: Any, state: State) -> None:
        self.apply(lifecycle.reported(self.state, status(pick.choice(self.requested), state), TRAINING, NOW))

    @precondition(lambda self: self.requested)
    @rule(pick=st.randoms())
    def cancel(self, pick: Any) -> None:
        cancel = FineTuneCancelled(request_id=pick.choice(self.requested), model="m", requested_at=NOW)
        self.apply(lifecycle.cancelled(self.state, cancel, NOW))

    @rule(hours=st.sampled_from((0, 1, 2, 3, 4, 1000)))
    def time_passes(self, hours: int) -> None:
        limit = timedelta(minutes=90)
        self.apply(lifecycle.timed_out(self.state, limit, PARTITIONS, NOW + timedelta(hours=hours)))

    @invariant()
    def every_request_is_in_exactly_one_state(self) -> None:
        active = self.state.active
        under_way = [*active.request_ids] if active else []
        under_way += [waiting.request_id for waiting in self.state.waiting]
        assert sorted(self.ended + under_way) == sorted(self.requested)

    @invariant()
    def the_state_survives_storage(self) -> None:
        stored = self.state.model_dump_json(exclude_none=True)
        assert ModelState.model_validate_json(stored) == self.state


Histories.TestCase.settings = settings(max_examples=examples(30), stateful_step_count=30, deadline=None)
TestHistories = Histories.TestCase


def test_every_status_after_a_snapshot_tells_what_does_not_count() -> None:
    ignored = {"verdicts dated more than a day before their log": 3}
    state = lifecycle.requested(ModelState(model="m"), request("r"), NOW).state
    state = lifecycle.part_received(state, part("r", 0, 1, ignored=ignored), PARTITIONS, 20, NOW).state
    (rejected,) = lifecycle.part_received(state, part("r", 1, 1, ignored=ignored), PARTITIONS, 20, NOW).final_statuses
    assert rejected.warnings == ("ignored: 6 verdicts dated more than a day before their log",)


def test_every_status_after_a_snapshot_tells_what_its_sets_lack_because_topics_lost_it() -> None:
    logs = LostRecords(topic="chat-logs", cause="expired", records=500, last_at=NOW)
    later = logs.model_copy(update={"records": 7, "last_at": NOW + timedelta(hours=1)})
    erasures = LostRecords(topic="erasures", cause="of another version", records=1, last_at=NOW)
    warnings = (
        "chat-logs: 507 records expired before they were read, the last noticed at "
        f"{later.last_at.isoformat()}, of partitions 0, 1",
        f"erasures: 1 records of another version, the last noticed at {NOW.isoformat()}, of partitions 1",
    )

    def gathered(examples: int) -> Transition:
        state = lifecycle.requested(ModelState(model="m"), request("r"), NOW).state
        state = lifecycle.part_received(state, part("r", 0, examples, lost=(logs,)), PARTITIONS, 20, NOW).state
        return lifecycle.part_received(state, part("r", 1, examples, lost=(later, erasures)), PARTITIONS, 20, NOW)

    (rejected,) = gathered(1).final_statuses
    assert rejected.warnings == warnings
    state = gathered(30).state
    assert state.active
    published = lifecycle.job_published(state, state.active, JOB, NOW)
    assert [output.event.warnings for output in published.outputs if isinstance(output.event, FineTuneStatus)] == [
        warnings
    ]
    of_trainer = status("r", State.COMPLETED).model_copy(update={"warnings": ("of the trainer",)})
    (completed,) = lifecycle.reported(published.state, of_trainer, TRAINING, NOW).final_statuses
    assert completed.warnings == ("of the trainer", *warnings)
    running = lifecycle.reported(published.state, status("r", State.RUNNING), TRAINING, NOW).state
    assert bare(lifecycle.current_status(running, "r", NOW)) == status("r", State.RUNNING).model_copy(
        update={"warnings": warnings}
    )


def at(minutes: int) -> datetime:
    return NOW + timedelta(minutes=minutes)


def test_a_status_tells_when_each_state_began_also_of_a_request_that_waited() -> None:
    first = lifecycle.requested(ModelState(model="m"), request("r"), at(0)).state
    state = lifecycle.requested(first, request("s"), at(1)).state
    waiting = lifecycle.current_status(state, "s", at(2))
    assert waiting
    assert [(each.state, each.at) for each in waiting.states] == [("accepted", at(1)), ("waiting", at(1))]
    cancel = FineTuneCancelled(request_id="r", model="m", requested_at=NOW, requested_by="ann")
    transition = lifecycle.cancelled(state, cancel, at(3))
    assert transition
    (cancelled,) = transition.final_statuses
    assert [(each.state, each.at) for each in cancelled.states] == [
        ("accepted", at(0)),
        ("snapshotting", at(0)),
        ("cancelled", at(3)),
    ]
    state = transition.state
    for number in range(PARTITIONS):
        state = lifecycle.part_received(state, part("s", number, 30), PARTITIONS, 20, at(4)).state
    assert state.active
    state = lifecycle.job_published(state, state.active, JOB, at(5)).state
    for minutes, name in ((6, State.SUBMITTED), (7, State.RUNNING), (8, State.RUNNING), (9, State.EVALUATING)):
        state = lifecycle.reported(state, status("s", name), TRAINING, at(minutes)).state
    (done,) = lifecycle.reported(state, status("s", State.COMPLETED), TRAINING, at(10)).final_statuses
    assert [(each.state, each.at) for each in done.states] == [
        ("accepted", at(1)),
        ("waiting", at(1)),
        ("snapshotting", at(3)),
        ("queued", at(5)),
        ("submitted", at(6)),
        ("running", at(7)),
        ("evaluating", at(9)),
        ("completed", at(10)),
    ]
    assert not state.waiting_since


def test_a_status_has_at_most_200_points_of_the_loss_and_what_is_repeated_once() -> None:
    state = training("r")

    def step(number: int, loss: float, *validation: float) -> FineTuneStatus:
        nonlocal state
        progress = Progress(
            step=number, steps=9000, loss=loss, examples_per_second=9.0, eta_seconds=1.0, validation=validation
        )
        running = status("r", State.RUNNING).model_copy(update={"progress": progress})
        state = lifecycle.reported(state, running, TRAINING, NOW).state
        assert state.active
        return state.active.status

    for number in range(1, 1000):
        last = step(number, 1 / number, 0.5)
        assert len(last.loss_curve) <= MAX_CURVE_POINTS
    assert len(last.loss_curve) > MAX_CURVE_POINTS / 2
    assert (last.loss_curve[0], last.loss_curve[-1]) == ((1, 1.0), (999, 0.001001))
    # From a checkpoint.
    again = step(500, 0.25, 0.5, 0.75)
    assert [point[0] for point in again.loss_curve[-2:]][-1] == 500
    assert max(point[0] for point in again.loss_curve) == 500
    (done,) = lifecycle.reported(state, status("r", State.COMPLETED), TRAINING, NOW).final_statuses
    assert (done.loss_curve, done.validation_curve) == (again.loss_curve, (0.5, 0.75))
    assert len(done.encode()) < 6_000
