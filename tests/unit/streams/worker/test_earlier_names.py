"""Under which names the state of an installation with a topic prefix is looked for."""

from collections.abc import Collection

import pytest

from foldtune.errors import InvalidSettingsError
from foldtune.settings import KafkaSettings, S3Settings, Settings, WorkerSettings
from streams.worker import earlier_names
from streams.worker.app import changelogs
from streams.worker.earlier_names import with_earlier_names

MINE = "a-snapshot-commands"
EARLIER = ("foldtune-training-sets-changelog", "foldtune-requests-changelog")
OWN = ("a-foldtune-training-sets-changelog", "a-foldtune-requests-changelog")


def names(
    monkeypatch: pytest.MonkeyPatch,
    topics: Collection[str] = (),
    *,
    begun: bool = True,
    at_the_root: bool = False,
    settings: Settings | None = None,
) -> tuple[str, str]:
    """Application id and prefix of the keys, with these topics on the brokers."""
    monkeypatch.setattr(earlier_names, "_topics", lambda _: set(topics))
    monkeypatch.setattr(earlier_names, "_has_begun", lambda *_: begun)
    monkeypatch.setattr(earlier_names, "_lies_at_the_root", lambda _: at_the_root)
    found = with_earlier_names(settings or Settings(kafka=KafkaSettings(topic_prefix="a-")))
    return found.worker.app_id, found.s3.prefix


def test_a_new_installation_has_names_of_its_own_beside_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for topics in ((), (MINE,), (*EARLIER, "snapshot-commands"), (*EARLIER, "snapshot-commands", MINE)):
        assert names(monkeypatch, topics, begun=False, at_the_root=True) == ("a-foldtune", "a-")


def test_an_installation_that_has_begun_under_this_release_keeps_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(monkeypatch, (MINE, *OWN, *EARLIER, "snapshot-commands")) == ("a-foldtune", "a-")
    # Objects at the root are of another installation.
    assert names(monkeypatch, (MINE, *OWN, "snapshot-commands"), at_the_root=True) == ("a-foldtune", "a-")
    # Its changelogs were lost.
    assert names(monkeypatch, (MINE,)) == ("a-foldtune", "a-")


def test_an_installation_of_an_earlier_release_finds_its_group_and_changelogs(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(kafka=KafkaSettings(topic_prefix="a-"), s3=S3Settings(prefix=""))
    assert names(monkeypatch, (MINE, *EARLIER), settings=settings) == ("foldtune", "")
    assert names(monkeypatch, (MINE, *EARLIER)) == ("foldtune", "a-")
    assert set(changelogs(Settings())) == set(EARLIER)


def test_a_state_that_may_be_of_another_installation_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("", "b-"):
        words = f"topic_prefix '{other}'; set FOLDTUNE_WORKER__APP_ID to 'foldtune' .* 'a-foldtune'"
        with pytest.raises(InvalidSettingsError, match=words):
            names(monkeypatch, (MINE, *EARLIER, f"{other}snapshot-commands"))
    isolated = ("b-snapshot-commands", "b-foldtune-training-sets-changelog", "b-foldtune-requests-changelog")
    assert names(monkeypatch, (MINE, *EARLIER, *isolated)) == ("foldtune", "a-")
    for app_id in ("foldtune", "a-foldtune"):
        told = Settings(kafka=KafkaSettings(topic_prefix="a-"), worker=WorkerSettings(app_id=app_id))
        assert names(monkeypatch, (MINE, *EARLIER, "snapshot-commands"), settings=told) == (app_id, "a-")


def test_objects_that_may_be_of_this_installation_are_not_left_behind_unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSettingsError, match=r"FOLDTUNE_S3__PREFIX to nothing .* 'a-' to begin anew"):
        names(monkeypatch, (MINE, *EARLIER), at_the_root=True)
    for prefix in ("", "a-"):
        told = Settings(kafka=KafkaSettings(topic_prefix="a-"), s3=S3Settings(prefix=prefix))
        assert names(monkeypatch, (MINE, *OWN), at_the_root=True, settings=told) == ("a-foldtune", prefix)


def test_without_a_topic_prefix_nothing_is_looked_for() -> None:
    assert with_earlier_names(Settings()) == Settings()
