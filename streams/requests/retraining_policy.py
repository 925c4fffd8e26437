"""Automatic retraining: from figures, a policy and the time to a decision, with its reasons. Pure functions."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import AwareDatetime, Field

from foldtune.durations import spoken
from foldtune.events import (
    Block,
    Condition,
    FineTuneRequested,
    FineTuneStatus,
    FolderQuality,
    Model,
    PolicyDecided,
    RetrainingPolicy,
    RuleFigures,
    State,
    TrainingProgressed,
)
from foldtune.excerpts import excerpt
from foldtune.knobs import DataSelection
from foldtune.policy import MAX_RULES, QualityFall, Rule
from foldtune.request_ids import POLICY_ID, POLICY_PREFIX
from streams.snapshots import quality

# A request that is not taken within this time was lost, and does not count as under way any more.
_TAKEN_WITHIN = timedelta(minutes=10)
# After a request that was rejected or has failed, the wait for the next: doubled with each in a row.
_FIRST_WAIT, _LONGEST_WAIT = timedelta(minutes=10), timedelta(days=1)
_UNSUCCESSFUL = frozenset({State.REJECTED, State.FAILED})
_MINUTE = "minutes"


class PartitionFigures(Model):
    """What the owner of one partition has reported of a rule's folders."""

    new_examples: int = 0
    usable: int | None = None
    documents: int = 0
    changed_documents: int = 0
    quality: tuple[FolderQuality, ...] = ()
    quality_tests: int = 0


class RuleState(Model):
    """What is known of a rule, by its key."""

    # The last training that covers the rule's folders, and when its snapshot was requested.
    trained_request_id: str | None = None
    trained_at: AwareDatetime | None = None
    # The latest report of each partition.
    partitions: dict[str, PartitionFigures] = Field(default_factory=dict)
    # The calendar begins here: when the rule was first seen, and when it last requested.
    seen_at: AwareDatetime | None = None
    asked_at: AwareDatetime | None = None
    met_since: dict[str, AwareDatetime] = Field(default_factory=dict)


class PolicyState(Model):
    """What the policy's decision on one model depends on, beside the policy itself."""

    # The last training on everything, which covers a rule that is new, too. Releases up to 0.1: the last training.
    trained_request_id: str | None = None
    trained_at: AwareDatetime | None = None
    last_request_id: str | None = None
    last_request_at: AwareDatetime | None = None
    rules: dict[str, RuleState] = Field(default_factory=dict)
    # Requests in a row, before the last one, that were rejected or have failed.
    failures: int = 0
    # The policy's requests of a calendar month, and for how long these trained; the last one's time.
    month: str = ""
    month_trainings: int = 0
    month_seconds: float = 0.0
    last_seconds: float = 0.0
    # What the last decision was, without its figures, and since when.
    decision: str = ""
    decided_at: AwareDatetime | None = None

    def of(self, key: str) -> RuleState:
        """The state of a rule by its key, also of one that is new."""
        new = RuleState(trained_request_id=self.trained_request_id, trained_at=self.trained_at)
        return self.rules.get(key, new)


@dataclass(frozen=True)
class Situation:
    """What a decision depends on beside policy and figures."""

    # The request of the model that is under way or waits, whoever made it.
    under_way: str | None = None
    # The newest status of the policy's last request, if it was taken.
    last_status: FineTuneStatus | None = None
    # The bound by which requests are rejected.
    min_examples: int = 1
    hourly_price: float | None = None


@dataclass(frozen=True)
class Decision:
    """A decision, what to request if anything, and the state after it."""

    event: PolicyDecided
    state: PolicyState
    # Whether it differs from the last one by more than its figures.
    changed: bool
    request: FineTuneRequested | None = None


# ── Figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def with_progress(state: PolicyState, progress: TrainingProgressed) -> PolicyState:
    """Stores one partition's report; ignores one that counts from another training than the last.

    Also of a rule that is not known yet: whoever reports it may have read the policy earlier, and tells it once.
    """
    key = progress.rule
    if key is None or progress.trained_request_id != (known := state.of(key)).trained_request_id:
        return state
    figures = PartitionFigures.model_validate(progress.model_dump(include=set(PartitionFigures.model_fields)))
    partitions = known.partitions | {str(progress.partition): figures}
    return _with_rule(state, key, known.model_copy(update={"partitions": partitions}))


