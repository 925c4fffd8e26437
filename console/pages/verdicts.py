"""What came of a training: a sentence, and before and after of each folder as points and intervals."""

import math
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

from pydantic import AwareDatetime, BaseModel, Field, FiniteFloat, ValidationError

from console.rendering import score, signed, words

Span = tuple[FiniteFloat, FiniteFloat]
# One that has a day in every zone.
_Time = Annotated[AwareDatetime, Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(3000, 1, 1, tzinfo=UTC))]

# Of a chart's rows; the others are in its table.
MAX_ROWS = 30
MAX_TABLE = 200
# Ends of a chart's scale, of which the first that holds all gains is taken.
_GAINS = (0.05, 0.1, 0.2, 0.5, 1.0)
# Beside a scale, for what is drawn at its ends.
_MARGIN = 4.0


class _Scores(BaseModel):
    ndcg_at_10: FiniteFloat


class FolderScores(BaseModel):
    """Of a folder's held-out questions; trainings before release 0.2 have no interval."""

    questions: int
    before: _Scores
    after: _Scores
    ndcg_gain_interval: Span | None = None

    @property
    def gain(self) -> float:
        """In nDCG@10."""
        return self.after.ndcg_at_10 - self.before.ndcg_at_10


class _General(BaseModel):
    ndcg_fall: FiniteFloat
    interval: Span


class Metrics(BaseModel):
    """What pages show of a version's ``metrics.json``."""

    folders: dict[str, FolderScores] = {}
    general: _General | None = None
    not_trained_on: Annotated[dict[str, _General], Field(max_length=20)] = {}
    data: dict[str, Any] = {}
    labels: Annotated[dict[str, Annotated[int, Field(ge=0, le=10**15)]], Field(max_length=64)] = {}
    # Of its first and last log.
    logs: tuple[_Time, _Time] | None = None
    release: str | None = None

    @classmethod
    def of(cls, found: Any) -> "Metrics":
        """Of any text, as far as the API knows: nothing of what is not as expected."""
        try:
            return cls.model_validate(found)
        except ValidationError:
            return cls()

    @property
    def largest_folders(self) -> dict[str, FolderScores]:
        """Those with most questions first; more than these are no table that anybody reads."""
        found = sorted(self.folders.items(), key=lambda item: (-item[1].questions, item[0]))
        return dict(found[:MAX_TABLE])


class Verdict(NamedTuple):
    """Whether a version is better, and what became of it."""

    is_better: bool
    sentence: str
    # Why not, where the figures alone do not say it.
    reasons: tuple[str, ...]


def verdict(version: dict[str, Any], metrics: Metrics) -> Verdict:
    """The sentence that a job's page begins with."""
    w, gate = words()["verdicts"], version["gate"]
    low, high = gate["ndcg_gain_interval"]
    figures = w["figures"].format(
        before=score(version["metrics_before"]["ndcg_at_10"]),
        after=score(version["metrics_after"]["ndcg_at_10"]),
        gain=signed(gate["ndcg_gain"]),
        low=signed(low),
        high=signed(high),
        questions=f"{version['metrics_after']['questions']:,}",
    )
    if metrics.general:
        figures += f"; {_general(metrics.general)}"
    outcome = "better" if gate["promote"] else gate.get("outcome")
    known = outcome if outcome in w["outcomes"] else "unknown"
    sentence = f"{w['outcomes'][known]}: {figures}."
    if gate["promote"]:
        review = version.get("review") or {}
        approval = version.get("approval") or "not_required"
        sentence += f" {w['promoted'][approval].format(by=review.get('by', '?'))}"
    # Of those that are known but a refusal, the sentence has said it.
    reasons = tuple(gate["reasons"]) if known in {"refused", "unknown"} else ()
    return Verdict(gate["promote"], sentence, reasons)


def _general(general: _General) -> str:
    w, (low, high) = words()["verdicts"], general.interval
    kind = "unchanged" if low <= 0 <= high else "fell" if low > 0 else "rose"
    # The file has the fall.
    return str(w["general"][kind].format(change=signed(-general.ndcg_fall), low=signed(-high), high=signed(-low)))


