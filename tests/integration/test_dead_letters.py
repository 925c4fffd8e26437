"""Dead letters from the first failure to the replay that gets in, on a real broker and a real worker."""

import json
from typing import Any

from kafka import KafkaAdminClient
from typer.testing import CliRunner

from foldtune.cli import app
from foldtune.dead_letters import LETTER_HEADER, dead_letter_headers
from foldtune.events import ChatLog, now
from foldtune.kafka import Publisher, client_options, partition_of
from foldtune.settings import Settings
from foldtune.topics import Topic
from streams.publishing.dead_letter_replay import REPLAYS_HEADER
from tests.integration.conftest import StartWorker
from tests.integration.test_worker import exported, jobs, publish_history, publish_request, snapshot
from tests.support import Reader, fine_tune_request

POISON = b'{nope \xff "needle"'


def listed(runner: CliRunner, *options: str) -> list[dict[str, Any]]:
    result = runner.invoke(app, ["dead-letters", "list", "--json", *options])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def replay(runner: CliRunner, *arguments: str) -> str:
    result = runner.invoke(app, ["dead-letters", "replay", "--yes", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def await_letters(settings: Settings, count: int) -> None:
    """Until there are so many letters; receipts have no value, or an empty one."""
    with Reader(settings, Topic.DEAD_LETTERS) as reader:
        reader.until(lambda records: sum(bool(record.value) for record in records) == count)


def long_question(folder_id: str) -> ChatLog:
    return ChatLog(
        log_id="long",
        occurred_at=now(),
        agent_id="agent",
        question="long " * 1000,
        folder_id=folder_id,
        cited_document_ids=("d0",),
    )


def test_a_replay_succeeds_under_a_wider_bound_and_poison_fails_again(
    settings: Settings, publisher: Publisher, start_worker: StartWorker, runner: CliRunner
) -> None:
    worker = start_worker()
    publish_history(publisher, "alpha", 25)
    publisher.send_raw(Topic.CHAT_LOGS, POISON, key="alpha")
    publisher.publish(Topic.CHAT_LOGS, long_question("alpha"), key="alpha")
    await_letters(settings, 2)
    topic, home = Topic.CHAT_LOGS.named(settings.kafka.topic_prefix), partition_of("alpha", 4)
    # As by a producer with another partitioner, which sends no key either.
    astray = long_question("alpha").model_copy(update={"log_id": "astray", "question": "where?"})
    publisher.send_raw(Topic.CHAT_LOGS, astray.encode(), key=None, partition=(home + 1) % 4)
    publisher.flush()
    await_letters(settings, 3)

    poison, too_long, misplaced = listed(runner)
    assert "producers need the murmur2 partitioner" in misplaced["error"]
    assert [(one["topic"], one["partition"], one["offset"]) for one in (poison, too_long)] == [
        (topic, home, 25),
        (topic, home, 26),
    ]
    assert "question: 5000 bytes, at most 4096" in too_long["error"]
    assert [one["id"] for one in listed(runner, "--contains", "needle", "--topic", "chat-logs")] == [poison["id"]]
    shown = runner.invoke(app, ["dead-letters", "show", poison["id"]]).stdout
    assert f"foldtune-topic: {topic}\n" in shown
    assert shown.endswith('\n\n{nope \\xff "needle"\n')
    assert runner.invoke(app, ["dead-letters", "show", poison["id"], "--raw"]).stdout_bytes == POISON

    # To the partition of its folder, where it is taken.
    assert replay(runner, misplaced["id"]) == "1 replayed, 0 refused\n"
    # Nothing has changed: both come back.
    assert replay(runner, "--all") == "2 replayed, 0 refused\n"
    await_letters(settings, 5)
    told = {(one["key"], one["offset"], one["failures"], one["replayed"]) for one in listed(runner) if one["key"]}
    assert told == {("alpha", 25, 1, True), ("alpha", 26, 1, True), ("alpha", 28, 2, False), ("alpha", 29, 2, False)}
    with Reader(settings, Topic.CHAT_LOGS) as reader:
        records = reader.until(lambda records: len(records) == 31)
    (replayed,) = [record for record in records if (record.partition, record.offset) == (home, 28)]
    assert (replayed.partition, replayed.key, replayed.value) == (home, b"alpha", POISON)
    assert dict(replayed.headers) == {LETTER_HEADER: poison["id"].encode(), REPLAYS_HEADER: b"1"}

    # A wider bound lets one in; the poison stays what it is.
    assert worker.stop() == 0
    start_worker(FOLDTUNE_BOUNDS__QUESTION_BYTES="8192")
    assert replay(runner, "--all") == "2 replayed, 0 refused\n"
    await_letters(settings, 6)
    assert [one["failures"] for one in listed(runner)] == [1, 1, 1, 2, 2, 3]
    assert [one["replayed"] for one in listed(runner)] == [True, True, True, True, True, False]
    # Once more what is in already: it counts once.
    replay(runner, too_long["id"])
    publish_request(publisher, fine_tune_request("r"))
    with Reader(settings, Topic.TRAINING_JOBS) as reader:
        (job,) = jobs(reader.until(lambda records: bool(jobs(records))))
    examples = exported(settings, snapshot(settings, job), "examples")
    assert sorted(row["log_id"] for row in examples) == sorted(
        ["astray", "long", *(f"alpha-{number}" for number in range(25))]
    )


def test_a_letter_without_a_key_is_replayed_once(settings: Settings, publisher: Publisher, runner: CliRunner) -> None:
    origin = dead_letter_headers("", Topic.ERASURES.named(settings.kafka.topic_prefix), 3, 0)
    publisher.send_raw(Topic.DEAD_LETTERS, b"{}", key=None, headers=origin)
    publisher.flush()
    assert replay(runner, "--all") == "1 replayed, 0 refused\n"
    [letter] = listed(runner)
    assert letter["replayed"]


def test_headers_do_not_select_the_replay_topic(settings: Settings, publisher: Publisher, runner: CliRunner) -> None:
    for name in ("somebody-elses", Topic.TRAINING_JOBS.named(settings.kafka.topic_prefix)):
        publisher.send_raw(Topic.DEAD_LETTERS, b"{}", key="k", headers=dead_letter_headers("", name, 0, 0))
    sound = dead_letter_headers("", Topic.FEEDBACK.named(settings.kafka.topic_prefix), 3, 0)
    publisher.send_raw(Topic.DEAD_LETTERS, b"{}", key="k", headers=sound)
    publisher.flush()
    result = runner.invoke(app, ["dead-letters", "replay", "--all", "--yes"])
    assert (result.exit_code, result.stdout) == (1, "1 replayed, 2 refused\n")
    assert result.stderr.count("none of foldtune's inputs") == 2
    with Reader(settings, Topic.FEEDBACK, Topic.TRAINING_JOBS) as reader:
        [record] = reader.until(bool)
    assert (record.topic.endswith("feedback"), record.partition) == (True, 3)
    admin = KafkaAdminClient(**client_options(settings.kafka))
    assert "somebody-elses" not in admin.list_topics()
    admin.close()


def test_a_missing_topic_is_reported(variables: dict[str, str], runner: CliRunner) -> None:
    result = runner.invoke(app, ["dead-letters", "list"])
    assert result.exit_code == 2
    assert f"{variables['FOLDTUNE_KAFKA__TOPIC_PREFIX']}dead-letters" in result.stderr
    assert "Traceback" not in result.output
