"""Which requests a launcher takes for ended."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from kafka.errors import KafkaTimeoutError

from foldtune.events import FineTuneStatus, State, now
from launchers.ended_requests import EndedRequests


def status(model: str, state: State, *, run_continues: bool | None = None) -> Any:
    event = FineTuneStatus(request_id="friday", model=model, state=state, at=now(), run_continues=run_continues)
    return SimpleNamespace(value=event.encode())


@pytest.fixture
def consumer() -> mock.Mock:
    return mock.Mock(partitions_for_topic=lambda _: {0})


def ended(consumer: mock.Mock, *records: Any) -> EndedRequests:
    consumer.poll.return_value = {0: records}
    requests = EndedRequests(consumer, "fine-tune-status")
    requests.refresh()
    return requests


def test_of_two_models_requests_with_one_id_only_that_which_has_ended_is_ended(consumer: mock.Mock) -> None:
    requests = ended(consumer, status("a", State.CANCELLED), status("b", State.RUNNING))
    assert requests.state("a", "friday") is State.CANCELLED
    assert requests.state("b", "friday") is None


def test_of_two_ends_the_first_counts(consumer: mock.Mock) -> None:
    requests = ended(consumer, status("a", State.CANCELLED), status("a", State.COMPLETED))
    assert requests.state("a", "friday") is State.CANCELLED


def test_a_cancelled_request_whose_training_goes_on_for_others_is_stopped_with_these(consumer: mock.Mock) -> None:
    goes_on = status("a", State.CANCELLED, run_continues=True)
    assert ended(consumer, goes_on).state("a", "friday") is None
    assert ended(consumer, goes_on, status("a", State.CANCELLED)).state("a", "friday") is State.CANCELLED


def test_a_topic_whose_partitions_no_broker_tells_is_asked_for_again(consumer: mock.Mock) -> None:
    consumer.partitions_for_topic = lambda _: None
    with pytest.raises(KafkaTimeoutError):
        ended(consumer)
