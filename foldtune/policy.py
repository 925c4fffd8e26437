"""The rules of automatic retraining: when a model is trained without anybody asking for it."""

import hashlib
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, model_validator

from foldtune.durations import Duration
from foldtune.knobs import MAX_NAMED, DataSelection, DatasetKnobs, FolderId, TrainingKnobs, WeightKnobs

RULE_NAME = r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"
RuleName = Annotated[str, Field(pattern=RULE_NAME)]
MAX_RULES = 20
# Of a whole policy as an event, by which a model's state fits into a record, too.
MAX_POLICY_BYTES = 256 * 1024
# A rule without any condition waits for so many examples.
NEW_EXAMPLES = 1_000
# The origin of a policy that only repeats the settings, and that they replace.
FROM_SETTINGS = "settings"
_DAY = timedelta(days=1)
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def _zone(name: str) -> str:
    """Also as a path it would be one of the system's zones only."""
    _tz(name)
    return name


def _tz(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        # Its own error for an unknown name is a LookupError.
        msg = "should be the name of a time zone, for example Europe/Berlin"
        raise ValueError(msg) from None


def _whole_days(duration: timedelta) -> timedelta:
    if duration % _DAY:
        msg = "should be a number of whole days, for example 7d"
        raise ValueError(msg)
    return duration


TimeOfDay = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
Days = Annotated[Duration, AfterValidator(_whole_days), Field(ge=_DAY, le=90 * _DAY)]


class _Part(BaseModel):
    """Not strict, as settings: a list may stand for a tuple. An unknown field is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RuleData(_Part):
    """The logs that a rule counts and trains on."""

    folders: Annotated[tuple[FolderId, ...], Field(min_length=1, max_length=MAX_NAMED)] | None = Field(
        None, description="Only logs of these folders; default: all"
    )


class Calendar(_Part):
    """Days of the week and a time; one that was missed, or blocked, is made up for."""

    days: Annotated[tuple[Weekday, ...], Field(min_length=1)] = _WEEKDAYS
    at: TimeOfDay = Field("03:00", description="In the rule's time zone")

    def last(self, now: datetime, zone: tzinfo) -> datetime:
        """The newest such moment that is not after ``now``."""
        return self._nearest(now, zone, -1)

    def next(self, now: datetime, zone: tzinfo) -> datetime:
        """The first such moment after ``now``."""
        return self._nearest(now, zone, 1)

    def _nearest(self, now: datetime, zone: tzinfo, step: int) -> datetime:
        today, at = now.astimezone(zone).date(), time.fromisoformat(self.at)
        for days in range(9):
            day: date = today + step * days * _DAY
            moment = datetime.combine(day, at, zone).astimezone(UTC)
            if _WEEKDAYS[day.weekday()] in self.days and (moment > now) is (step > 0):
                return moment
        raise AssertionError("one of nine days is in every week")


class QuietHours(_Part):
    """Hours in which nothing is requested, also over midnight."""

    start: TimeOfDay
    end: TimeOfDay

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.start == self.end:
            msg = "start and end should differ"
            raise ValueError(msg)
        return self

    def until(self, now: datetime, zone: tzinfo) -> datetime | None:
        """The end of the quiet hours that ``now`` lies in; ``None`` outside of them."""
        local = now.astimezone(zone)
        moment, start, end = local.time(), time.fromisoformat(self.start), time.fromisoformat(self.end)
        quiet = start <= moment < end if start < end else moment >= start or moment < end
        if not quiet:
            return None
        day = local.date() + (_DAY if moment >= end else timedelta(0))
        ends = datetime.combine(day, end, zone)
        # Where clocks are put back, an hour comes twice; they are quiet to the end of the second if it began in it.
        return max(ends.astimezone(UTC), ends.replace(fold=local.fold).astimezone(UTC))


class QualityFall(_Part):
    """That live quality has fallen: of one folder the last ``window``, compared with the ``baseline`` before it.

    Of three measures: the share of cited answers whose citation was retrieved first, of likes among ratings, and of
    questions that got an answer. Days are whole ones, in UTC.
    """

    window: Days = 7 * _DAY
    baseline: Days = 28 * _DAY
    min_fall: FiniteFloat = Field(0.05, gt=0, le=1, description="Smaller falls are not worth a training")
    chance: FiniteFloat = Field(
        0.01,
        gt=0,
        le=0.5,
        description="Probability of such a fall by chance, over all folders and measures, from which on it counts",
    )


class Rule(_Part):
    """When to train: one of the conditions is met, and nothing of the rest is in the way.

    ``new_examples`` are labels of logs with a citation or a verdict, and of feedback that names a document: a log with
    both counts twice.
    """

    name: RuleName = "default"
    data: RuleData = RuleData()
    new_examples: PositiveInt | None = Field(
        None,
        description="New labelled examples since the last training that covers the rule's folders; of a rule without "
        f"any condition {NEW_EXAMPLES:,}",
    )
    changed_documents: FiniteFloat | None = Field(
        None, gt=0, le=1, description="Share of the documents that have changed since that training"
    )
    calendar: Calendar | None = None
    quality: QualityFall | None = None
    time_zone: Annotated[str, Field(max_length=64), AfterValidator(_zone)] = Field(
        "UTC", description="Of calendar and quiet hours"
    )
    cooldown: Annotated[Duration, Field(ge=timedelta(0), le=timedelta(days=366))] = Field(
        timedelta(hours=6), description="Between two requests of the policy"
    )
    quiet_hours: QuietHours | None = None
    min_examples: PositiveInt | None = Field(
        None, description="Usable examples without which nothing is requested; at least worker.min_examples"
    )
    monthly_trainings: PositiveInt | None = Field(
        None, description="Requests of the policy for this model in a calendar month (UTC)"
    )
    monthly_dollars: FiniteFloat | None = Field(
        None, gt=0, description="What these may cost, by the time of trainings and trainer.hourly_price"
    )
    dataset: DatasetKnobs = DatasetKnobs()
    training: TrainingKnobs = TrainingKnobs()
    weights: WeightKnobs = WeightKnobs()

    @model_validator(mode="before")
    @classmethod
    def _folders_of_before(cls, value: Any) -> Any:
        """``folders`` is how releases up to 0.1 spelt ``data.folders``."""
        if not isinstance(value, dict) or "folders" not in value:
            return value
        if "data" in value:
            msg = "folders is an earlier name of data.folders, and both are given"
            raise ValueError(msg)
        rest = {name: field for name, field in value.items() if name != "folders"}
        return rest | {"data": {"folders": value["folders"]}}

    @model_validator(mode="after")
    def _some_condition(self) -> Self:
        if not any((self.new_examples, self.changed_documents, self.calendar, self.quality)):
            object.__setattr__(self, "new_examples", NEW_EXAMPLES)
        return self

    @property
    def key(self) -> str:
        """Name and digest of what is selected: what was counted for other folders is not this rule's."""
        return f"{self.name}-{hashlib.sha256(self.data.model_dump_json().encode()).hexdigest()[:8]}"

    def is_covered_by(self, data: DataSelection, requested_at: datetime, trained_at: datetime | None) -> bool:
        """Whether a training on ``data`` has all that is new since ``trained_at``, so that the rule's counts end."""
        folders = data.folders is None or (
            self.data.folders is not None and set(self.data.folders) <= set(data.folders)
        )
        since = data.start is None or (trained_at is not None and data.start <= trained_at)
        return folders and since and data.agents is None and (data.end is None or data.end >= requested_at)

    @property
    def zone(self) -> tzinfo:
        """The time zone of calendar and quiet hours."""
        return _tz(self.time_zone)


def doubled_names(rules: tuple[Rule, ...]) -> list[str]:
    """Names that several rules of one model have."""
    names = [rule.name for rule in rules]
    return sorted({name for name in names if names.count(name) > 1})


def check_rules(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Refuse rules of one model that have one name: which of them has asked, and which comes first, must be clear."""
    if doubled := doubled_names(rules):
        msg = f"several rules have the name {doubled[0]!r}: give each its own; they are tried in the order of the list"
        raise ValueError(msg)
    return rules
