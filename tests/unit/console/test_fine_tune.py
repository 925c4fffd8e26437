"""The form of a fine-tune request, and what it will do with the data."""

from datetime import timedelta
from urllib.parse import parse_qs

import pytest
from starlette.testclient import TestClient

from api.context import Services
from api.view.folders import FolderTable
from api.view.system import SystemView
from console.knobs import KNOBS, address, fields_of, request_of
from console.pages.fine_tune import hints
from foldtune.events import FineTuneRequested, now
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
    assert "1 to 1024 or “all”" in page
    assert len(KNOBS) == 9


def test_a_form_is_the_request_that_it_shows() -> None:
    request = FineTuneRequested(
        request_id="r-1",
        model="support",
        requested_at=now(),
        data=DataSelection(folders=("a & b", "c"), start=now() - timedelta(days=2)),
        dataset=DatasetKnobs(hard_negatives=1, exclusion_threshold=0.25),
        training=TrainingKnobs(trainable_layers=2, start="incumbent"),
        weights=WeightKnobs(temperature=0.1),
    ).model_dump(mode="json")
    fields = parse_qs(address(fields_of(request)).partition("?")[2])
    body = request_of(fields)
    assert body == {
        "model": "support",
        "data": {"folders": ["a & b", "c"], "start": request["data"]["start"]},
        "dataset": {"hard_negatives": 1, "exclusion_threshold": 0.25},
        "training": {"trainable_layers": 2, "start": "incumbent"},
        "weights": {"temperature": 0.1},
    }
    assert request_of({"model": ["m"], "training.trainable_layers": ["all"], "data.start": ["2026-01-31"]}) == {
        "model": "m",
        "data": {"start": "2026-01-31T00:00:00Z"},
        "training": {"trainable_layers": "all"},
    }


def test_a_request_is_made_and_leads_to_its_job(requesting: TestClient, publisher: MemoryPublisher) -> None:
    fields = {"model": "support", "request_id": "r-9", "dataset.hard_negatives": "1", "search": "x"}
    answer = requesting.post(FORM, data=fields, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/jobs/support/r-9")
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
    assert f'id="error-{name}"' in answer.text
    assert f'value="{value}"' in answer.text
    assert 'value="f" checked' in answer.text
    assert publisher.events == []


def test_a_viewer_has_no_form_to_send(services: Services, settings: Settings, publisher: MemoryPublisher) -> None:
    viewer = browser_of(services, settings, "viewer")
    assert FORM not in viewer.get("/console/").text
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
    assert requesting.get(f"{FORM}?data.start=2026-13").status_code == 200


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


def test_a_preview_of_a_wrong_knob_is_a_hint_beside_it(requesting: TestClient) -> None:
    page = requesting.get(f"{FORM}/preview?model=support&dataset.hard_negatives=99").text
    assert 'data-hint="hint-dataset.hard_negatives"' in page


def test_what_fights_the_data_is_said_beside_its_field() -> None:
    training = {"examples": 20, "steps": 3, "held_out": 5, "validation": 0}
    assert hints({"training": training, "folders": []}, {}) == {
        "training.batch_size": "batch_above_examples",
        "training.epochs": "few_steps",
        "data.folders": "few_held_out",
    }
    enough = {"examples": 2000, "steps": 300, "held_out": 400, "validation": 200}
    assert hints({"training": enough, "folders": [{"examples": 8}]}, {}) == {"data.folders": "small_folders"}
    assert hints({"training": enough, "folders": [{"examples": 80}]}, {}) == {}


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
    assert 'id="error-weights.temperature"' in answer.text
    assert 'role="alert"' in requesting.get(f"{FORM}/preview", params=fields).text
