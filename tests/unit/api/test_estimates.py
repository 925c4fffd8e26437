"""Time and cost of a training, by those that there were: before it is asked for, and beside what it took."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.view.past_trainings import Estimate, PastTrainings
from api.view.system import SystemView
from foldtune.events import (
    FineTuneStatus,
    ModelReady,
    ModelReference,
    PlannedTraining,
    Preview,
    PreviewRequested,
    State,
    TrainingWork,
    now,
)
from foldtune.topics import Topic
from tests.support import model_ready

from .conftest import MemoryPublisher, Record, status_record

NOW = datetime(2026, 6, 1, tzinfo=UTC)
BASE = ModelReference(uri="hf://org/model", revision="1")


def past(number: int, *, per_example: float = 0.01, other: float = 60.0, **fields: Any) -> ModelReady:
    """A training on a thousand examples, three times each."""
    work: dict[str, Any] = {"steps": 96, "examples": 3_000, "trainable_layers": "all", "machine": "1 x H100"}
    work |= {name: fields.pop(name) for name in set(work) & set(fields)}
    training = per_example * work["examples"]
    defaults: dict[str, Any] = {
        "version": f"{number:06d}",
        "base_model": BASE,
        "training_seconds": training,
        "seconds": {"until_trained": other / 2, "training": training, "evaluation": other / 2, "all": training + other},
        "cost_dollars": (training + other) / 3600 * 2.5,
        "work": TrainingWork.model_validate(work),
        "published_at": NOW + timedelta(hours=number),
    }
    return model_ready(**defaults | fields)


def estimate(*trainings: ModelReady, layers: str = "all", base: ModelReference = BASE) -> Estimate | None:
    known = PastTrainings()
    for ready in (*trainings, *trainings):
        known.add(ready)
    return known.estimate(base, layers, 6_000)


def test_time_grows_with_the_examples_and_the_rest_stays() -> None:
    found = estimate(past(1, per_example=0.01, other=50), past(2, per_example=0.02, other=60), past(3, other=90))
    assert found
    assert found.seconds == pytest.approx(6_000 * 0.01 + 60)
    assert (found.trainings, found.machine) == (3, "1 x H100")
    assert found.cost_dollars == pytest.approx(120 / 3600 * 2.5)


def test_only_trainings_of_the_newest_ones_machine_are_alike() -> None:
    found = estimate(past(1, per_example=9), past(2, machine="2 CPUs", per_example=1, cost_dollars=None))
    assert found
    assert found.seconds == pytest.approx(6_060)
    assert found[1:] == (None, 1, "2 CPUs")


@pytest.mark.parametrize(
    "ready",
    [
        past(1, base_model=ModelReference(uri="hf://org/model", revision="2")),
        past(1, base_model=ModelReference(uri="hf://org/other", revision="1")),
        past(1, trainable_layers="2"),
        past(1, examples=0),
        # Of a release that does not say it.
        past(1, work=None),
        past(1, seconds={}),
    ],
)
def test_without_a_training_alike_nothing_is_known(ready: ModelReady) -> None:
    assert estimate(ready) is None


def test_a_preview_estimates_by_the_versions_base_model(
    client: TestClient, view: SystemView, publisher: MemoryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SystemView, "previews", view._previews)

    async def broadcast(topic: Topic, event: PreviewRequested, partitions: int) -> None:
        for partition in range(partitions):
            answer = Preview(preview_id=event.preview_id, partition=partition, at=now(), pairs=1_000)
            view._previews.apply(Record(answer.encode()))

    monkeypatch.setattr(publisher, "broadcast", broadcast)
    body = {"model": "support", "training": {"epochs": 2}}
    assert client.post("/previews", json=body).json()["estimate"] is None
    view.models.apply(Record(past(1, model="support").encode()))
    found = client.post("/previews", json=body).json()
    assert found["training"]["examples"] == 2_000 - 400 - 160
    assert found["estimate"]["seconds"] == pytest.approx(2 * 1_440 * 0.01 + 60)
    assert client.post("/previews", json=body | {"model": "sales"}).json()["estimate"] is None
    asked = body | {"model": "sales", "base_model": {"uri": "hf://org/model", "revision": "1"}}
    assert client.post("/previews", json=asked).json()["estimate"]


def test_a_version_shows_what_it_took_beside_the_estimate_before_it(client: TestClient, view: SystemView) -> None:
    for ready in (past(1, model="support"), past(2, model="support", per_example=0.02), past(3, model="support")):
        view.models.apply(Record(ready.encode()))
    third, second, first = client.get("/models/support/versions").json()["items"]
    assert first["estimate"] is None
    assert (second["seconds"], second["estimate"]["seconds"]) == (pytest.approx(120), pytest.approx(90))
    assert (third["seconds"], third["estimate"]["seconds"]) == (pytest.approx(90), pytest.approx(105))
    details = client.get("/models/support/versions/000003").json()
    assert (details["seconds"]["all"], details["estimate"]) == (pytest.approx(90), third["estimate"])


@pytest.mark.parametrize("end", [State.FAILED, State.CANCELLED, State.COMPLETED, State.RUNNING])
def test_every_job_shows_what_it_took_beside_its_estimate(client: TestClient, view: SystemView, end: State) -> None:
    planned = PlannedTraining(base_model=BASE, trainable_layers="all", examples=6_000)
    status = FineTuneStatus(request_id="r-1", model="support", state=State.ACCEPTED, at=NOW, planned=planned)
    for number, (name, state) in enumerate(
        (("accepted", State.ACCEPTED), ("queued", State.SNAPSHOTTING), ("running", State.RUNNING), (None, end))
    ):
        moment = NOW + timedelta(minutes=10 * number)
        status = FineTuneStatus(request_id="r-1", model="support", state=state, at=moment).continued(
            status, moment, name
        )
        view.apply_status(Record(status.encode(), number))
    # Before the job was published, and after.
    for ready in (past(0), past(5, per_example=1)):
        view.models.apply(Record(ready.encode()))
    found = client.get("/models/support/requests/r-1/time").json()
    assert (found["estimate"]["seconds"], found["estimate"]["trainings"]) == (pytest.approx(120), 1)
    assert found["ended"] == (end is not State.RUNNING)
    if found["ended"]:
        # It ran from the twentieth to the thirtieth minute.
        assert found["seconds"] == 600
        assert found["cost_dollars"] == pytest.approx(600 / 3600 * 2.5)
    else:
        assert found["seconds"] > 600


def test_a_request_without_a_job_took_no_time(client: TestClient, view: SystemView) -> None:
    view.apply_status(status_record(state=State.REJECTED))
    expected = {"estimate": None, "seconds": None, "cost_dollars": None, "ended": True}
    assert client.get("/models/support/requests/r-1/time").json() == expected
    assert client.get("/models/support/requests/other/time").status_code == 404
    view.apply_status(
        Record(b'{"request_id":"odd","model":"support","state":"failed","at":"2026-03-01T00:00:00Z","reasons":5}')
    )
    assert client.get("/models/support/requests/odd/time").status_code == 409