class Row(NamedTuple):
    """A line of the chart, in percent of its two scales."""

    name: str
    gain: float
    before: float
    after: float
    zero: float
    at: float
    # The interval, as far as it is on the scale, and whether each of its ends is.
    span: tuple[float, float] | None
    ends: tuple[bool, bool]
    # By the interval: ``better``, ``worse``, or neither.
    kind: str


class Chart(NamedTuple):
    """The rows, and the marks of both scales: place and text."""

    rows: list[Row]
    scores: list[tuple[float, str]]
    gains: list[tuple[float, str]]
    left_out: int


def chart(version: dict[str, Any], folders: dict[str, FolderScores]) -> Chart:
    """All questions first, then the folders with most."""
    gate = version["gate"]
    every = FolderScores(
        questions=version["metrics_after"]["questions"],
        before=_Scores(ndcg_at_10=version["metrics_before"]["ndcg_at_10"]),
        after=_Scores(ndcg_at_10=version["metrics_after"]["ndcg_at_10"]),
        ndcg_gain_interval=tuple(gate["ndcg_gain_interval"]),
    )
    largest = sorted(folders.items(), key=lambda item: -item[1].questions)[:MAX_ROWS]
    shown = [(words()["job"]["all_questions"], every), *largest]
    values = [value for _, each in shown for value in (each.before.ndcg_at_10, each.after.ndcg_at_10)]
    # No scale is for others, whatever a file says.
    scores = [min(max(value, 0.0), 1.0) for value in values]
    # Whole tenths, of which there are two at least.
    first = min(9, math.floor(min(scores) * 10))
    last = max(first + 1, math.ceil(max(scores) * 10))
    far = max(*(2 * abs(each.gain) for _, each in shown), *map(abs, gate["ndcg_gain_interval"]))
    end = next((end for end in _GAINS if end >= far), _GAINS[-1])
    return Chart(
        [_row(name, each, (first / 10, last / 10), end) for name, each in shown],
        [(_place(tenth / 10, first / 10, last / 10), f"{tenth / 10:.1f}") for tenth in _few(first, last)],
        [(_place(value, -end, end), _mark(value)) for value in (-end, 0, end)],
        len(folders) - len(largest),
    )


def _mark(value: float) -> str:
    return f"{value:+g}".replace("-", words()["units"]["minus"]) if value else "0"


def _few(first: int, last: int) -> range:
    return range(first, last + 1, 1 if last - first <= 3 else 2 if (last - first) % 2 == 0 else last - first)


def _row(name: str, scores: FolderScores, scale: tuple[float, float], end: float) -> Row:
    low, high = scores.ndcg_gain_interval or (math.nan, math.nan)
    has_span = scores.ndcg_gain_interval is not None
    return Row(
        name,
        scores.gain,
        _place(scores.before.ndcg_at_10, *scale),
        _place(scores.after.ndcg_at_10, *scale),
        _place(0, -end, end),
        _place(scores.gain, -end, end),
        (_place(low, -end, end), _place(high, -end, end)) if has_span else None,
        (low >= -end, high <= end),
        "better" if low > 0 else "worse" if high < 0 else "neither",
    )


def _place(value: float, first: float, last: float) -> float:
    share = (min(max(value, first), last) - first) / (last - first)
    return round(_MARGIN + share * (100 - 2 * _MARGIN), 2)


def beyond_chance(folders: dict[str, FolderScores]) -> dict[str, list[str]]:
    """The folders whose gain or loss is no chance, the greatest first."""
    spans = {name: each.ndcg_gain_interval for name, each in folders.items() if each.ndcg_gain_interval}
    return {
        "better": sorted((name for name, span in spans.items() if span[0] > 0), key=lambda name: -folders[name].gain),
        "worse": sorted((name for name, span in spans.items() if span[1] < 0), key=lambda name: folders[name].gain),
    }