def covers(state: PolicyState, policy: RetrainingPolicy | None, request: FineTuneRequested) -> tuple[str, ...]:
    """The keys of the rules whose counts end with a training of this request."""
    rules = policy.rules if policy else ()
    return tuple(
        rule.key
        for rule in rules
        if rule.is_covered_by(request.data, request.requested_at, state.of(rule.key).trained_at)
    )


def covers_everything(request: FineTuneRequested) -> bool:
    """Whether a training of this request covers every rule that there may be."""
    return Rule().is_covered_by(request.data, request.requested_at, None)


def with_training(
    state: PolicyState, policy: RetrainingPolicy | None, request: FineTuneRequested, snapshot_at: datetime
) -> PolicyState:
    """Resets the counts that end with a completed training."""
    trained = {"trained_request_id": request.request_id, "trained_at": snapshot_at}
    covered = covers(state, policy, request)
    for key in state.rules.keys() | {rule.key for rule in policy.rules} if policy else state.rules.keys():
        known = state.of(key)
        if covers_everything(request) or key in covered:
            known = known.model_copy(update={**trained, "partitions": {}})
        # Else it keeps its training, and does not count from one that has nothing of its folders.
        state = _with_rule(state, key, known)
    return state.model_copy(update=trained) if covers_everything(request) else state


def with_end(state: PolicyState, status: FineTuneStatus, seconds: float, now: datetime) -> PolicyState:
    """Counts the time of a training that has ended, if it is the policy's last."""
    if status.request_id != state.last_request_id:
        return state
    state = _of_month(state, now)
    return state.model_copy(update={"month_seconds": state.month_seconds + seconds, "last_seconds": seconds})


def _with_rule(state: PolicyState, key: str, known: RuleState) -> PolicyState:
    rules = {other: each for other, each in state.rules.items() if other != key} | {key: known}
    # Those that are gone were not touched for longest: each decision touches all of the policy.
    return state.model_copy(update={"rules": dict(list(rules.items())[-2 * MAX_RULES :])})


def _of_month(state: PolicyState, now: datetime) -> PolicyState:
    month = f"{now.astimezone(UTC):%Y-%m}"
    if state.month == month:
        return state
    return state.model_copy(update={"month": month, "month_trainings": 0, "month_seconds": 0.0})


# ── Decision ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def decide(policy: RetrainingPolicy, state: PolicyState, situation: Situation, now: datetime) -> Decision:
    """Whether to request a training now, by which rule, and why not.

    The first rule of the list with a condition that is met and nothing in its way requests. The request's id follows
    from the last training and the last request, so that a repeated decision is the same request.
    """
    state = _of_month(state, now)
    figures = [
        RuleFigures(
            rule=rule.name,
            conditions=tuple(_conditions(rule, state.of(rule.key), now)),
            blocks=tuple(_blocks(policy, rule, state, situation, now)),
        )
        for rule in policy.rules
    ]
    met = [each for each in figures if any(condition.met for condition in each.conditions)]
    free = next((each for each in met if not each.blocks), None)
    rule = next((rule for rule in policy.rules if free and rule.name == free.rule), None)
    request = _request(policy, rule, state, now) if rule else None
    if not policy.rules:
        word = "off"
    elif policy.paused:
        word = "paused"
    elif request:
        word = "requested"
    else:
        word = "blocked" if met else "waiting"
    kind = json.dumps(
        [
            *(word, request.request_id if request else None),
            [[each.rule, condition.condition] for each in met for condition in each.conditions if condition.met],
            [[each.rule, block.block] for each in met for block in each.blocks],
        ]
    )
    is_new = kind != state.decision
    event = PolicyDecided(
        model=policy.model,
        at=now,
        decision=word,
        since=now if is_new or state.decided_at is None else state.decided_at,
        rule=free.rule if free else met[0].rule if met else None,
        request_id=request.request_id if request else None,
        rules=tuple(figures),
        next_at=_next_at(policy, figures, now),
    )
    after = state
    for rule, each in zip(policy.rules, figures, strict=True):
        since = {condition.condition: condition.since for condition in each.conditions if condition.since}
        known = state.of(rule.key)
        update = {"met_since": since, "seen_at": known.seen_at or now}
        if request and free is each:
            update["asked_at"] = now
        after = _with_rule(after, rule.key, known.model_copy(update=update))
    is_changed = is_new or any(state.of(rule.key).seen_at is None for rule in policy.rules)
    after = after.model_copy(update={"decision": kind, "decided_at": event.since})
    if request:
        failed = situation.last_status is not None and situation.last_status.state in _UNSUCCESSFUL
        after = after.model_copy(
            update={
                "last_request_id": request.request_id,
                "last_request_at": now,
                "failures": state.failures + 1 if failed else 0,
                "month_trainings": state.month_trainings + 1,
            }
        )
    return Decision(event, after, is_changed, request)


