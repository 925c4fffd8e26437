"""Dead letters without a broker: reading, refusal of a replay, and the commands."""

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from foldtune.cli import app
from foldtune.commands.output import printable
from foldtune.dead_letters import LETTER_HEADER, dead_letter_headers
from foldtune.kafka import partition_of
from foldtune.settings import KafkaSettings, load_settings
from foldtune.topics import Topic
from streams.commands import dead_letters as command
from streams.publishing import dead_letter_replay
from streams.publishing.dead_letter_replay import (
    DeadLetter,
    RecordId,
    destination,
    read_dead_letters,
    refusal_reason,
)

KAFKA = KafkaSettings(topic_prefix="p-")
PARTITIONS = {"p-chat-logs": 4, "p-fine-tune-requests": 4}

Put = Callable[..., None]


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts records of ``dead-letters`` where the code under test reads them."""
    records: list[Any] = []
    monkeypatch.setattr(dead_letter_replay, "read", lambda _settings, _topic: iter(records))

    def read_at(_settings: KafkaSettings, _topic: Topic, places: Iterable[tuple[int, int]]) -> list[Any]:
        return [record for record in records if (record.partition, record.offset) in places]

    monkeypatch.setattr(dead_letter_replay, "read_at", read_at)

    def put_one(
        value: bytes | None, headers: Iterable[tuple[str, bytes | None]], key: bytes | None = b"k", partition: int = 0
    ) -> None:
        offset = sum(record.partition == partition for record in records)
        at = 1_700_000_000_000 + len(records)
        fields = {"partition": partition, "offset": offset, "timestamp": at, "key": key, "value": value}
        records.append(SimpleNamespace(**fields, headers=list(headers)))

    return put_one


def receipt(dead_letter_id: str, topic: str, partition: int, offset: int) -> list[tuple[str, bytes]]:
    return [*dead_letter_headers("", topic, partition, offset), (LETTER_HEADER, dead_letter_id.encode())]


ORIGIN = RecordId("p-chat-logs", 1, 2)


def dead_letter(origin: RecordId = ORIGIN, key: bytes | None = b"k", folder_id: str | None = None) -> DeadLetter:
    return DeadLetter(0, 0, datetime(2026, 1, 1, tzinfo=UTC), "", origin, key, 0, folder_id)


def test_a_dead_letter_has_its_origin_and_error(put: Put) -> None:
    put(b'{"folder_id": "f"}', dead_letter_headers("text: too long", "p-documents", 3, 17), partition=2)
    [letter] = read_dead_letters(KAFKA)
    assert (letter.id, letter.error, letter.origin) == ("2:0", "text: too long", RecordId("p-documents", 3, 17))
    assert (letter.key, letter.size, letter.folder_id) == (b"k", 18, "f")
    assert (letter.failures, letter.replayed) == (1, False)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        dead_letter_headers("", "", 0, 0),
        dead_letter_headers("", "p-documents", -1, 0),
        [(name, b"\xff") for name, _ in dead_letter_headers("", "t", 0, 0)],
        [(name, None) for name, _ in dead_letter_headers("", "t", 0, 0)],
        [("foldtune-topic", b"t"), ("foldtune-partition", "\N{ARABIC-INDIC DIGIT ONE}".encode())],
        [("foldtune-topic", b"t"), ("foldtune-partition", b"1"), ("foldtune-offset", b"1" * 5000)],
    ],
)
def test_invalid_headers_give_no_origin(put: Put, headers: list[tuple[str, bytes | None]]) -> None:
    put(b"x", headers)
    [letter] = read_dead_letters(KAFKA)
    assert letter.origin is None
    assert refusal_reason(letter, KAFKA, PARTITIONS) == "its headers name no origin"


@given(value=st.binary())
def test_any_bytes_can_be_a_dead_letter(value: bytes) -> None:
    assert dead_letter_replay._folder_id(value) is None or b"folder_id" in value
    assert dead_letter_replay._folder_id(b"[" * 100_000 + value) is None


def test_receipts_mark_replays_and_count_failures(put: Put) -> None:
    put(b"x", dead_letter_headers("first", "p-chat-logs", 1, 5))
    put(b"y", dead_letter_headers("other", "p-chat-logs", 1, 6))
    put(None, receipt("0:0", "p-chat-logs", 1, 40))
    put(b"x", dead_letter_headers("second", "p-chat-logs", 1, 40))
    put(None, receipt("0:3", "p-chat-logs", 1, 50))
    put(b"x", dead_letter_headers("third", "p-chat-logs", 1, 50))
    listed = [(letter.error, letter.failures, letter.replayed) for letter in read_dead_letters(KAFKA)]
    assert listed == [("first", 1, True), ("other", 1, False), ("second", 2, True), ("third", 3, False)]


def test_a_replay_leaves_nothing_of_the_record_in_its_receipt(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = mock.MagicMock()
    publisher.__enter__().send_raw.return_value.get.return_value = RecordId("p-chat-logs", 1, 40)
    monkeypatch.setattr(dead_letter_replay, "Publisher", lambda _: publisher)
    put(b'{"user_id": "anna"}', dead_letter_headers("", "p-chat-logs", 1, 2), key=b"anna")
    assert dead_letter_replay.replay(KAFKA, read_dead_letters(KAFKA), PARTITIONS) == 1
    replayed, left = publisher.__enter__().send_raw.call_args_list
    assert "anna" in str(replayed)
    assert "anna" not in str(left)


def test_a_letter_stays_replayed_when_its_topic_was_made_anew(put: Put) -> None:
    put(b"x", dead_letter_headers("before", "p-chat-logs", 1, 5))
    put(None, receipt("0:0", "p-chat-logs", 1, 40))
    put(b"y", dead_letter_headers("after", "p-chat-logs", 1, 105))
    put(None, receipt("0:2", "p-chat-logs", 1, 40))
    assert [(letter.error, letter.replayed) for letter in read_dead_letters(KAFKA)] == [
        ("before", True),
        ("after", True),
    ]


def test_a_letter_that_names_the_replay_counts_as_its_failure_whatever_the_offsets(put: Put) -> None:
    put(b"x", dead_letter_headers("first", "p-chat-logs", 1, 105))
    put(None, receipt("0:0", "p-chat-logs", 1, 50))
    for replayed in ("0:0", "0:1", "0:9"):
        put(b"x", [*dead_letter_headers(replayed, "p-chat-logs", 1, 150), ("foldtune-replay-of", replayed.encode())])
    counted = [(letter.error, letter.failures) for letter in read_dead_letters(KAFKA)]
    # The last two were never replayed: their headers are forged.
    assert counted == [("first", 1), ("0:0", 2), ("0:1", 1), ("0:9", 1)]


def test_a_cycle_of_receipts_ends(put: Put) -> None:
    put(b"x", dead_letter_headers("", "p-chat-logs", 1, 1))
    put(b"y", dead_letter_headers("", "p-chat-logs", 1, 2))
    put(None, receipt("0:0", "p-chat-logs", 1, 2))
    put(None, receipt("0:1", "p-chat-logs", 1, 1))
    assert [letter.failures for letter in read_dead_letters(KAFKA)] == [3, 3]


@pytest.mark.parametrize(
    ("letter", "reason"),
    [
        (dead_letter(), None),
        (dead_letter(RecordId("p-fine-tune-requests", 3, 0), folder_id="elsewhere"), None),
        (dead_letter(RecordId("chat-logs", 1, 2)), "its origin 'chat-logs' is none of foldtune's inputs"),
        (dead_letter(RecordId("p-training-jobs", 1, 2)), "its origin 'p-training-jobs' is none of foldtune's inputs"),
        (dead_letter(RecordId("p-dead-letters", 1, 2)), "its origin 'p-dead-letters' is none of foldtune's inputs"),
        (
            dead_letter(RecordId("p-chat-logs", 4, 2)),
            "its origin is partition 4 of 'p-chat-logs', which has 4 partitions",
        ),
        (dead_letter(folder_id="f"), None),
    ],
)
def test_replays_go_only_to_inputs(letter: DeadLetter, reason: str | None) -> None:
    assert refusal_reason(letter, KAFKA, PARTITIONS) == reason


@pytest.mark.parametrize(
    ("letter", "reason"),
    [
        (dead_letter(folder_id="k"), None),
        (dead_letter(key=None, folder_id="f"), None),
        (dead_letter(folder_id="f"), "its folder_id 'f' differs from its key 'k': publish it as a new event"),
        (
            dead_letter(key=b"\xff", folder_id="f"),
            "its folder_id 'f' differs from its key '\\\\xff': publish it as a new event",
        ),
    ],
)
def test_with_another_partitioner_a_folder_is_not_replayed_under_another_key(
    letter: DeadLetter, reason: str | None
) -> None:
    kafka = KAFKA.model_copy(update={"partitioner": "other"})
    assert refusal_reason(letter, kafka, PARTITIONS) == reason
    assert destination(letter, kafka, PARTITIONS) == ("p-chat-logs", 1)


@pytest.mark.parametrize("key", [None, b"k", b"f"])
def test_a_replay_goes_to_the_partition_of_the_folder_wherever_the_record_came_from(key: bytes | None) -> None:
    home = partition_of("f", 4)
    assert home != ORIGIN.partition
    assert destination(dead_letter(key=key, folder_id="f"), KAFKA, PARTITIONS) == ("p-chat-logs", home)
    request = dead_letter(RecordId("p-fine-tune-requests", 3, 0), folder_id="f")
    for unkeyed in (dead_letter(key=key), request):
        assert unkeyed.origin
        assert destination(unkeyed, KAFKA, PARTITIONS) == unkeyed.origin[:2]


def test_the_list_escapes_control_characters(runner: CliRunner, put: Put) -> None:
    put(b"x", dead_letter_headers("[bold]field: \x1b[2J[/nothing]\nnext", "chat-logs", 1, 5), key=b"\xfe")
    put(b"y", [])
    result = runner.invoke(app, ["dead-letters", "list"])
    assert result.exit_code == 0, result.output
    assert "[bold]field: \\x1b[2J[/nothing]\\nnext" in result.stdout
    assert "\x1b[2J" not in result.stdout
    assert "chat-logs 1:5" in result.stdout
    assert "unknown" in result.stdout
    first, second = map(json.loads, runner.invoke(app, ["dead-letters", "list", "--json"]).stdout.splitlines())
    assert first == {
        "id": "0:0",
        "topic": "chat-logs",
        "partition": 1,
        "offset": 5,
        "at": "2023-11-14T22:13:20+00:00",
        "error": "[bold]field: \x1b[2J[/nothing]\nnext",
        "key": "\\xfe",
        "bytes": 1,
        "failures": 1,
        "replayed": False,
    }
    assert (second["id"], second["topic"]) == ("0:1", None)


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ([], ["0:0", "0:1"]),
        (["--topic", "chat-logs"], ["0:0"]),
        (["--topic", "p-chat-logs"], ["0:0"]),
        (["--topic", "documents"], ["0:1"]),
        (["--topic", "p"], []),
        (["--contains", "needle"], ["0:0"]),
        (["--contains", "too long"], ["0:1"]),
        (["--contains", "needle", "--topic", "documents"], []),
        (["--since", "2023-11-14"], ["0:0", "0:1"]),
        (["--since", "2023-11-15T00:00:00+00:00"], []),
        (["--since", "2023-11-14T23:13:20.001+01:00"], ["0:1"]),
    ],
)
def test_dead_letters_are_filtered(
    runner: CliRunner,
    put: Put,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    ids: list[str],
) -> None:
    monkeypatch.setenv("FOLDTUNE_KAFKA__TOPIC_PREFIX", "p-")
    load_settings.cache_clear()
    put(b"a needle \xff", dead_letter_headers("no JSON", "p-chat-logs", 1, 5))
    put(b"y", dead_letter_headers("text: too long", "p-documents", 1, 5))
    result = runner.invoke(app, ["dead-letters", "list", "--json", *options])
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == ids


def test_show_prints_headers_and_bytes(runner: CliRunner, put: Put) -> None:
    value = b'{"a": 1}\n\xff\x1b\x00 \xc3\xa9'
    put(value, dead_letter_headers("no JSON", "chat-logs", 1, 5))
    shown = runner.invoke(app, ["dead-letters", "show", "0:0"]).stdout
    assert "foldtune-error: no JSON\n" in shown
    assert "foldtune-offset: 5\n" in shown
    assert shown.endswith('\n\n{"a": 1}\n\\xff\\x1b\\x00 é\n')
    assert runner.invoke(app, ["dead-letters", "show", "0:0", "--raw"]).stdout_bytes == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "0:7"], "no dead letter 0:7"),
        (["show", "first"], "'first' is not the id of a dead letter; ids look like 0:12"),
        (["replay"], "give the ids of dead letters, or --all"),
        (["replay", "0:0", "--all"], "give the ids of dead letters, or --all"),
        (["replay", "0:0", "0:9"], "no such dead letter, or excluded by the filters: 0:9"),
        (["replay", "0:0", "--contains", "nowhere"], "no such dead letter"),
        (["replay", "0:1"], "no such dead letter"),
        (["list", "--since", "soon"], "'soon' is not a timestamp"),
        (["list", "--since", "0001-01-01T00:00:00+14:00"], "is not a timestamp"),
    ],
)
def test_user_errors_are_explained(runner: CliRunner, put: Put, arguments: list[str], message: str) -> None:
    put(b"x", dead_letter_headers("", "chat-logs", 1, 5))
    put(None, receipt("0:0", "chat-logs", 1, 40))
    result = runner.invoke(app, ["dead-letters", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_replay_needs_a_confirmation(
    runner: CliRunner,
    put: Put,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(b"x", dead_letter_headers("", "chat-logs", 1, 5))
    put(b"x", dead_letter_headers("", "passwords", 1, 5))
    replayed: list[list[DeadLetter]] = []

    def replay(_kafka: KafkaSettings, dead_letters: list[DeadLetter], _partitions: dict[str, int]) -> int:
        replayed.append(dead_letters)
        return len(dead_letters)

    monkeypatch.setattr(command, "input_partitions", lambda _kafka: {"chat-logs": 4})
    monkeypatch.setattr(command, "replay", replay)
    refused = "0:1 refused: its origin 'passwords' is none of foldtune's inputs"
    dry = runner.invoke(app, ["dead-letters", "replay", "--all", "--dry-run"])
    assert (dry.exit_code, dry.stdout, dry.stderr.strip()) == (1, "0:0 to chat-logs 1\n", refused)
    for answer in ("n\n", ""):
        asked = runner.invoke(app, ["dead-letters", "replay", "--all"], input=answer)
        assert asked.exit_code == 1
        assert "Replay 1 event to chat-logs?" in asked.stdout
    assert replayed == []
    agreed = runner.invoke(app, ["dead-letters", "replay", "--all"], input="y\n")
    assert (agreed.exit_code, agreed.stdout.endswith("1 replayed, 1 refused\n")) == (1, True)
    assert runner.invoke(app, ["dead-letters", "replay", "0:0", "--yes"]).exit_code == 0
    assert [[dead_letter.id for dead_letter in dead_letters] for dead_letters in replayed] == [["0:0"], ["0:0"]]


def test_all_skips_what_was_replayed(
    runner: CliRunner,
    put: Put,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(b"x", dead_letter_headers("", "chat-logs", 1, 5))
    put(None, receipt("0:0", "chat-logs", 1, 40))
    monkeypatch.setattr(command, "input_partitions", lambda _kafka: {"chat-logs": 4})
    assert runner.invoke(app, ["dead-letters", "replay", "--all"]).stdout == "nothing to replay\n"
    assert runner.invoke(app, ["dead-letters", "replay", "0:0", "--dry-run"]).stdout == "0:0 to chat-logs 1\n"


@given(st.text())
def test_printable_text_stays_on_its_line(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text
