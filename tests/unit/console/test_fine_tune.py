"""The form of a fine-tune request, and what it will do with the data."""

import re
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs

import pytest
from starlette.testclient import TestClient

from api.context import Services
from api.mining import Mining
from api.previews import expected_training
from api.schemas import MinedPreview
from api.view.folders import FolderTable
from api.view.system import SystemView
from console.knobs import GROUPS, address, fields_of, request_of
from console.pages.fine_tune import beside, hints
from foldtune.events import FineTuneRequested, ModelReference, now
from foldtune.knobs import DataSelection, DatasetKnobs, TrainingKnobs, WeightKnobs
from foldtune.settings import Settings
from foldtune.topics import Topic
from tests.unit.api.conftest import MemoryPublisher, status_record
from tests.unit.api.test_folders import fill, folders, stats
from tests.unit.api.test_previews import Workers, shown_history, workers

from .conftest import browser_of

__all__ = ["folders", "workers"]
FORM = "/console/fine-tune"


@pytest.fixture
def requesting(services: Services, settings: Settings) -> TestClient:
    return browser_of(services, settings, "requester")


def test_the_form_has_every_knob_of_the_product_with_its_default_bounds_and_help(requesting: TestClient) -> None:
    page = requesting.get(FORM).text
    assert "not available at the moment" in page
    for name in ("dataset.easy_negatives", "dataset.exclusion_threshold", "weights.temperature", "training.epochs"):
        assert f'name="{name}"' in page
    assert 'name="dataset.hard_negatives" value="4" data-default="4"' in page
    assert 'min="0" max="64" step="1"' in page
    assert "1 to 1,024 or “all”" in page
    assert sum(len(knobs) for group, knobs in GROUPS.items() if group != "further") == 9
    assert "Default: 0.05." in page


def test_a_form_is_the_request_that_it_shows() -> None:
    request = FineTuneRequested(
        request_id="r-1",
        model="support",
        requested_at=now(),
        data=DataSelection(folders=("a & b", "c"), agents=("x",), start=now() - timedelta(days=2)),
        dataset=DatasetKnobs(hard_negatives=1, exclusion_threshold=0.25),
        training=TrainingKnobs(trainable_layers=2, start="incumbent", max_tokens=64),
        weights=WeightKnobs(temperature=0.1),
        base_model=ModelReference(uri="hf://org/other", revision="3"),
        seed=7,
    ).model_dump(mode="json")
    fields = parse_qs(address(fields_of(request)).partition("?")[2])
    body = request_of(fields)
    assert body == {
        "model": "support",
        "data": {"folders": ["a & b", "c"], "agents": ["x"], "start": request["data"]["start"]},
        "base_model": {"uri": "hf://org/other", "revision": "3"},
        "dataset": {"hard_negatives": 1, "exclusion_threshold": 0.25},
        "training": {"trainable_layers": 2, "start": "incumbent", "max_tokens": 64},
        "seed": 7,
        "weights": {"temperature": 0.1},
    }
    # Longer than floats are, and than Python reads.
    for digits in ("1" * 400, "1" * 5_000):
        assert request_of({"model": ["m"], "training.epochs": [digits]})["training"] == {"epochs": digits}
    assert request_of({"model": ["m"], "training.trainable_layers": ["all"], "data.start": ["2026-01-31"]}) == {
        "model": "m",
        "data": {"start": "2026-01-31T00:00:00Z"},
        "training": {"trainable_layers": "all"},
    }