def _request(policy: RetrainingPolicy, rule: Rule, state: PolicyState, now: datetime) -> FineTuneRequested:
    basis = "\0".join((policy.model, state.trained_request_id or "", state.last_request_id or ""))
    return FineTuneRequested(
        request_id=f"{POLICY_PREFIX}{hashlib.sha256(basis.encode()).hexdigest()[:20]}",
        model=policy.model,
        requested_at=now,
        requested_by=f"retraining policy, rule {rule.name}",
        origin="policy",
        data=DataSelection(folders=rule.data.folders),
        dataset=rule.dataset,
        training=rule.training,
        weights=rule.weights,
    )


def _next_at(policy: RetrainingPolicy, figures: Sequence[RuleFigures], now: datetime) -> datetime | None:
    """The first moment at which the clock alone lets a rule request; ``None`` where figures have to change first."""
    moments: list[datetime] = []
    for rule, each in zip(policy.rules, figures, strict=True):
        calendar = rule.calendar
        if any(condition.met for condition in each.conditions):
            if each.blocks and all(block.until for block in each.blocks):
                moments.append(max(block.until for block in each.blocks if block.until))
        elif calendar:
            moments.append(calendar.next(now, rule.zone))
    return min(moments, default=None)


# ── Conditions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _conditions(rule: Rule, known: RuleState, now: datetime) -> Iterator[Condition]:
    for condition in _unmarked(rule, known, now):
        since = known.met_since.get(condition.condition, now) if condition.met else None
        yield condition.model_copy(update={"since": since})


def _unmarked(rule: Rule, known: RuleState, now: datetime) -> Iterator[Condition]:
    partitions = known.partitions.values()
    if bound := rule.new_examples:
        count = sum(figures.new_examples for figures in partitions)
        text = f"{count:,} of {bound:,} new labelled examples"
        yield Condition(condition="new_examples", met=count >= bound, figure=count, bound=bound, text=text)
    if share := rule.changed_documents:
        documents = sum(figures.documents for figures in partitions)
        changed = sum(figures.changed_documents for figures in partitions)
        # Deleted ones are changed, and no longer there.
        found = min(changed / documents, 1.0) if documents else 0.0
        text = f"{changed:,} of {documents:,} documents changed ({found:.1%}), at {share:.1%}"
        yield Condition(condition="changed_documents", met=found >= share, figure=found, bound=share, text=text)
    if rule.calendar:
        begins = max(known.seen_at or now, known.asked_at or known.seen_at or now)
        last = rule.calendar.last(now, rule.zone)
        due = (now - last).total_seconds() if last > begins else None
        text = (
            f"due since {last.isoformat(timespec=_MINUTE)}"
            if due is not None
            else f"next at {rule.calendar.next(now, rule.zone).isoformat(timespec=_MINUTE)}"
        )
        yield Condition(condition="calendar", met=due is not None, figure=due, text=text)
    if rule.quality:
        yield _quality(rule.quality, known, now)


def _quality(fall: QualityFall, known: RuleState, now: datetime) -> Condition:
    tests = sum(figures.quality_tests for figures in known.partitions.values())
    falls = [each for figures in known.partitions.values() for each in figures.quality]
    # Of many folders one falls by chance: the probability is that of any of them (Bonferroni).
    chances = [(min(quality.chance(each) * tests, 1.0), each) for each in falls]
    chance, figure = min(chances, key=lambda item: item[0], default=(None, None))
    if figure is None or chance is None:
        text = f"no fall by {fall.min_fall:g} or more, of {tests:,} figures compared"
        return Condition(condition="quality", met=False, bound=fall.chance, text=text)
    text = (
        f"{figure.measure} of folder {excerpt(figure.folder_id, 100)!r} fell from {figure.good_before:,} of "
        f"{figure.all_before:,} to {figure.good:,} of {figure.all:,}, by chance with p = {chance:.2g}, "
        f"at {fall.chance:g}"
    )
    met = chance < fall.chance
    if met and known.trained_at and now - known.trained_at < fall.window:
        # What fell may be what that training was for.
        met = False
        text += f"; some of these days are before the training of {known.trained_at.isoformat(timespec=_MINUTE)}"
    return Condition(condition="quality", met=met, figure=chance, bound=fall.chance, text=text)


