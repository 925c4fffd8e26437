"""Which versions may be deployed: approvals and rejections in any order, and what a group commits meanwhile."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import permutations
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from foldtune.client import reviews as module
from foldtune.client.deployment import Deployer
from foldtune.client.reviews import Reviews, Waiting
from foldtune.errors import ObjectStoreError, TopicMissingError
from foldtune.events import ModelReviewed
from foldtune.reviews import Standing
from foldtune.settings import ApprovalSettings, Settings
from foldtune.testing import MemoryObjectStore
from foldtune.topics import review_key
from tests.support import model_ready

AT = datetime(2026, 1, 2, tzinfo=UTC)
ALLOWED, WAITING, REJECTED = Standing.ALLOWED, Standing.WAITING, Standing.REJECTED


def review(version: str, *, approved: bool, model: str = "m") -> bytes:
    return ModelReviewed(model=model, version=version, approved=approved, by="ann", at=AT).encode()


def reviews(*models: str) -> Reviews:
    return Reviews(Settings(approval=ApprovalSettings.model_validate({"models": models})))


@pytest.mark.parametrize(
    ("models", "said", "standing"),
    [
        ((), (), ALLOWED),
        (("other",), (), ALLOWED),
        (("m",), (), WAITING),
        (("*",), (), WAITING),
        (("m",), (True,), ALLOWED),
        (("m",), (False,), REJECTED),
        ((), (False,), REJECTED),
        (("m",), (True, False), REJECTED),
        ((), (True, True, False), REJECTED),
    ],
)
def test_an_approval_is_waited_for_where_it_is_required_and_a_rejection_is_final(
    models: tuple[str, ...], said: tuple[bool, ...], standing: Standing
) -> None:
    for order in permutations(said):
        known = reviews(*models)
        for approved in order:
            known.note(review("v1", approved=approved))
        # Of other versions, and what nobody can read.
        known.note(review("v2", approved=True))
        known.note(review("v1", approved=not standing, model="n"))
        known.note(b"{nope")
        known.note(None)
        assert known.standing(model_ready(model="m", version="v1")) is standing


def test_an_approval_and_a_rejection_do_not_replace_each_other_on_the_topic() -> None:
    assert review_key("m", "v", approved=True) != review_key("m", "v", approved=False)


def test_announcements_come_once_they_are_approved_in_any_order_and_never_when_rejected() -> None:
    known = reviews("m")
    waiting = Waiting(known)
    first, second, third, free = (
        model_ready(model=model, version=version)
        for model, version in (("m", "v1"), ("m", "v2"), ("m", "v3"), ("n", "v1"))
    )
    known.note(review("v2", approved=True))
    for ready in (first, second, third, free):
        waiting.add(ready)
    assert list(waiting.released()) == [second, free]
    known.note(review("v1", approved=False))
    assert list(waiting.released()) == []
    known.note(review("v3", approved=True))
    assert list(waiting.released()) == [third]
    assert list(waiting.released()) == []


def test_a_group_commits_nothing_beyond_an_announcement_that_waits() -> None:
    known = reviews("m")
    waiting = Waiting(known)
    waiting.add(model_ready(model="m", version="v1"), ("p0", 3))
    waiting.add(model_ready(model="n", version="v1"), ("p0", 4))
    waiting.add(model_ready(model="m", version="v9"), ("p1", 7))
    assert [ready.model for ready in waiting.released()] == ["n"]
    assert waiting.uncommitted({"p0": 5, "p1": 8, "p2": 1, "p3": None}) == {"p0": 3, "p1": 7, "p2": 1}
    known.note(review("v1", approved=False))
    assert not list(waiting.released())
    assert waiting.uncommitted({"p0": 5, "p1": 8}) == {"p0": 5, "p1": 7}
    # Another member has this partition now, and gets it again.
    waiting.keep({"p0"})
    known.note(review("v9", approved=True))
    assert not list(waiting.released())


def test_reviews_are_read_to_the_end_first_and_then_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, later = [0.0], list[bytes | None]()

    def read(*_: Any, follow: bool = False, idle: bool = False) -> Iterator[Any]:
        if not follow:
            yield from (SimpleNamespace(value=review("v1", approved=approved)) for approved in (True, False))
            return
        assert idle
        while True:
            value = later.pop(0) if later else None
            yield SimpleNamespace(value=value) if value else None

    monkeypatch.setattr(module, "read", read)
    known = Reviews(Settings(approval=ApprovalSettings(models=("m",))), clock=lambda: seconds[0])
    known.refresh()
    # Not as it was in between.
    assert known.standing(model_ready(model="m", version="v1")) is REJECTED
    later.append(review("v2", approved=True))
    known.refresh()
    assert known.standing(model_ready(model="m", version="v2")) is WAITING
    seconds[0] = 0.5
    known.refresh()
    assert known.standing(model_ready(model="m", version="v2")) is ALLOWED
    known.close()
    known.refresh()


@pytest.mark.parametrize("required", [True, False])
def test_brokers_without_the_topic_are_an_error_only_where_approvals_are_required(
    monkeypatch: pytest.MonkeyPatch, required: bool
) -> None:
    def read(*_: Any, **__: Any) -> NoReturn:
        raise TopicMissingError("model-reviews")

    monkeypatch.setattr(module, "read", read)
    known = reviews("m") if required else reviews()
    if required:
        with pytest.raises(TopicMissingError):
            known.refresh()
        return
    known.refresh()
    assert known.standing(model_ready(model="m", version="v1")) is ALLOWED


def test_a_version_that_is_rejected_while_it_is_tried_again_is_given_up(tmp_path: Any) -> None:
    class Unavailable(MemoryObjectStore):
        def get(self, key: str) -> bytes:
            raise ObjectStoreError(key)

    known, failures = reviews(), list[str]()
    deployer = Deployer(
        Unavailable(),
        tmp_path,
        lambda ready, _: failures.append(ready.version),
        clock=lambda: 0.0,
        rejected=lambda ready: known.standing(ready) is REJECTED,
    )
    deployer.offer(model_ready(model="m", version="v1", model_uri="s3://memory/models/m/v1"))
    assert list(deployer.deploy_due()) == []
    assert (failures, deployer.idle) == (["v1"], False)
    known.note(review("v1", approved=False))
    assert list(deployer.deploy_due()) == []
    assert (failures, deployer.idle) == (["v1"], True)
