"""The SDK and the command line with a real Kafka and a real S3 server."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foldtune.cli import app
from foldtune.client.client import FoldtuneClient
from foldtune.errors import ClientClosedError, OutOfBoundsError, PublishError, StatusTimeoutError
from foldtune.events import (
    ChatLog,
    ChatLogBatch,
    DocumentDeleted,
    DocumentUpserted,
    ErasureRequested,
    Feedback,
    FineTuneCancelled,
    FineTuneRequested,
    FineTuneStatus,
    ModelReady,
    Rating,
    RetrievedPassage,
    State,
    Verdict,
    now,
)
from foldtune.kafka import Publisher
from foldtune.object_keys import key_segment
from foldtune.object_store import S3ObjectStore
from foldtune.settings import ApprovalSettings, Settings, load_settings
from foldtune.topic_reader import read
from foldtune.topics import Topic, request_key
from infra.local.stack import LocalServers
from tests.support import ChildProcess, fine_tune_request
from tests.unit.foldtune.client.test_deployment import publish

PATIENCE = timedelta(seconds=60)


def log(number: int, folder: str = "f", **fields: object) -> ChatLog:
    """A log with required fields only."""
    content = {"log_id": f"l{number}", "occurred_at": now(), "agent_id": "a", "question": "Why?", "folder_id": folder}
    return ChatLog.model_validate(content | fields)


def values(settings: Settings, topic: Topic) -> list[bytes]:
    """The values of all records of a topic."""
    return [record.value for record in read(settings.kafka, topic)]


def publish_statuses(publisher: Publisher, request_id: str, *states: State) -> None:
    """Publish statuses like the coordinator."""
    for state in states:
        status = FineTuneStatus(request_id=request_id, model="m", state=state, at=now())
        for key in (request_key("m", request_id), request_id):
            publisher.publish(Topic.FINE_TUNE_STATUS, status, key=key, partition_by="m")


def test_logs_are_batched_by_folder_and_a_log_of_two_folders_is_sent_twice(settings: Settings) -> None:
    passages = tuple(RetrievedPassage(document_id=f"d{n}", folder_id=f, rank=n) for n, f in enumerate("fg", start=1))
    with FoldtuneClient(settings, linger=timedelta(minutes=1)) as client:
        for number in range(10):
            client.log(log(number))
        client.log(log(10, retrieved=passages, cited_document_ids=("d1", "d2")))
    records = list(read(settings.kafka, Topic.CHAT_LOGS))
    assert {record.key for record in records} == {b"f", b"g"}
    [batch] = [record.value for record in records if record.key == b"f"]
    [single] = [record.value for record in records if record.key == b"g"]
    assert [sent.log_id for sent in ChatLogBatch.model_validate_json(batch).logs] == [f"l{n}" for n in range(11)]
    assert ChatLog.model_validate_json(single).folder_id == "g"


def test_a_log_is_sent_after_the_linger(settings: Settings) -> None:
    with FoldtuneClient(settings, linger=timedelta(milliseconds=20)) as client:
        client.log(log(1))
        [record] = islice(read(settings.kafka, Topic.CHAT_LOGS, follow=True), 1)
    assert ChatLog.model_validate_json(record.value).log_id == "l1"


@contextmanager
def silent_broker(servers: LocalServers) -> Iterator[None]:
    """The broker takes connections, and answers nothing."""
    assert servers.kafka.pid
    os.kill(servers.kafka.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(servers.kafka.pid, signal.SIGCONT)


def flush_in_the_end(client: FoldtuneClient) -> None:
    """Flush again and again, as a broker that was silent may need longer than one delivery time."""
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while True:
        try:
            return client.flush()
        except PublishError:
            if time.monotonic() > deadline:
                raise


def test_what_the_client_has_taken_survives_a_silent_broker(settings: Settings, local_servers: LocalServers) -> None:
    client = FoldtuneClient(settings, delivery=timedelta(seconds=2))
    slowest = 0.0

    def take(numbers: Iterable[int]) -> None:
        nonlocal slowest
        for number in numbers:
            began = time.monotonic()
            client.log(log(number))
            client.document(
                DocumentUpserted(document_id=f"d{number}", folder_id="f", occurred_at=now(), text="A text.")
            )
            client.feedback(
                Feedback(
                    feedback_id=f"b{number}",
                    occurred_at=now(),
                    log_id=f"l{number}",
                    folder_id="f",
                    verdict=Verdict(rating=Rating.LIKE),
                )
            )
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)

    take(range(10))
    with silent_broker(local_servers):
        # Beyond the delivery time, so that attempts fail.
        take(range(10, 70))
        with pytest.raises(PublishError, match=r"sent again: \d+ \(.* and \d+ more\)"):
            client.flush()
        with pytest.raises(PublishError, match="not acknowledged within 2 s"):
            client.cancel("r-1", "m")
    take(range(70, 80))
    flush_in_the_end(client)
    client.close()
    logs = [json.loads(value) for value in values(settings, Topic.CHAT_LOGS)]
    taken = {str(number) for number in range(80)}
    assert {each["log_id"][1:] for value in logs for each in value.get("logs", [value])} == taken
    assert {json.loads(value)["document_id"][1:] for value in values(settings, Topic.DOCUMENTS)} == taken
    assert {json.loads(value)["feedback_id"][1:] for value in values(settings, Topic.FEEDBACK)} == taken
    assert slowest < 0.5


def test_what_a_silent_broker_makes_a_closed_client_lose_is_named(
    settings: Settings, local_servers: LocalServers, caplog: pytest.LogCaptureFixture
) -> None:
    client = FoldtuneClient(settings, delivery=timedelta(seconds=1))
    client.log(log(1))
    client.flush()
    with silent_broker(local_servers):
        client.log(log(2))
        began = time.monotonic()
        with pytest.raises(PublishError, match=r"chat-logs, .*lost: 1 \(l2\)"):
            client.close()
        assert time.monotonic() - began < 5
    assert "events lost" in caplog.text


def test_other_events_are_sent_by_a_flush(settings: Settings) -> None:
    request = fine_tune_request("r-1", "m")
    with FoldtuneClient(settings) as client:
        client.document(DocumentUpserted(document_id="d", folder_id="f", occurred_at=now(), text="A text."))
        client.document(DocumentDeleted(document_id="d", folder_id="f", occurred_at=now()))
        client.feedback(
            Feedback(
                feedback_id="b",
                occurred_at=now(),
                log_id="l",
                folder_id="f",
                verdict=Verdict(correct_document_id="d"),
            )
        )
        client.flush()
        client.erase(ErasureRequested(erasure_id="e", occurred_at=now(), subject="user", subject_id="u"))
        client.request_fine_tune(request)
        client.cancel("r-1", "m")
    assert len(values(settings, Topic.DOCUMENTS)) == 2
    assert len(values(settings, Topic.FEEDBACK)) == 1
    assert len(values(settings, Topic.ERASURES)) == settings.kafka.partitions
    requested, cancelled = values(settings, Topic.FINE_TUNE_REQUESTS)
    assert FineTuneRequested.model_validate_json(requested) == request
    assert FineTuneCancelled.model_validate_json(cancelled).request_id == "r-1"


def test_an_oversized_event_is_rejected_with_field_and_bound(settings: Settings) -> None:
    with FoldtuneClient(settings) as client:
        with pytest.raises(OutOfBoundsError, match=r"question: 5000 bytes, at most 4096"):
            client.log(log(1, question="x" * 5000))
        with pytest.raises(OutOfBoundsError, match=r"event: \d+ bytes, at most"):
            client.log(log(1, answer="x" * settings.bounds.event_bytes))
    assert values(settings, Topic.CHAT_LOGS) == []


def test_a_closed_client_sends_nothing(settings: Settings) -> None:
    client = FoldtuneClient(settings)
    client.log(log(1))
    client.close()
    with pytest.raises(ClientClosedError):
        client.log(log(2))
    with pytest.raises(ClientClosedError):
        client.request_fine_tune(fine_tune_request("r-1"))


def test_a_request_is_followed_to_its_final_status(settings: Settings, publisher: Publisher) -> None:
    publish_statuses(publisher, "r-1", State.ACCEPTED, State.RUNNING)
    publish_statuses(publisher, "r-2", State.REJECTED)
    with FoldtuneClient(settings) as client:
        assert [status.state for status in client.statuses("r-1", follow=False)] == [State.ACCEPTED, State.RUNNING]
        assert {name: status.state for name, status in client.requests().items()} == {
            ("m", "r-1"): State.RUNNING,
            ("m", "r-2"): State.REJECTED,
        }
        with pytest.raises(StatusTimeoutError, match="running"):
            client.wait("r-1", timedelta(seconds=1))
        statuses = client.statuses("r-1", timeout=PATIENCE)
        assert next(statuses).state is State.ACCEPTED
        publish_statuses(publisher, "r-1", State.COMPLETED, State.ACCEPTED)
        assert [status.state for status in statuses] == [State.RUNNING, State.COMPLETED]


def announce(settings: Settings, publisher: Publisher, version: str) -> ModelReady:
    """Upload a model and publish its event."""
    ready = publish(S3ObjectStore(settings.s3), version)
    publisher.publish(Topic.MODEL_READY, ready, key=ready.model)
    return ready


def test_a_group_receives_each_model_once_and_the_uncommitted_one_again(
    settings: Settings, publisher: Publisher
) -> None:
    first, second = announce(settings, publisher, "v1"), announce(settings, publisher, "v2")
    with FoldtuneClient(settings) as client:
        assert client.models() == {"support": second}
        assert list(islice(client.subscribe(), 2)) == [first, second]
        crashed = client.subscribe("g")
        assert next(crashed) == first
        assert next(crashed) == second
        crashed.close()
        restarted = client.subscribe("g")
        assert next(restarted) == second
        restarted.close()


def test_deploy_once(settings: Settings, publisher: Publisher, runner: CliRunner, tmp_path: Path) -> None:
    result = runner.invoke(app, ["deploy", str(tmp_path), "--once"])
    assert (result.exit_code, result.output) == (3, "foldtune: no version of a model has been announced\n")
    announce(settings, publisher, "v1")
    announce(settings, publisher, "v2")
    result = runner.invoke(app, ["deploy", str(tmp_path), "--once"])
    assert result.exit_code == 0, result.output
    folder = tmp_path / key_segment("support")
    assert result.output.split() == [str(folder / "v2")]
    assert (folder / "current" / "model.safetensors").read_bytes() == b"weights"
    assert runner.invoke(app, ["deploy", str(tmp_path), "--once", "--model", "other"]).exit_code == 2


def test_deploy_goes_back_only_when_told_to(
    settings: Settings, publisher: Publisher, runner: CliRunner, tmp_path: Path
) -> None:
    announce(settings, publisher, "v2")
    # A repeated announcement, or a training that ended late.
    announce(settings, publisher, "v1")
    folder = tmp_path / key_segment("support")
    options = ["deploy", str(tmp_path)]
    assert runner.invoke(app, [*options, "--once"]).output.split() == [str(folder / "v2")]
    back = runner.invoke(app, [*options, "--model", "support", "--version", "v1"])
    assert back.output.split() == [str(folder / "v1")]
    assert runner.invoke(app, [*options, "--once"]).output.split() == [str(folder / "v1")]
    assert (folder / "current").readlink() == Path("v1")
    assert runner.invoke(app, [*options, "--model", "support", "--version", "v9"]).exit_code == 2
    assert runner.invoke(app, [*options, "--version", "v1"]).exit_code == 2


def test_what_needs_an_approval_is_waited_for_and_what_is_rejected_is_not_deployed(
    settings: Settings, publisher: Publisher, runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDTUNE_APPROVAL__MODELS", '["support"]')
    load_settings.cache_clear()
    strict = settings.model_copy(update={"approval": ApprovalSettings(models=("support",))})
    folder, options = tmp_path / key_segment("support"), ["deploy", str(tmp_path), "--model", "support"]

    def run(*words: str) -> tuple[int, str]:
        result = runner.invoke(app, words)
        return result.exit_code, result.output

    announce(settings, publisher, "v1")
    code, output = run(*options, "--once")
    assert (code, "waits for 'foldtune approve support v1'" in output) == (3, True)
    assert run(*options, "--version", "v1")[0] == 2
    assert not folder.exists()
    with FoldtuneClient(strict) as client:
        received = client.subscribe("g")
        # Approved before it is announced; the other one after it.
        assert run("approve", "support", "v2")[0] == 2
        assert run("approve", "support", "v2", "--ahead", "--by", "ann") == (0, "support v2 approved\n")
        second = announce(settings, publisher, "v2")
        assert next(received) == second
        assert run("approve", "support", "v1", "--comment", "after all")[0] == 0
        assert next(received).version == "v1"
        received.close()
    assert run(*options, "--once") == (0, f"{folder / 'v2'}\n")
    announce(settings, publisher, "v3")
    assert run("reject", "support", "v3", "--by", "ann", "--comment", "worse on prices")[0] == 0
    code, output = run("approve", "support", "v3")
    assert (code, "was rejected by ann" in output) == (2, True)
    # Also by those whose settings ask for nothing, and after a restart.
    monkeypatch.delenv("FOLDTUNE_APPROVAL__MODELS")
    load_settings.cache_clear()
    code, output = run(*options, "--version", "v3")
    assert (code, "rejected by ann" in output, "worse on prices" in output) == (2, True, True)
    code, output = run(*options, "--once")
    assert (code, "rejected by ann" in output, output.splitlines()[-1]) == (0, True, str(folder / "v2"))
    with FoldtuneClient(settings) as client:
        assert [ready.version for ready in islice(client.subscribe(), 2)] == ["v1", "v2"]
    assert run("reject", "support", "v2", "--by", "ann")[0] == 0
    assert run("reject", "support", "v1", "--by", "ann")[0] == 0
    code, output = run("deploy", str(tmp_path), "--once")
    assert (code, output.startswith("foldtune: support v3 was rejected by ann")) == (3, True)


def test_commands_end_on_sigterm_though_no_broker_answers(
    settings: Settings,
    publisher: Publisher,
    variables: dict[str, str],
    local_servers: LocalServers,
    tmp_path: Path,
) -> None:
    announce(settings, publisher, "v1")
    commands = {
        "deploy": ["deploy", str(tmp_path / "models")],
        "subscribe": ["subscribe"],
        "group": ["subscribe", "--group", "g"],
    }
    children = {name: ChildProcess(command, variables, tmp_path / name) for name, command in commands.items()}
    try:
        deadline = time.monotonic() + 60
        while not all(child.log.read_text() for child in children.values()):
            assert time.monotonic() < deadline, {name: child.log.read_text() for name, child in children.items()}
            time.sleep(0.1)
        with silent_broker(local_servers):
            for child in children.values():
                child.send(signal.SIGTERM)
            assert {name: child.wait(30) for name, child in children.items()} == dict.fromkeys(children, 143)
    finally:
        for child in children.values():
            child.kill()


def test_subscribe_prints_lines_until_interrupted(
    settings: Settings, publisher: Publisher, variables: dict[str, str]
) -> None:
    ready = announce(settings, publisher, "v1")
    command = [sys.executable, "-m", "foldtune.cli", "subscribe"]
    with subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert ModelReady.model_validate_json(child.stdout.readline()) == ready
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130


def test_import_sends_valid_lines_and_reports_invalid_ones(
    settings: Settings, runner: CliRunner, tmp_path: Path
) -> None:
    file = tmp_path / "logs.jsonl"
    lines = [log(1).encode(), b"{}", b"no json", log(2, question="x" * 5000).encode(), b"", log(3).encode()]
    file.write_bytes(b"\n".join(lines))
    result = runner.invoke(app, ["import", "logs", str(file)])
    assert result.exit_code == 1
    assert "2 sent, 3 rejected" in result.stdout
    assert "line 2: log_id: Field required" in result.stderr
    assert "line 3: " in result.stderr
    assert "line 4: question: 5000 bytes, at most 4096" in result.stderr
    [batch] = values(settings, Topic.CHAT_LOGS)
    assert [sent.log_id for sent in ChatLogBatch.model_validate_json(batch).logs] == ["l1", "l3"]
    strict = runner.invoke(app, ["import", "logs", str(file), "--strict"])
    assert (strict.exit_code, "1 sent, 1 rejected" in strict.stdout) == (1, True)


def test_documents_are_imported_from_standard_input(settings: Settings, runner: CliRunner) -> None:
    document = {"document_id": "d", "folder_id": "f", "occurred_at": "2025-01-02T00:00:00Z", "text": "A text."}
    deletion = {"type": "document_deleted", "document_id": "d", "folder_id": "f", "occurred_at": "2025-01-03T00:00:00Z"}
    result = runner.invoke(app, ["import", "documents", "-"], input=f"{json.dumps(document)}\n{json.dumps(deletion)}\n")
    assert result.exit_code == 0, result.output
    upserted, deleted = values(settings, Topic.DOCUMENTS)
    assert DocumentUpserted.model_validate_json(upserted).text == "A text."
    assert DocumentDeleted.model_validate_json(deleted).document_id == "d"


def test_a_request_is_sent_followed_and_cancelled_from_the_command_line(
    settings: Settings, publisher: Publisher, runner: CliRunner
) -> None:
    options = ["--request-id", "r-1", "--folder", "a", "--folder", "b", "--start", "2025-01-02", "--epochs", "5"]
    result = runner.invoke(app, ["request", "m", *options, "--trainable-layers", "all", "--focus", "0.5"])
    assert (result.exit_code, result.stdout) == (0, "r-1\n")
    [value] = values(settings, Topic.FINE_TUNE_REQUESTS)
    request = FineTuneRequested.model_validate_json(value)
    assert request.data.folders == ("a", "b")
    assert (request.training.epochs, request.training.trainable_layers, request.weights.focus) == (5, "all", 0.5)
    publish_statuses(publisher, "r-1", State.ACCEPTED)
    assert runner.invoke(app, ["cancel", "r-1"]).exit_code == 0
    assert FineTuneCancelled.model_validate_json(values(settings, Topic.FINE_TUNE_REQUESTS)[-1]).model == "m"
    publish_statuses(publisher, "r-1", State.FAILED)
    assert runner.invoke(app, ["cancel", "r-1"]).stdout == "r-1 has ended already: failed\n"
    assert "r-1" in runner.invoke(app, ["status"]).stdout
    lines = runner.invoke(app, ["status", "r-1", "--json"]).stdout.splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["accepted", "failed"]
    assert runner.invoke(app, ["status", "r-9"]).exit_code == 2
    waited = runner.invoke(app, ["request", "m", *options, "--wait", "--timeout", "60"])
    assert (waited.exit_code, "failed" in waited.stdout) == (1, True)


def test_topics_create(variables: dict[str, str], runner: CliRunner) -> None:
    names = runner.invoke(app, ["topics", "create"]).stdout.split()
    prefix = variables["FOLDTUNE_KAFKA__TOPIC_PREFIX"]
    assert names == [topic.named(prefix) for topic in Topic]