def test_a_request_is_made_and_leads_to_its_job(requesting: TestClient, publisher: MemoryPublisher) -> None:
    fields = {"model": "support", "request_id": "r-9", "dataset.hard_negatives": "1", "search": "x"}
    answer = requesting.post(FORM, data=fields, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/jobs/support/r-9?new=1")
    [request] = publisher.on(Topic.FINE_TUNE_REQUESTS)
    assert (request.model, request.dataset.hard_negatives, request.training.epochs) == ("support", 1, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [("dataset.hard_negatives", "99"), ("training.batch_size", "many"), ("model", "No Name"), ("request_id", "a b")],
)
def test_what_is_wrong_stands_beside_its_field_and_what_was_typed_is_kept(
    requesting: TestClient, publisher: MemoryPublisher, folders: FolderTable, name: str, value: str
) -> None:
    fill(folders, stats("f"))
    answer = requesting.post(FORM, data={"model": "support", "data.folders": "f", **{name: value}})
    assert answer.status_code == 400
    assert f'<div id="error-{name}"><p class="error"' in answer.text
    assert f'value="{value}"' in answer.text
    assert 'value="f" checked' in answer.text
    assert publisher.events == []


def test_a_viewer_has_no_form_to_send(services: Services, settings: Settings, publisher: MemoryPublisher) -> None:
    viewer = browser_of(services, settings, "viewer")
    assert FORM not in viewer.get("/console/").text
    assert 'id="submit"' not in viewer.get(FORM).text
    assert 'id="submit"' in browser_of(services, settings, "requester").get(FORM).text
    viewer = browser_of(services, settings, "viewer")
    assert viewer.post(FORM, data={"model": "support"}).status_code == 403
    assert publisher.events == []


def test_folders_are_found_and_counted_between_the_dates(requesting: TestClient, folders: FolderTable) -> None:
    fill(folders, stats("handbook"), stats("pricing"))
    both = requesting.get(FORM).text
    assert "handbook" in both
    assert "pricing" in both
    part = requesting.get(f"{FORM}/folders?search=HAND&data.folders=pricing").text
    assert 'value="handbook">' in part
    assert 'value="pricing" checked' in part
    assert "7 labelled logs" in part
    assert "too few to be judged alone" in part
    assert "2 labelled logs" in requesting.get(f"{FORM}/folders?data.start=2026-05-02&data.end=2026-05-03").text
    assert requesting.get(f"{FORM}?data.start=2026-13").status_code == 200
    assert "<td>2026-05-02</td><td>10</td>" in both
    assert "<td>2026-05-02</td><td>5</td>" in requesting.get(f"{FORM}/days?data.folders=pricing").text


def test_a_preview_shows_counts_reasons_and_questions_with_what_becomes_of_each_passage(
    services: Services, settings: Settings, workers: Workers
) -> None:
    workers.add(*shown_history(0))
    browser = browser_of(services, settings, "anybody")
    page = browser.get(f"{FORM}/preview?model=support&dataset.hard_negatives=2").text
    assert "labelled examples" in page
    assert 'data-hard="2"' in page
    assert 'class="taken"' in page
    assert "left out: shown with a disliked answer" in page
    assert 'data-hint="hint-training.epochs"' in page
    without = browser_of(services, settings, "requester").get(f"{FORM}/preview?model=support").text
    assert "role privacy" in without
    assert "<q>" not in without
    assert "No version of this model is promoted" not in page
    newest = browser.get(f"{FORM}/preview?model=support&training.start=incumbent").text
    assert "No version of this model is promoted" in newest
    nothing = browser.get(f"{FORM}/preview?model=support&data.end=2001-01-01&data.folders=f&data.folders=gone").text
    assert 'data-examples="0"' in nothing
    assert "for which a request is refused: gone." in nothing


def test_a_preview_of_a_wrong_knob_is_a_hint_beside_it(requesting: TestClient) -> None:
    page = requesting.get(f"{FORM}/preview?model=support&dataset.hard_negatives=99").text
    assert 'data-hint="hint-dataset.hard_negatives"' in page


def previewed(examples: int, **fields: Any) -> dict[str, Any]:
    """What the API answers to a preview, as far as hints look."""
    training = expected_training(examples, TrainingKnobs()).model_dump()
    defaults = {"examples": examples, "documents": 99, "training": training, "folders": [], "questions": None}
    return defaults | {"complete": True} | fields


def test_what_fights_the_data_is_said_beside_its_field() -> None:
    assert hints(previewed(2000), {}, 20) == {}
    few = hints(previewed(60), {}, 20)
    assert sorted(few) == ["data.folders", "training.epochs", "training.trainable_layers"]
    assert few["training.epochs"][0].startswith("6 steps: below 50 ")
    assert few["data.folders"] == ["12 questions to judge by: with fewer than 20 nothing is promoted."]
    assert "training.trainable_layers" not in hints(previewed(60), {"training": {"trainable_layers": 2}}, 20)
    assert hints(previewed(19), {}, 20)["data.folders"] == ["19 examples: with fewer than 20 the request is refused."]
    assert hints(previewed(60), {"training": {"batch_size": 64}}, 20)["training.batch_size"] == [
        "More than the 48 examples: every step has all of them."
    ]
    small = [{"folder_id": f"f{number}", "examples": 8} for number in range(5)]
    assert hints(previewed(2000, folders=small), {}, 20) == {
        "data.folders": ["Fewer than 20 examples, too few to be judged alone: f0, f1, f2 and 2 more."]
    }
    assert sorted(hints(previewed(2000, documents=6), {}, 20)) == ["dataset.easy_negatives"]
    named = {"data": {"folders": ["f0", "gone"]}}
    large = [{"folder_id": "f0", "examples": 800}]
    assert hints(previewed(2000, folders=large), named, 20)["data.folders"][0].endswith("refused: gone.")
    assert hints(previewed(2000, folders=large, complete=False), named, 20) == {}


@pytest.mark.parametrize(
    ("weights", "field"),
    [
        ({"minimum": 0.1}, "weights.minimum"),
        ({"focus": 2}, "weights.minimum"),
        ({"focus": 2, "minimum": 0.1}, None),
        ({"focus": 0.5, "minimum": 0.1}, None),
        ({"temperature": 0.01}, "weights.temperature"),
        ({"temperature": 0.5}, "weights.temperature"),
        ({"temperature": 0.02}, None),
    ],
)
def test_weights_without_effect_or_outside_of_what_was_measured_say_so(
    weights: dict[str, float], field: str | None
) -> None:
    assert list(hints(previewed(2000), {"weights": weights}, 20)) == ([field] if field else [])


def test_questions_say_whether_the_threshold_or_the_number_of_negatives_asks_for_too_much() -> None:
    reasons = ["negative", "near_positive_by_words", "near_positive_by_words", "cited"]
    shown = [{"reason": reason} for reason in reasons]
    preview = previewed(2000, questions=[{"examples": [{"shown": shown}]}] * 3)
    found = hints(preview, {"dataset": {"hard_negatives": 2}}, 20)
    assert sorted(found) == ["dataset.exclusion_threshold", "dataset.hard_negatives"]
    assert found["dataset.exclusion_threshold"][0].startswith("Leaves out 6 of the 9 passages")
    assert sorted(hints(preview, {"dataset": {"hard_negatives": 1}}, 20)) == ["dataset.exclusion_threshold"]


def test_a_reason_stands_beside_the_field_that_it_is_of() -> None:
    reasons = {"data.folders.3": "too long", "data": "no", "training.batch_size": "small", "other": "?", "data.x": "?"}
    by_field, lines = beside(reasons)
    assert by_field == {"data.folders": ["too long"], "data": ["no", "?"], "training.batch_size": ["small"]}
    assert lines == ["other: ?"]


def test_without_a_script_the_form_shows_what_it_would_do(
    services: Services, settings: Settings, workers: Workers
) -> None:
    workers.add(*shown_history(0))
    browser = browser_of(services, settings, "anybody")
    page = browser.get(f"{FORM}?preview=yes&model=support&training.batch_size=2048").text
    # What the Enter key presses: the first button.
    assert page.index('formmethod="get"') < page.index('id="submit"')
    assert "labelled examples" in page
    assert "every step has all of them" in page.partition('id="submit"')[0]
    assert "labelled examples" not in browser.get(f"{FORM}?model=support").text


def test_what_was_mined_follows_and_finds_its_question(
    services: Services, settings: Settings, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.add(*shown_history(0))
    candidate = {"folder_id": "f", "document_id": "d-far", "text": "far", "score": 0.5, "jaccard": 0.1}
    browser = browser_of(services, settings, "anybody")
    page = browser.get(f"{FORM}/preview?model=support").text
    assert "the training searches all documents" in page
    [key] = re.findall('data-example="([0-9a-f]+)"', page)[:1]
    shown = browser.post("/previews", json={"model": "support"}, headers={"authorization": "Bearer anybody"}).json()
    question = next(question for question in shown["questions"] if question["examples"])
    example = {
        "question": question["question"],
        "positive": question["examples"][0]["positive"]["text"],
        "score": 0.9,
        "candidates": [
            candidate | {"reason": "negative", "taken": True},
            candidate | {"reason": "above_score_margin", "taken": False},
        ],
    }
    ready = MinedPreview.model_validate({"state": "ready", "documents": 7, "examples": [example]})
    monkeypatch.setattr(services.miner, "get", {"p": Mining("support", None, ready)}.get)
    part = browser.get(f"{FORM}/mined/p").text
    assert f'data-mined="{key}"' in part
    assert "a search of 7 documents" in part
    assert 'data-out="left out: scores like the right one' in part
    assert "hx-get" not in part
    monkeypatch.setattr(services.miner, "get", {"p": Mining("support", None)}.get)
    assert 'hx-trigger="load delay' in browser.get(f"{FORM}/mined/p").text
    lost = browser.get(f"{FORM}/mined/q")
    assert (lost.status_code, "were not found: this replica mines" in lost.text) == (200, True)


def test_a_job_is_run_again_by_a_form_that_is_filled_in(
    services: Services, settings: Settings, view: SystemView, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = FineTuneRequested(request_id="r-1", model="support", requested_at=now(), training=TrainingKnobs(epochs=7))

    async def original(*_: object) -> FineTuneRequested:
        return asked

    monkeypatch.setattr("api.routes.requests._original", original)
    view.apply_status(status_record(1))
    page = browser_of(services, settings, "requester").get("/console/jobs/support/r-1").text
    assert "/console/fine-tune?model=support&amp;training.epochs=7" in page
    assert "Run again" not in browser_of(services, settings, "viewer").get("/console/jobs/support/r-1").text


@pytest.mark.parametrize("number", ["nan", "inf", "-1e999", "9" * 5000])
def test_a_number_that_json_does_not_know_is_refused_beside_its_field(requesting: TestClient, number: str) -> None:
    fields = {"model": "support", "weights.temperature": number, "training.epochs": number}
    answer = requesting.post(FORM, data=fields)
    assert answer.status_code == 400
    assert '<div id="error-weights.temperature"><p class="error"' in answer.text
    assert 'data-hint="hint-weights.temperature"' in requesting.get(f"{FORM}/preview", params=fields).text
