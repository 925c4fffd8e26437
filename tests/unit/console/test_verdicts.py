"""The sentence on a training, the chart of its folders, and its log, of whatever is in the files."""

from typing import Any

import pytest

from console.pages.jobs import log_lines
from console.pages.verdicts import MAX_ROWS, Metrics, beyond_chance, chart, verdict


def version(outcome: str | None = "better", *, promote: bool = False, **fields: Any) -> dict[str, Any]:
    """As the API tells it."""
    gain = {"ndcg_gain": 0.052, "ndcg_gain_interval": [-0.031, 0.074]}
    gate = {"promote": promote, "outcome": outcome, "reasons": ["as the gate says"], **gain}
    scores = {"metrics_before": {"ndcg_at_10": 0.62, "questions": 1212}}
    return {"gate": gate, **scores, "metrics_after": {"ndcg_at_10": 0.672, "questions": 1212}, **fields}


def folder(before: float, after: float, *span: float, questions: int = 20) -> dict[str, Any]:
    scores = {"before": {"ndcg_at_10": before}, "after": {"ndcg_at_10": after}}
    return {"questions": questions, **scores, **({"ndcg_gain_interval": span} if span else {})}


@pytest.mark.parametrize(
    ("outcome", "begin", "reasons"),
    [
        ("too_few_questions", "Not promoted, as there are too few held-out questions to tell: nDCG@10 .620", 0),
        ("not_better", "Not promoted, as it is not better: ", 0),
        ("chance", "Not promoted, as the gain may be chance: ", 0),
        ("too_small", "Not promoted, as the gain is too small", 0),
        ("refused", "Not promoted, although it is better", 1),
        # Of a later release, and of one that says nothing.
        ("<b>", "Not promoted: nDCG@10", 1),
        (None, "Not promoted: nDCG@10", 1),
    ],
)
def test_a_refusal_says_why(outcome: str | None, begin: str, reasons: int) -> None:
    found = verdict(version(outcome), Metrics())
    assert found.sentence.startswith(begin)
    assert "(+.052, 95 % interval −.031 to +.074) on 1,212 held-out questions." in found.sentence  # noqa: RUF001  a minus
    assert (found.is_better, len(found.reasons)) == (False, reasons)


@pytest.mark.parametrize(
    ("approval", "review", "end"),
    [
        (None, None, "Promoted."),
        ("waiting", None, "Promoted, and waits for an approval."),
        ("approved", {"by": "ann"}, "Promoted, and approved by ann."),
        ("rejected", {"by": "ann"}, "Promoted, and then rejected by ann."),
    ],
)
def test_a_promotion_says_what_became_of_it(approval: str | None, review: dict[str, Any] | None, end: str) -> None:
    found = verdict(version(promote=True, approval=approval, review=review), Metrics())
    assert found.sentence.startswith("Better: nDCG@10 .620 → .672")
    assert found.sentence.endswith(end)
    assert found.reasons == ()


@pytest.mark.parametrize(
    ("fall", "interval", "told"),
    [
        (0.002, (-0.01, 0.01), "general knowledge unchanged"),
        (0.02, (0.01, 0.03), "general knowledge fell: −.020 (−.030 to −.010)"),  # noqa: RUF001
        (-0.02, (-0.03, -0.01), "general knowledge rose: +.020 (+.010 to +.030)"),
    ],
)
def test_general_knowledge_has_fallen_if_its_interval_says_so(
    fall: float, interval: tuple[float, float], told: str
) -> None:
    metrics = Metrics.of({"general": {"ndcg_fall": fall, "interval": interval}})
    assert f"; {told}. Promoted." in verdict(version(promote=True), metrics).sentence


def test_the_chart_has_all_questions_first_and_the_folders_with_most() -> None:
    many = {f"f{number}": folder(0.5, 0.6, questions=number) for number in range(40)}
    drawn = chart(version(), Metrics.of({"folders": many}).folders)
    assert [row.name for row in drawn.rows[:2]] == ["All questions", "f39"]
    assert (len(drawn.rows), drawn.left_out) == (MAX_ROWS + 1, 10)
    # A file of an earlier release has no intervals.
    assert drawn.rows[1].span is None


def test_what_is_beyond_a_scale_ends_at_its_edge() -> None:
    folders = Metrics.of({"folders": {"few": folder(0, 1, -1, 1), "lost": folder(0.6, 0.58, -0.03, -0.01)}}).folders
    drawn = chart(version(), {"lost": folders["lost"]} | folders)
    few, lost = ({row.name: row for row in drawn.rows}[name] for name in ("few", "lost"))
    assert (few.kind, lost.kind) == ("neither", "worse")
    assert few.before < lost.after < lost.before < few.after
    narrow = chart(version(), {"wide": Metrics.of({"folders": {"a": folder(0.5, 0.5, -1, 1)}}).folders["a"]}).rows[1]
    assert narrow.ends == (False, False)
    assert narrow.span
    assert all(0 < place < 100 for row in drawn.rows for place in (row.before, row.after, row.at, *(row.span or ())))
    assert beyond_chance(folders) == {"better": [], "worse": ["lost"]}
    huge = chart(version(), Metrics.of({"folders": {"a": folder(-1e308, 1e308, 1e308, 1e308)}}).folders)
    assert [text for _, text in huge.scores] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        "x",
        {"folders": {"a": None}},
        {"general": {"ndcg_fall": float("nan")}},
        {"labels": {"liked": -1}},
        {"labels": dict.fromkeys(map(str, range(65)), 1)},
        {"logs": ["0001-01-01T00:00:00+14:00", "2026-01-01T00:00:00Z"]},
        {"logs": []},
    ],
)
def test_metrics_that_are_none_are_left_out(found: Any) -> None:
    assert Metrics.of(found) == Metrics()


EARLY = '{"event": "x", "level": "info", "timestamp": "0001-01-01T00:00:00+14:00"}'


def test_a_line_of_a_log_may_be_anything() -> None:
    ours = '{"event": "training step", "level": "info", "timestamp": "2026-11-27T18:00:10Z", "step": 10}'
    odd = ["Traceback", '{"event": 1}', "[]", "null", "[" * 100_000, '{"timestamp": 5}', '{"timestamp": "x"}', EARLY]
    lines = log_lines("\n".join([ours, "", *odd]))
    assert (lines[0].level, lines[0].text) == ("info", "training step step=10")
    assert [line.text for line in lines[1:]] == odd
    assert {line.at for line in lines[1:]} == {None}
    # No line of a log is longer than the log, and none of its records ends within a text.
    assert [line.text for line in log_lines("a\u2028b\n" * 30_000)] == ["a\u2028b"] * 2_000
