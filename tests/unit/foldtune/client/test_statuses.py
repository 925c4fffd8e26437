"""Which records of ``fine-tune-status`` are a request's."""

from types import SimpleNamespace

import pytest

from foldtune.client import client as client_module
from foldtune.client.client import FoldtuneClient
from foldtune.events import FineTuneStatus, State, now
from foldtune.settings import Settings


def records(model: str, state: State, *keys: str) -> list[SimpleNamespace]:
    status = FineTuneStatus(request_id="friday", model=model, state=state, at=now())
    return [SimpleNamespace(key=key.encode(), value=status.encode(), partition=0, offset=1) for key in keys]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FoldtuneClient:
    topic = [
        # Of a worker of 0.1, then of a present one: each under two keys.
        *records("a", State.ACCEPTED, "friday"),
        *records("b", State.COMPLETED, "b/friday", "friday"),
        *records("a", State.RUNNING, "a/friday", "friday"),
        *records("a", State.CANCELLED, "a/friday", "friday"),
        *records("a", State.ACCEPTED, "a/friday-2", "friday-2"),
        SimpleNamespace(key=None, value=b"{}", partition=0, offset=9),
    ]
    monkeypatch.setattr(client_module, "read", lambda *_, **__: iter(topic))
    return FoldtuneClient(Settings())


def test_a_request_is_its_model_and_its_id(client: FoldtuneClient) -> None:
    states = [status.state for status in client.statuses("friday", model="a")]
    assert states == [State.ACCEPTED, State.RUNNING, State.CANCELLED]


def test_an_id_alone_has_the_statuses_of_all_its_models_each_once(client: FoldtuneClient) -> None:
    found = [(status.model, status.state) for status in client.statuses("friday", follow=False)]
    assert found == [
        ("a", State.ACCEPTED),
        ("b", State.COMPLETED),
        ("a", State.RUNNING),
        ("a", State.CANCELLED),
    ]
