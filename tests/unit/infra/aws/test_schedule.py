"""What `schedule` requests."""

import pytest
from pydantic import ValidationError

from foldtune.errors import PublishError
from foldtune.topics import Topic
from infra.aws.handlers import schedule
from tests.lambda_payloads import Context

from .conftest import Published

EVENT = {
    "version": "0",
    "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa",
    "detail-type": "Scheduled Event",
    "source": "aws.events",
    "account": "123456789012",
    "time": "2026-03-01T04:00:00Z",
    "region": "us-east-1",
    "resources": ["arn:aws:events:us-east-1:123456789012:rule/retrain"],
    "detail": {},
}


def test_each_model_is_requested_once_per_firing(published: Published, context: Context) -> None:
    schedule(EVENT, context)
    schedule(EVENT | {"id": "again"}, context)
    schedule(EVENT | {"time": "2026-03-08T04:00:00Z"}, context)
    requests = published.on(Topic.FINE_TUNE_REQUESTS)
    assert [request.model for request in requests] == ["support", "sales"] * 3
    assert [request.request_id for request in requests[:2]] == [
        "schedule-support-20260301T040000",
        "schedule-sales-20260301T040000",
    ]
    assert requests[:2] == requests[2:4]
    assert len({request.request_id for request in requests}) == 4
    assert {(request.origin, request.requested_by) for request in requests} == {("policy", "schedule")}


def test_all_requests_share_one_connection(published: Published, context: Context) -> None:
    schedule(EVENT, context)
    assert (published.connected, published.flushed) == (1, 1)
    published.broken = PublishError("x-fine-tune-requests", "no answer")
    with pytest.raises(PublishError):
        schedule(EVENT, context)


def test_without_models_nothing_connects(
    published: Published, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDTUNE_SCHEDULE__MODELS", "[]")
    schedule(EVENT, context)
    assert not published.connected


def test_an_event_without_a_time_is_an_error(published: Published, context: Context) -> None:
    with pytest.raises(ValidationError):
        schedule({}, context)
