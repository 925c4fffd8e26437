"""The stream worker against a real broker and a real object store."""

import hashlib
import io
import json
import signal
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from foldtune.client.client import FoldtuneClient
from foldtune.dead_letters import ERROR_HEADER, OFFSET_HEADER, TOPIC_HEADER
from foldtune.events import (
    FineTuneCancelled,
    FineTuneStatus,
    FolderStats,
    ModelReviewed,
    RetrainingPolicy,
    SnapshotCommand,
    SnapshotManifest,
    SnapshotPart,
    State,
    TrainingJob,
    now,
)
from foldtune.kafka import Publisher, partition_of
from foldtune.knobs import DataSelection
from foldtune.object_store import S3ObjectStore
from foldtune.policy import Rule
from foldtune.settings import PolicySettings, Settings
from foldtune.snapshot_schema import Label
from foldtune.topics import DATA_TOPICS, Topic, review_key
from tests.histories import WEIGHTS, history
from tests.integration.conftest import StartWorker
from tests.recount import Recount, Selection
from tests.running_api import previewed, running_api
from tests.support import Reader, fine_tune_request, folder_history
from trainers.model.base_models import packaged_minilm, packaged_minilm_folder

# Of the made history: logs are days from it, and some far beyond.
MAX_AGE = timedelta(days=30)
# Chosen to lie on three different partitions of four; nothing else about the names matters to the system.
FOLDERS = ("../../etc", "🗂️ plans/2026", "epsilon")


def publish_history(publisher: Publisher, folder_id: str, count: int) -> None:
    for topic, event in folder_history(folder_id, count):
        publisher.send(topic, event, key=folder_id)
    publisher.flush()


def publish_request(publisher: Publisher, request: Any) -> None:
    publisher.publish(Topic.FINE_TUNE_REQUESTS, request, key=request.model)


def statuses(records: list[Any], request_id: str) -> list[FineTuneStatus]:
    found = [FineTuneStatus.model_validate_json(record.value) for record in records if "status" in record.topic]
    return [status for status in found if status.request_id == request_id]


def jobs(records: list[Any]) -> list[TrainingJob]:
    return [TrainingJob.model_validate_json(record.value) for record in records if "training-jobs" in record.topic]


def ended(request_id: str) -> Any:
    return lambda records: any(status.state.terminal for status in statuses(records, request_id))


def snapshot(settings: Settings, job: TrainingJob) -> SnapshotManifest:
    store = S3ObjectStore(settings.s3)
    content = store.get(store.key(job.snapshot_uri))
    assert hashlib.sha256(content).hexdigest() == job.snapshot_sha256
    return SnapshotManifest.model_validate_json(content)


def exported(settings: Settings, manifest: SnapshotManifest, kind: str) -> list[dict[str, Any]]:
    store = S3ObjectStore(settings.s3)
    rows: list[dict[str, Any]] = []
    for part in manifest.parts:
        file = getattr(part, kind)
        content = store.get(store.key(file.uri))
        assert hashlib.sha256(content).hexdigest() == file.sha256
        rows += pq.read_table(io.BytesIO(content)).to_pylist()
    return rows


def test_the_folders_are_on_different_partitions() -> None:
    assert len({partition_of(folder, 4) for folder in FOLDERS}) == 3