# ── What is in the way ───────────────────────────────────────────────────────────────────────────────────────────────


def _blocks(
    policy: RetrainingPolicy, rule: Rule, state: PolicyState, situation: Situation, now: datetime
) -> Iterator[Block]:
    if policy.paused:
        yield Block(block="paused", text=f"paused by {policy.by} at {policy.at.isoformat(timespec=_MINUTE)}")
    yield from _blocks_of_requests(rule, state, situation, now)
    if rule.quiet_hours and (until := rule.quiet_hours.until(now, rule.zone)):
        text = f"quiet from {rule.quiet_hours.start} to {rule.quiet_hours.end} ({rule.time_zone})"
        yield Block(block="quiet_hours", until=until, text=text)
    needed, counts = max(situation.min_examples, rule.min_examples or 0), state.of(rule.key).partitions.values()
    usable = [figures.usable for figures in counts if figures.usable is not None]
    if sum(usable) < needed:
        text = f"{sum(usable):,} usable labelled examples, at least {needed:,}"
        yield Block(block="min_examples", text=text if usable else "usable examples are not counted yet")
    yield from _budgets(rule, state, situation, now)


def _blocks_of_requests(rule: Rule, state: PolicyState, situation: Situation, now: datetime) -> Iterator[Block]:
    last, asked_at = situation.last_status, state.last_request_at
    if situation.under_way:
        yield Block(block="in_flight", text=f"request {situation.under_way} has not ended")
    elif asked_at and last is None and now < asked_at + _TAKEN_WITHIN:
        until = asked_at + _TAKEN_WITHIN
        yield Block(block="in_flight", until=until, text=f"request {state.last_request_id} was published")
    if last and last.state in _UNSUCCESSFUL:
        until = last.at + min(_FIRST_WAIT * 2 ** min(state.failures, 10), _LONGEST_WAIT)
        if now < until:
            reason = f": {last.reasons[0]}" if last.reasons else ""
            text = f"request {last.request_id} was {last.state}{reason}"
            yield Block(block="after_failure", until=until, text=text)
    if asked_at and now < (until := asked_at + rule.cooldown):
        text = f"{spoken(now - asked_at)} of {spoken(rule.cooldown)} since request {state.last_request_id}"
        yield Block(block="cooldown", until=until, text=text)


def _budgets(rule: Rule, state: PolicyState, situation: Situation, now: datetime) -> Iterator[Block]:
    first = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    until = (first + timedelta(days=32)).replace(day=1)
    if (bound := rule.monthly_trainings) and state.month_trainings >= bound:
        text = f"{state.month_trainings} of {bound} trainings in {state.month}"
        yield Block(block="monthly_trainings", until=until, text=text)
    if dollars := rule.monthly_dollars:
        if situation.hourly_price is None:
            yield Block(block="monthly_dollars", text="trainer.hourly_price is not set, so nothing can be counted")
            return
        spent, last = (seconds / 3600 * situation.hourly_price for seconds in (state.month_seconds, state.last_seconds))
        if spent + last > dollars:
            text = f"{spent:.2f} of {dollars:.2f} dollars spent in {state.month}, {last:.2f} by the last training"
            yield Block(block="monthly_dollars", until=until, text=text)


# ── Requests of the policy ───────────────────────────────────────────────────────────────────────────────────────────


def is_own(
    state: PolicyState, *, has_rule: bool, request: FineTuneRequested, written_ms: int, state_begun_ms: int
) -> bool:
    """Whether the policy made this request, as far as its state tells, which begins at ``state_begun_ms``.

    After the policy's last request nobody writes another. What was written before it, or before the state was begun
    (by workers with another app id), cannot be told from what the policy wrote then.
    """
    if request.origin != "policy" or request.base_model or not POLICY_ID.fullmatch(request.request_id):
        return False
    if state.last_request_at is None:
        return has_rule and 0 < written_ms < state_begun_ms
    before = 0 < written_ms < state.last_request_at.timestamp() * 1000
    return before or request.request_id == state.last_request_id