def test_two_workers_export_one_exact_snapshot_of_three_folders(
    settings: Settings, variables: dict[str, str], publisher: Publisher, start_worker: StartWorker, tmp_path: Path
) -> None:
    bounds = {
        "FOLDTUNE_WORKER__STATS_INTERVAL": "PT1S",
        "FOLDTUNE_SETS__MAX_AGE": f"P{MAX_AGE.days}D",
        "FOLDTUNE_STRENGTHS__RETRIEVED": f"{WEIGHTS.retrieved}",
        "FOLDTUNE_STRENGTHS__RETRIEVED_MIN_SCORE": f"{WEIGHTS.retrieved_min_score}",
    }
    start_worker("one", **bounds)
    start_worker("two", **bounds)
    made = publish_made_history(publisher)
    for folder in (*FOLDERS, "not asked for"):
        publish_history(publisher, folder, 25)
    request = fine_tune_request("r1", data=DataSelection(folders=FOLDERS))
    review = ModelReviewed(model=request.model, version="000001", approved=False, by="ann", at=now())
    publisher.publish(Topic.REVIEWS, review, key=review_key(request.model, "000001", approved=False))
    publish_request(publisher, request)
    with Reader(settings, Topic.TRAINING_JOBS, Topic.FINE_TUNE_STATUS) as reader:
        (job,) = jobs(reader.until(lambda records: bool(jobs(records))))
    assert (job.rejected_versions, job.warnings) == (("000001",), ())
    manifest = snapshot(settings, job)
    examples = exported(settings, manifest, "examples")
    assert Counter(row["folder_id"] for row in examples) == dict.fromkeys(FOLDERS, 25)
    assert len({row["log_id"] for row in examples}) == 75
    assert Counter(row["folder_id"] for row in exported(settings, manifest, "documents")) == dict.fromkeys(FOLDERS, 25)
    assert len(manifest.parts) == 4
    assert sum(one.offset for part in manifest.parts for one in part.offsets) == 200 + made
    with Reader(settings, Topic.FOLDER_STATS) as reader:
        expected = dict.fromkeys((*FOLDERS, "not asked for"), 25)
        reader.until(lambda records: expected.items() <= counted(records).items())
        # Beside them, how old they are: by the brokers' time, of every partition.
        reader.until(lambda records: {record.partition for record in records if record.key == b""} == set(range(4)))

    base = {"BASE_MODEL": packaged_minilm().model_dump_json(), "MODEL_FOLDERS": f'["{packaged_minilm_folder()}"]'}
    trainer = {f"FOLDTUNE_TRAINER__{name}": value for name, value in base.items()}
    with running_api(variables | trainer | {"FOLDTUNE_API__MINE_PREVIEWS": "true"}, tmp_path) as api:
        # What both answer to a preview of the same selection is what they have exported.
        preview = previewed(api, data={"folders": FOLDERS})
        assert preview["mined"]["state"] == "pending"
        assert preview["complete"]
        assert preview["labels"] == Counter(row["label"] for row in examples)
        assert preview["documents"] == len(exported(settings, manifest, "documents"))
        assert {count["folder_id"]: count["examples"] for count in preview["folders"]} == dict.fromkeys(FOLDERS, 25)
        assert len(preview["questions"]) == 10
        assert {
            shown["text"]
            for found in preview["questions"]
            for example in found["examples"]
            for shown in example["shown"]
        }
        check_against_the_topics(settings, api, made)
        deadline = time.monotonic() + 120
        while (mined := get_json(f"{api}/previews/{preview['preview_id']}/mined")[1])["state"] == "pending":
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert (mined["state"], mined["reason"]) == ("ready", None)
    assert {example["question"] for example in mined["examples"]} == {one["question"] for one in preview["questions"]}
    candidates = [candidate for example in mined["examples"] for candidate in example["candidates"]]
    assert {candidate["folder_id"] for candidate in candidates} <= set(FOLDERS)
    assert {"negative", "near_positive_by_words"} <= {candidate["reason"] for candidate in candidates}


def publish_made_history(publisher: Publisher) -> int:
    """Three folders with every label and every reason; how many records."""
    moment = now()
    events: list[Any] = [json.loads(msgspec.json.encode(event)) for event in history(0, moment)]
    # A verdict that is taken back, and one that names a document of another folder.
    for number, verdict in ((1, {"rating": None}), (2, {"correct_document_id": "d2", "correct_folder_id": "h"})):
        feedback = {"type": "feedback", "feedback_id": f"x{number}", "log_id": f"l{number}", "folder_id": "f"}
        events.append(feedback | {"occurred_at": moment.isoformat(), "verdict": verdict})
    for event in events:
        value = json.dumps(event).encode()
        if event["type"] == "erasure_requested":
            publisher.broadcast_raw(Topic.ERASURES, value)
        else:
            topic = {"chat_log": Topic.CHAT_LOGS, "feedback": Topic.FEEDBACK}.get(event["type"], Topic.DOCUMENTS)
            publisher.send_raw(topic, value, key=event["folder_id"])
    publisher.flush()
    # Those to each of the four partitions.
    return len(events) + 3 * [event["type"] for event in events].count("erasure_requested")


def check_against_the_topics(settings: Settings, api: str, made: int) -> None:
    """Figures of folders and previews are what an independent count of all records on the topics finds."""
    with Reader(settings, *DATA_TOPICS) as reader:
        records = reader.until(lambda records: len(records) == 200 + made)
    recount = Recount(records, MAX_AGE, WEIGHTS.retrieved_min_score)
    with Reader(settings, Topic.FOLDER_STATS) as reader:
        reader.until(lambda found: all(figures_cover(records, found, folder) for folder in ("f", "g", "h")))
        figures = newest_figures(reader.records)
    seen = Counter[str]()
    for folder in sorted(recount.folders):
        stats = figures[folder]
        exact = recount.counts([folder], stats.at)
        by_day = Counter({(str(day.day), name): count for day in stats.days for name, count in day.labels.items()})
        for name in ("logs", "cited", "cited_first", "liked", "disliked"):
            by_day.update({(str(day.day), name): getattr(day, name) for day in stats.days})
        assert +by_day == +exact.days
        assert {(each.agent_id, name): n for each in stats.agents for name, n in each.labels.items()} == exact.agents
        assert (stats.labels, stats.left_out) == (exact.labels, +exact.left_out)
        assert (stats.examples, stats.documents) == (exact.examples, exact.documents)
        assert stats.newest_log_at == exact.newest_log_at
        _, listed = get_json(f"{api}/folders/{urllib.parse.quote(folder, safe='')}")
        assert (listed["labels"], listed["left_out"]) == (exact.labels, +exact.left_out)
        assert (listed["examples"], listed["documents"]) == (exact.examples, exact.documents)
        seen += exact.labels + exact.left_out
    days = Selection(start=now() - timedelta(days=6), end=now() - timedelta(days=2))
    for folders, selection in (
        (None, Selection()),
        (["f", "g"], Selection(agents=["a", "c"])),
        (["f", "h"], days),
    ):
        asked = {"folders": folders, "agents": selection.agents, "start": selection.start, "end": selection.end}
        preview = previewed(api, data={name: value for name, value in asked.items() if value is not None})
        exact = recount.counts(folders or recount.folders, datetime.fromisoformat(preview["at"]), selection)
        assert preview["complete"]
        assert (preview["labels"], preview["left_out"]) == (exact.labels, +exact.left_out)
        assert preview["ignored"] == +exact.ignored
        assert (preview["examples"], preview["documents"]) == (exact.examples, exact.documents)
        assert preview["training"]["pairs"] == len(exact.pairs)
        seen += exact.left_out + exact.ignored
    assert set(seen) == {
        *(label.value for label in Label),
        *("no label", "document deleted", "older than sets.max_age", "outside the date range", "another agent"),
        "logs replaced by another agent's with the same log_id",
        "verdicts dated more than a day before their log",
    }


def newest_figures(records: list[Any]) -> dict[str, FolderStats]:
    """By folder."""
    found = [FolderStats.model_validate_json(record.value) for record in records if record.key]
    return {stats.folder_id: stats for stats in found}


def figures_cover(data: list[Any], figures: list[Any], folder: str) -> bool:
    """Whether the newest figures of a folder were counted after its last record."""
    stats = newest_figures(figures).get(folder)
    if stats is None:
        return False
    ends = {offset.topic: offset.offset for offset in stats.offsets}
    own = [record for record in data if record.partition == stats.partition]
    return all(
        record.offset < ends[topic.label]
        for topic in DATA_TOPICS
        for record in own
        if record.topic.endswith(topic.label)
    )


def get_json(url: str) -> tuple[int, dict[str, Any]]:
    """An answer of the API, once its view has what is asked for."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310  this machine's own server
                return answer.status, dict(json.load(answer))
        except urllib.error.HTTPError as error:
            if error.code not in {404, 503} or time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def counted(records: list[Any]) -> dict[str, int]:
    """The examples of each folder, in the partition of the folder."""
    stats = [(record.partition, FolderStats.model_validate_json(record.value)) for record in records if record.key]
    assert all(partition == each.partition == partition_of(each.folder_id, 4) for partition, each in stats)
    return {each.folder_id: each.examples for _, each in stats}


def test_no_log_is_lost_by_a_restart_or_a_kill(
    settings: Settings, publisher: Publisher, start_worker: StartWorker
) -> None:
    first = start_worker()
    publish_history(publisher, "alpha", 400)
    publish_request(publisher, fine_tune_request("before"))
    with Reader(settings, Topic.TRAINING_JOBS, Topic.FINE_TUNE_STATUS) as reader:
        reader.until(lambda records: len(jobs(records)) == 1)
        first.send(signal.SIGKILL)
        publish_history(publisher, "beta", 30)
        start_worker()
        publish_request(publisher, fine_tune_request("after", model="other"))
        # The killed worker may have published the first job, and its successor does so again.
        reader.until(lambda records: any(job.request.request_id == "after" for job in jobs(records)))
        (job, *_) = [job for job in jobs(reader.records) if job.request.request_id == "after"]
    examples = exported(settings, snapshot(settings, job), "examples")
    assert Counter(row["folder_id"] for row in examples) == {"alpha": 400, "beta": 30}
    assert len({row["log_id"] for row in examples}) == 430


def test_a_worker_stops_quickly_and_cleanly(
    settings: Settings, publisher: Publisher, start_worker: StartWorker
) -> None:
    worker = start_worker()
    publish_history(publisher, "alpha", 25)
    publish_request(publisher, fine_tune_request("r"))
    with Reader(settings, Topic.TRAINING_JOBS) as reader:
        reader.until(lambda records: bool(jobs(records)))
    assert worker.stop(seconds=20) == 0


def test_a_worker_whose_clock_goes_a_year_ahead_keeps_every_log_ends_no_request_and_does_not_start_again(
    settings: Settings, publisher: Publisher, start_worker: StartWorker, tmp_path: Path
) -> None:
    wrong = {"SKEW_FILE": str(tmp_path / "skew"), "FOLDTUNE_SETS__MAX_AGE": "P30D"}
    first = start_worker(FOLDTUNE_SETS__MAX_AGE="P30D")
    publish_history(publisher, "alpha", 25)
    publish_request(publisher, fine_tune_request("before"))
    with Reader(settings, Topic.TRAINING_JOBS, Topic.FINE_TUNE_STATUS) as reader:
        reader.until(lambda records: len(jobs(records)) == 1)
        first.stop()
        skewed = start_worker("skewed", module="tests.integration.skewed_worker", **wrong)
        deadline = time.monotonic() + 60
        while "requests taken over" not in skewed.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (tmp_path / "skew").touch()
        rounds = 0
        # Once it merges segments, it has looked for old ones, and for overdue requests.
        while "segments maintained" not in skewed.log.read_text():
            rounds += 1
            publish_history(publisher, "beta", 1)
            assert rounds < 600, "nothing was maintained"
            time.sleep(0.1)
        # Refused, had it ended by itself.
        done = FineTuneStatus(request_id="before", model="model", state=State.COMPLETED, at=now())
        publisher.publish(Topic.TRAINING_REPORTS, done, key="before", partition_by="model")
        reader.until(ended("before"))
        ends = {status.state for status in statuses(reader.records, "before") if status.state.terminal}
        assert ends == {State.COMPLETED}
        publish_request(publisher, fine_tune_request("after", model="other"))
        _, job = jobs(reader.until(lambda records: len(jobs(records)) == 2 or ended("after")(records)))
    # Not of next year, also where it is named by its time.
    assert abs(job.published_at - now()) < timedelta(minutes=5)
    examples = exported(settings, snapshot(settings, job), "examples")
    assert Counter(row["folder_id"] for row in examples) == {"alpha": 25, "beta": 1}
    assert "clock differs from the brokers'" in skewed.log.read_text()
    skewed.stop()
    again = start_worker("again", module="tests.integration.skewed_worker", **wrong)
    assert again.wait(60) == 2
    (line,) = [line for line in again.log.read_text().splitlines() if "refusing to start" in line]
    assert f'"clock": "{now().year + 1}-' in line
    assert f'"brokers_clock": "{now().year}-' in line


def test_poison_is_dead_lettered_and_does_not_block(
    settings: Settings, publisher: Publisher, start_worker: StartWorker
) -> None:
    start_worker()
    poison = [b"{nope", b"\xff\xfe\x00", b"[" * 5000, b'{"log_id": 1}', b"x" * 600_000]
    for topic in (Topic.CHAT_LOGS, Topic.DOCUMENTS, Topic.FEEDBACK, Topic.ERASURES):
        for value in poison:
            publisher.send_raw(topic, value, key="alpha")
    publisher.send_raw(Topic.CHAT_LOGS, None, key="alpha")
    for value in (b"{nope", b"{}", b'{"type": "fine_tune_cancelled"}', b'{"model": "m"}'):
        publisher.send_raw(Topic.FINE_TUNE_REQUESTS, value, key="model")
    for command in (b"{nope", b'{"type": "training_finished"}', None):
        publisher.send_raw(Topic.SNAPSHOT_COMMANDS, command, key="any")
    publish_history(publisher, "alpha", 25)
    publish_request(publisher, fine_tune_request("r"))
    with Reader(settings, Topic.TRAINING_JOBS, Topic.FINE_TUNE_STATUS, Topic.DEAD_LETTERS) as reader:
        records = reader.until(lambda records: bool(jobs(records)) and len(dead(records)) == 28)
    letters = dead(records)
    assert Counter(letter.value for letter in letters)[b"x" * 600_000] == 4
    by_topic = Counter(dict(letter.headers)[TOPIC_HEADER].decode().partition("-")[2] for letter in letters)
    assert by_topic == {
        "chat-logs": 6,
        "documents": 5,
        "feedback": 5,
        "erasures": 5,
        "fine-tune-requests": 4,
        "snapshot-commands": 3,
    }
    assert all(dict(letter.headers)[ERROR_HEADER] and dict(letter.headers)[OFFSET_HEADER] for letter in letters)
    assert b"600000 bytes, at most 524288" in {dict(letter.headers)[ERROR_HEADER].split(b": ")[1] for letter in letters}


def dead(records: list[Any]) -> list[Any]:
    return [record for record in records if "dead-letters" in record.topic]


def test_an_impossible_request_is_rejected_with_every_reason(
    settings: Settings, publisher: Publisher, start_worker: StartWorker
) -> None:
    start_worker()
    publish_history(publisher, "alpha", 5)
    good = fine_tune_request("bad-knobs").model_dump_json()
    bad = good.replace('"batch_size":32', '"batch_size":1').replace('"temperature":0.05', '"temperature":0')
    publisher.send_raw(Topic.FINE_TUNE_REQUESTS, bad.encode(), key="model")
    misspelt = good.replace("bad-knobs", "misspelt").replace('"epochs"', '"epoch"')
    publisher.send_raw(Topic.FINE_TUNE_REQUESTS, misspelt.encode(), key="model")
    publisher.flush()
    publish_request(publisher, fine_tune_request("nowhere", data=DataSelection(folders=("alpha", "../../x"))))
    publish_request(publisher, fine_tune_request("too-little"))
    empty = DataSelection(start=now() - timedelta(days=9), end=now() - timedelta(days=8), agents=("nobody",))
    publish_request(publisher, fine_tune_request("empty", data=empty))
    wanted = {
        "bad-knobs": [
            "training.batch_size: Input should be greater than or equal to 2",
            "weights.temperature: Input should be greater than or equal to 0.001",
        ],
        "misspelt": ["training.epoch: unknown field"],
        "nowhere": [
            "data.folders: unknown folder '../../x'",
            "data: 5 examples, at least 20; left out: none",
        ],
        "too-little": ["data: 5 examples, at least 20; left out: none"],
        "empty": [
            "data.agents: no logs of agent 'nobody'",
            "data: 0 examples, at least 20; left out: 5 outside the date range",
        ],
    }
    with Reader(settings, Topic.FINE_TUNE_STATUS, Topic.TRAINING_JOBS) as reader:
        records = reader.until(lambda records: all(ended(name)(records) for name in wanted))
    assert not jobs(records)
    for name, reasons in wanted.items():
        *_, last = statuses(records, name)
        assert (last.state, list(last.reasons)) == (State.REJECTED, reasons)


@pytest.mark.parametrize("again", [pytest.param("while it runs", marks=pytest.mark.matrix), "after its end"])
def test_a_repeated_request_starts_nothing(
    settings: Settings, publisher: Publisher, start_worker: StartWorker, again: str
) -> None:
    start_worker()
    publish_history(publisher, "alpha", 25)
    request = fine_tune_request("r")
    publish_request(publisher, request)
    with Reader(settings, Topic.FINE_TUNE_STATUS, Topic.TRAINING_JOBS) as reader:
        reader.until(lambda records: bool(jobs(records)))
        if again == "after its end":
            cancel = FineTuneCancelled(request_id="r", model="model", requested_at=now(), requested_by="ann")
            publish_request(publisher, cancel)
            reader.until(ended("r"))
            # The trainer did not hear of it in time.
            late = FineTuneStatus(request_id="r", model="model", state=State.COMPLETED, at=now())
            publisher.publish(Topic.TRAINING_REPORTS, late, key="r", partition_by="model")
        before = len(statuses(reader.records, "r"))
        publish_request(publisher, request)
        records = reader.until(lambda records: len(statuses(records, "r")) > before)
        # Another model's request goes through the same worker after it: by then a second job would be there.
        publish_request(publisher, fine_tune_request("next", model="other"))
        records = reader.until(lambda records: len(jobs(records)) == 2)
    assert [job.request.request_id for job in jobs(records)] == ["r", "next"]
    *_, last = statuses(records, "r")
    assert last.state is (State.CANCELLED if again == "after its end" else State.SNAPSHOTTING)


def test_a_command_whose_request_has_ended_since_is_not_exported(
    settings: Settings, publisher: Publisher, start_worker: StartWorker
) -> None:
    start_worker()
    publish_history(publisher, "alpha", 25)
    issued_at = now()
    for name, run_continues in (("shared", True), ("gone", None)):
        end = FineTuneStatus(
            request_id=name, model="model", state=State.CANCELLED, at=issued_at, run_continues=run_continues
        )
        publisher.publish(Topic.FINE_TUNE_STATUS, end, key=f"model/{name}", partition_by="model")
    commands = [
        SnapshotCommand(request=fine_tune_request(name), partition=0, issued_at=at)
        for name, at in (("gone", issued_at), ("shared", issued_at), ("gone", now() + timedelta(minutes=1)))
    ]
    for command in commands:
        publisher.send_raw(Topic.SNAPSHOT_COMMANDS, command.encode(), key=None, partition=0)
    publisher.flush()
    with Reader(settings, Topic.SNAPSHOT_PARTS) as reader:
        records = reader.until(lambda records: len(records) == len(commands))
    parts = [SnapshotPart.model_validate_json(record.value) for record in records]
    assert [(part.request_id, part.error) for part in parts] == [
        ("gone", "the request has ended"),
        ("shared", None),
        # Ended before this command was issued: not the request that it is of.
        ("gone", None),
    ]


def test_the_retraining_policy_publishes_a_request(
    settings: Settings, publisher: Publisher, start_worker: StartWorker
) -> None:
    rules = '[{"model": "auto", "folders": ["alpha", "beta"], "new_examples": 50, "cooldown": "PT1H"}]'
    start_worker(FOLDTUNE_POLICY__RULES=rules, FOLDTUNE_POLICY__INTERVAL="500ms", FOLDTUNE_WORKER__STATS_INTERVAL="1s")
    publish_history(publisher, "gamma", 60)
    publish_history(publisher, "alpha", 30)
    with Reader(settings, Topic.TRAINING_JOBS, Topic.TRAINING_PROGRESS) as reader:
        reader.until(lambda records: any(b'"new_examples":30' in record.value for record in records))
        assert not jobs(reader.records)
        publish_history(publisher, "beta", 30)
        (job,) = jobs(reader.until(lambda records: bool(jobs(records))))
        done = FineTuneStatus(request_id=job.request.request_id, model="auto", state=State.COMPLETED, at=now())
        publisher.publish(Topic.TRAINING_REPORTS, done, key=done.request_id, partition_by="auto")
        # What it has been trained on is new no more, on every partition.
        reader.until(lambda records: forgotten(records, job.request.request_id) == 4)
    assert job.request.origin == "policy"
    assert snapshot(settings, job).examples == 60
    assert len(jobs(reader.records)) == 1
    with FoldtuneClient(settings) as client:
        # What the settings say is there to read, and each change of the decision.
        assert client.policies()["auto"].rules == settings_of_rules(rules)
        decisions = client.policy_decisions("auto")
        changes = [(each.decision, each.request_id) for each in decisions]
        # It may have been blocked before, until the usable examples were counted.
        assert (changes[0], changes[-1][0]) == (("waiting", None), "waiting")
        assert all(each.rules[0].blocks for each in decisions if each.decision == "blocked")
        (requested,) = [each for each in decisions if each.decision == "requested"]
        assert (requested.request_id, requested.rules[0].conditions[0].figure) == (job.request.request_id, 60)
        # A person's policy goes before the settings', and is heard of at once.
        client.set_policy(
            RetrainingPolicy(model="auto", at=now(), by="ann", rules=(Rule(name="mine", new_examples=7),))
        )
        poll_until(lambda: client.policy_decisions("auto")[-1].rules[0].rule == "mine")


def settings_of_rules(rules: str) -> tuple[Rule, ...]:
    return PolicySettings.model_validate({"rules": json.loads(rules)}).rules_of("auto")


def poll_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def forgotten(records: list[Any], request_id: str) -> int:
    told = [record.value for record in records if "training-progress" in record.topic]
    return sum(
        f'"trained_request_id":"{request_id}"'.encode() in value and b'"new_examples":0' in value for value in told
    )


@pytest.mark.matrix
def test_another_app_id_leaves_what_has_ended_as_it_was(
    settings: Settings, publisher: Publisher, start_worker: StartWorker
) -> None:
    first = start_worker("one")
    publish_history(publisher, "alpha", 25)
    publish_request(publisher, fine_tune_request("done", model="a"))
    publish_request(publisher, fine_tune_request("bad", model="b", data=DataSelection(folders=("nowhere",))))
    publish_request(publisher, fine_tune_request("gone", model="c"))
    cancel = FineTuneCancelled(request_id="gone", model="c", requested_at=now())
    publisher.publish(Topic.FINE_TUNE_REQUESTS, cancel, key="c")
    completed = FineTuneStatus(request_id="done", model="a", state=State.COMPLETED, at=now())
    with Reader(settings, Topic.TRAINING_JOBS, Topic.FINE_TUNE_STATUS) as reader:
        reader.until(lambda records: any(job.request.request_id == "done" for job in jobs(records)))
        publisher.publish(Topic.TRAINING_REPORTS, completed, key="a/done", partition_by="a")
        names = ("done", "bad", "gone")
        records = reader.until(lambda records: all(ended(name)(records) for name in names))
        ends = {name: statuses(records, name)[-1] for name in names}
        job = next(job for job in jobs(records) if job.request.request_id == "done")
        before, told = len(jobs(records)), len(records)
        manifest = snapshot(settings, job)
        # Side by side: the sets are built, and no request is taken.
        more = {"FOLDTUNE_WORKER__APP_ID": f"{settings.worker.app_id}-next"}
        second = start_worker("two", **more, FOLDTUNE_WORKER__HANDLE_REQUESTS="false")
        publish_request(publisher, fine_tune_request("beside", model="d", data=DataSelection(folders=("nowhere",))))
        records = reader.until(ended("beside"))
        others = [status for status in statuses_after(records, told) if status.request_id != "beside"]
        # The last end may come once more, under the key for earlier SDKs.
        assert all(status in ends.values() for status in others)
        for worker in (first, second):
            worker.stop()
        start_worker("two", **more)
        publish_request(publisher, fine_tune_request("next", model="e"))
        counts = {name: len(statuses(records, name)) for name in names}
        records = reader.until(lambda records: len(jobs(records)) > before)
        # Each is read again, and answered with its end.
        records = reader.until(lambda records: all(len(statuses(records, name)) > counts[name] for name in names))
    assert [job.request.request_id for job in jobs(records)[before:]] == ["next"]
    for name, end in ends.items():
        assert {status for status in statuses(records, name) if status.state.terminal} == {end}
    assert snapshot(settings, job) == manifest


def statuses_after(records: list[Any], first: int) -> list[FineTuneStatus]:
    return [FineTuneStatus.model_validate_json(record.value) for record in records[first:] if "status" in record.topic]
