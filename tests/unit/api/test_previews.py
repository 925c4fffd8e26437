"""``/previews``: the answers of several workers together, against an export and a training's choice of negatives."""

import asyncio
import io
import json
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.context import Services
from api.mining import Miner
from api.previews import drawn_questions, explain
from api.routes import previews as routes
from api.view.previews import PreviewBoard, Waiting
from api.view.system import SystemView
from foldtune.errors import InvalidSettingsError
from foldtune.events import (
    DocumentReference,
    Event,
    FineTuneRequested,
    Preview,
    PreviewLog,
    PreviewRequested,
    SnapshotCommand,
    now,
)
from foldtune.knobs import DataSelection, DatasetKnobs, TrainingKnobs
from foldtune.pairs import HELD_OUT_SHARE, question_hash, sampling_order
from foldtune.settings import Sets, Settings
from foldtune.testing import FakeClock, MemoryObjectStore
from foldtune.texts import normalize_question
from foldtune.topics import Topic
from streams.publishing.publisher import EventPublisher as WorkerPublisher
from streams.publishing.publisher import outgoing_records
from streams.snapshots.export import export
from streams.snapshots.preview_handler import PreviewHandler
from streams.training_sets.state_events import DocumentUpserted, RetrievedPassage, StateEvent, StateRecord, Verdict
from streams.training_sets.store import TrainingSets
from tests.histories import NOW, TOPICS, WEIGHTS, call_here, history, log
from tests.memory_table import MemoryTable
from trainers.data.dataset import Dataset, build_dataset, split
from trainers.data.near_duplicates import WordSets
from trainers.data.negatives import CandidateDecision, NegativeSampler

from .conftest import MemoryPublisher, Record, bearer, client_of

LIMITS = Sets(max_age=timedelta(days=30))
PARTITIONS = {"f": 0, "g": 1, "h": 1}
_RULES = {
    CandidateDecision.NEGATIVE: "negative",
    CandidateDecision.KNOWN_POSITIVE: "known_positive",
    CandidateDecision.NEAR_POSITIVE_BY_WORDS: "near_positive_by_words",
}


class Workers:
    """The owners of two partitions, who answer to the API's view at once."""

    def __init__(self, view: SystemView) -> None:
        self.sets = TrainingSets(MemoryTable(), LIMITS)
        self.asked: list[PreviewRequested] = []
        self.silent: set[int] = set()
        self._view = view
        publisher = mock.create_autospec(WorkerPublisher, instance=True)
        publisher.publish.side_effect = self._publish
        settings = Settings(strengths=WEIGHTS, sets=LIMITS)
        self._handler = PreviewHandler(self.sets, publisher, settings, call_here, now=FakeClock(NOW))

    def add(self, *events: StateEvent) -> None:
        records: dict[tuple[int, Topic], list[StateRecord]] = defaultdict(list)
        for offset, event in enumerate(events):
            folder = getattr(event, "folder_id", None)
            for partition in {PARTITIONS[folder]} if folder else {0, 1}:
                records[partition, TOPICS[type(event)]].append(StateRecord(offset, 0, event, 100))
        for (partition, topic), of_topic in records.items():
            asyncio.run(self.sets.add(partition, topic, of_topic))

    async def hear(self, event: PreviewRequested) -> None:
        self.asked.append(event)
        for partition in {0, 1} - self.silent:
            await self._handler.answer(event, partition, 0)

    async def _publish(self, events: Any, partition: int) -> tuple[()]:
        for record in outgoing_records(events, partition):
            self._view._previews.apply(Record(record.value.encode()))
        return ()

    def exported(self, data: DataSelection, folder: Path) -> tuple[list[Any], pa.Table, pa.Table]:
        """The parts of an export, its examples and its documents."""
        store = MemoryObjectStore()
        request = FineTuneRequested(request_id="r", model="m", requested_at=NOW, data=data)
        parts = [
            export(
                SnapshotCommand(request=request, partition=partition, issued_at=NOW),
                self.sets.view(partition),
                (),
                store,
                WEIGHTS,
                call=call_here,
                folder=folder,
            )
            for partition in (0, 1)
        ]

        def read(files: list[Any]) -> pa.Table:
            return pa.concat_tables(pq.read_table(io.BytesIO(store.get(store.key(file.uri)))) for file in files)

        return parts, read([part.examples for part in parts]), read([part.documents for part in parts])


@pytest.fixture
def workers(view: SystemView, publisher: MemoryPublisher, monkeypatch: pytest.MonkeyPatch) -> Workers:
    monkeypatch.setattr(SystemView, "previews", view._previews)
    workers, plain = Workers(view), publisher.broadcast

    async def broadcast(topic: Topic, event: Event, partitions: int) -> None:
        await plain(topic, event, partitions)
        if isinstance(event, PreviewRequested):
            await workers.hear(event)

    monkeypatch.setattr(publisher, "broadcast", broadcast)
    return workers


def shown_history(seed: int) -> Iterator[StateEvent]:
    """Questions that are asked several times and in several folders, and answers from documents of all of them."""
    draw = random.Random(seed)
    texts = {}
    for folder in PARTITIONS:
        for number in range(8):
            words = draw.sample(
                ["rates", "plans", "call", "costs", "minute", "monthly", "free", "line", "number", "port"],
                draw.randrange(2, 6),
            )
            texts[folder, f"{folder if number < 6 else 'shared'}{number}"] = " ".join(words)
    for (folder, document), text in texts.items():
        yield DocumentUpserted(document, folder, NOW - timedelta(days=9), text)
    for number in range(150):
        folder = draw.choice(list(PARTITIONS))
        shown = [
            RetrievedPassage(
                document_id=document,
                folder_id=of,
                rank=rank,
                text=draw.choice([None, None, texts[of, document], "of another text now"]),
            )
            for rank, (of, document) in enumerate(draw.sample(list(texts), 5), start=1)
        ]
        if draw.random() < 0.3:
            # No document has it: the log's own text, perhaps that of another passage, or none at all.
            carried = draw.choice([None, "only in logs", shown[0].text])
            name = "gone" if carried else "lost"
            shown.append(RetrievedPassage(document_id=name, folder_id=folder, rank=6, text=carried))
        cited = [passage.document_id for passage in draw.sample(shown, draw.choice([1, 1, 2]))]
        verdict = draw.choice(
            [
                *[None] * 4,
                Verdict(rating="like"),
                Verdict(rating="dislike"),
                Verdict(correct_document_id=draw.choice(["f1", "g2", "shared7", "nobodys"])),
            ]
        )
        yield log(
            number,
            folder,
            question=f"what of {draw.randrange(14)}{draw.choice(['', '?'])}",
            retrieved=tuple(shown),
            cited_document_ids=tuple(cited),
            feedback=verdict,
        )


def negatives_of(dataset: Dataset, question: int, knobs: DatasetKnobs) -> dict[str, dict[str, tuple[str, float, bool]]]:
    """For each right passage of a question what a training decides on each impression: reason, Jaccard, and use."""
    rows = np.flatnonzero(dataset.question == question)
    sets = WordSets.of(dataset.passages)
    sampler = NegativeSampler(dataset, rows, sets, knobs)
    impressions = sampler._impressions(dataset.question[rows])
    decisions = sampler._decide(impressions)
    found = {}
    for row, candidates, decided in zip(rows, impressions, decisions, strict=True):
        negative = decided == CandidateDecision.NEGATIVE
        taken = negative & (np.cumsum(negative) <= knobs.hard_negatives)
        jaccard = sets.jaccard(np.full_like(candidates, dataset.positive[row]), candidates)
        found[dataset.passages[dataset.positive[row]]] = {
            dataset.passages[candidate]: (_RULES[CandidateDecision(rule)], round(float(near), 9), bool(use))
            for candidate, rule, near, use in zip(candidates, decided, jaccard, taken, strict=True)
        }
    return found


@pytest.mark.parametrize(("seed", "threshold", "hard"), [(0, 0.5, 2), (1, 0.25, 4), (2, 0.5, 0)])
def test_the_questions_of_a_preview_are_as_a_training_pairs_them(  # noqa: PLR0917  fixtures and cases
    client: TestClient, workers: Workers, tmp_path: Path, seed: int, threshold: float, hard: int
) -> None:
    """Over all partitions, with documents and texts of other ones: positives, impressions, and each decision."""
    workers.add(*shown_history(seed))
    knobs = DatasetKnobs(exclusion_threshold=threshold, hard_negatives=hard)
    _, examples, documents = workers.exported(DataSelection(), tmp_path)
    dataset = build_dataset(examples, documents)
    index = {normalize_question(question): number for number, question in enumerate(dataset.questions)}
    body = {"model": "support", "dataset": {"exclusion_threshold": threshold, "hard_negatives": hard}}
    found = client.post("/previews", json=body).json()
    assert found["cut"] == 0
    rows = examples.to_pylist()
    answered = {normalize_question(row["question"]) for row in rows if row["positive"]}
    assert [normalize_question(item["question"]) for item in found["questions"]] == sorted(
        answered, key=sampling_order
    )[:10]
    reasons, left_out = set(), Counter[str]()
    for item in found["questions"]:
        shown = {
            example["positive"]["text"]: {
                passage["text"]: (passage["reason"], round(passage["jaccard"], 9), passage["taken"])
                for passage in example["shown"]
                if passage["reason"] in _RULES.values()
            }
            for example in item["examples"]
        }
        assert shown == negatives_of(dataset, index[normalize_question(item["question"])], knobs)
        assert item["held_out"] == (question_hash(item["question"]) < HELD_OUT_SHARE)
        reasons |= {passage["reason"] for example in item["examples"] for passage in example["shown"]}
        left_out.update(item["left_out"])
    assert {*_RULES.values(), "text_changed", "no_text", "cited"} <= reasons
    assert {"repeated_pair", "disliked_without_positive", "text_changed"} <= set(left_out)


@pytest.mark.parametrize(
    "data", [{}, {"folders": ["f", "h", "nobodys"]}, {"agents": ["a", "c"], "end": "2026-05-31T00:00:00Z"}]
)
def test_the_counts_of_a_preview_are_those_of_an_export(
    client: TestClient, workers: Workers, tmp_path: Path, data: dict[str, Any]
) -> None:
    workers.add(*history(0))
    asyncio.run(workers.sets.count_too_old(0, {"f": [1, 2]}))
    parts, examples, documents = workers.exported(DataSelection.model_validate_json(json.dumps(data)), tmp_path)
    found = client.post("/previews", json={"model": "support", "data": data}).json()
    assert found["labels"] == Counter(examples.column("label").to_pylist())
    assert found["left_out"] == +sum((Counter(part.left_out) for part in parts), Counter())
    assert found["ignored"] == +sum((Counter(part.ignored) for part in parts), Counter())
    assert found["examples"] == sum(part.positives for part in parts)
    assert found["documents"] == documents.num_rows
    assert found["folder_count"] == sum(part.folder_count for part in parts)
    named = {folder["folder_id"]: folder["examples"] for folder in found["folders"]}
    assert named == {count.folder_id: count.examples for part in parts for count in part.folders}
    assert (found["complete"], found["missing"], found["failed"]) == (True, [], [])
    assert found["texts_missing"] == []


def test_steps_are_about_those_of_the_training(client: TestClient, workers: Workers, tmp_path: Path) -> None:
    workers.add(
        *(DocumentUpserted(f"d{number}", "f", NOW, f"text {number}") for number in range(9)),
        *(log(number, "f", question=f"w{number} x{number} y{number}", cited=f"d{number % 9}") for number in range(400)),
    )
    _, examples, documents = workers.exported(DataSelection(), tmp_path)
    parts = split(build_dataset(examples, documents))
    found = client.post("/previews", json={"model": "m", "training": {"epochs": 2, "batch_size": 8}}).json()["training"]
    assert (found["pairs"], found["held_out"], found["validation"]) == (400, 80, 32)
    assert found["examples"] == pytest.approx(len(parts.train), rel=0.1)
    assert found["steps"] == TrainingKnobs(epochs=2, batch_size=8).steps(found["examples"]) == 72


def test_without_the_role_privacy_no_question_is_asked_for_and_nothing_audited(
    services: Services, workers: Workers, publisher: MemoryPublisher
) -> None:
    workers.add(*history(0))
    body = {"model": "support", "data": {"folders": ["f"]}}
    found = client_of(services, "requester").post("/previews", json=body).json()
    assert found["questions"] is None
    assert found["examples"]
    assert [asked.questions for asked in workers.asked] == [0]
    assert not publisher.audited
    found = client_of(services, "anybody").post("/previews", json=body).json()
    assert len(found["questions"]) == 10
    (entry,) = publisher.audited
    assert (entry.who, entry.action, entry.target, entry.folders) == (
        "anybody",
        "preview.read",
        found["preview_id"],
        ("f",),
    )


def test_the_role_privacy_alone_reads_a_sample_of_a_folder_and_only_of_those_granted(
    services: Services, workers: Workers, publisher: MemoryPublisher
) -> None:
    workers.add(*history(0))
    client, body = client_of(services, "privacy"), {"model": "support", "data": {"folders": ["f"]}}
    assert len(client.post("/previews", json=body).json()["questions"]) == 10
    assert [entry.action for entry in publisher.audited] == ["preview.read"]
    assert client.post("/requests", json=body).status_code == 403


def test_a_grant_for_folders_previews_these_alone(client: TestClient, workers: Workers) -> None:
    workers.add(*history(0))
    headers = bearer("of-handbook")
    for folders, code in ((["handbook"], 200), (["handbook", "f"], 403), (None, 403)):
        body = {"model": "support", "data": {"folders": folders} if folders else {}}
        assert client.post("/previews", json=body, headers=headers).status_code == code
    assert client.post("/previews", json={"model": "sales"}, headers=bearer("of-support")).status_code == 403


def test_partitions_that_do_not_answer_are_named(
    client: TestClient, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Waiting, "wait", lambda self, _: asyncio.wait_for(asyncio.sleep(0, self.answers), 1))
    workers.add(*history(0))
    workers.silent = {1}
    found = client.post("/previews", json={"model": "support"}).json()
    assert (found["complete"], found["missing"], found["folder_count"]) == (False, [1], 1)
    assert found["texts_missing"] == [1]
    workers.silent = {0, 1}
    answer = client.post("/previews", json={"model": "support"})
    assert answer.status_code == 503
    assert answer.json()["errors"] == ["no worker has answered within 18 s"]


def test_why_a_partition_cannot_be_counted_is_told_without_users_words(
    services: Services, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(_: int) -> None:
        PreviewLog.model_validate({"question": ["What does Ada earn?"]})

    monkeypatch.setattr("streams.snapshots.preview_child.finish", finish)
    found = client_of(services, "requester").post("/previews", json={"model": "support"}).json()
    assert [failed["partition"] for failed in found["failed"]] == [0, 1]
    assert "question: " in found["failed"][0]["error"]
    assert "Ada" not in str(found)


def test_a_partition_that_cannot_be_counted_says_why(
    client: TestClient, workers: Workers, view: SystemView, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hear(event: PreviewRequested) -> None:
        for partition, error in ((0, None), (1, "OSError: the export process was killed")):
            answer = Preview(preview_id=event.preview_id, partition=partition, at=now(), positives=3, error=error)
            view._previews.apply(Record(answer.encode()))

    monkeypatch.setattr(workers, "hear", hear)
    found = client.post("/previews", json={"model": "support"}).json()
    assert (found["complete"], found["examples"]) == (False, 3)
    assert found["failed"] == [{"partition": 1, "error": "OSError: the export process was killed"}]


ECHO = """
import json, sys
asked = json.load(sys.stdin)
shown = {"folder_id": None, "document_id": None, "score": 0.5, "jaccard": 0.1, "reason": "negative", "taken": True}
examples = [
    {"question": row["question"], "positive": "p", "score": 0.9, "candidates": [shown | {"text": document["text"]}]}
    for row in asked["examples"] if row["positive"]
    for document in asked["documents"]
]
print(json.dumps({"documents": len(asked["documents"]), "examples": examples}))
"""


def mined(client: TestClient, preview: dict[str, Any], caller: str = "privacy") -> dict[str, Any]:
    """What was mined for a preview, once that has ended."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        answer = client.get(f"/previews/{preview['preview_id']}/mined", headers=bearer(caller))
        if answer.status_code != 200 or answer.json()["state"] != "pending":
            return dict(answer.json())
        time.sleep(0.01)
    raise TimeoutError


def test_mined_negatives_follow_where_the_settings_say_so(
    services: Services, workers: Workers, publisher: MemoryPublisher
) -> None:
    workers.add(
        *shown_history(0), DocumentUpserted("near", "g", NOW, "what of 3"), DocumentUpserted("x", "g", NOW, "far")
    )
    miner = Miner(enabled=True, command=(sys.executable, "-c", ECHO))
    with client_of(replace(services, miner=miner), "anybody") as client:
        preview = client.post("/previews", json={"model": "support", "data": {"folders": ["f", "g"]}}).json()
        assert preview["mined"]["state"] == "pending"
        found = mined(client, preview)
        assert found["state"] == "ready"
        # What was shown, and what has most words in common with the questions.
        texts = {candidate["text"] for example in found["examples"] for candidate in example["candidates"]}
        assert "what of 3" in texts
        assert "far" not in texts
        assert found["documents"] == len(texts)
        assert publisher.audited[-1].who == "privacy"
        assert (publisher.audited[-1].action, publisher.audited[-1].target) == ("preview.read", preview["preview_id"])
        assert mined(client, preview, "of-handbook")["status"] == 404
        assert mined(client, {"preview_id": "another"})["status"] == 404
        # Other epochs leave the negatives as they are, and another threshold does not.
        body = {"model": "support", "data": {"folders": ["f", "g"]}, "training": {"epochs": 9}}
        again = client.post("/previews", json=body).json()
        assert again["mined"] == {"state": "ready", "reason": None} | {
            name: found[name] for name in ("documents", "examples")
        }
        assert mined(client, again) == found
        other = client.post("/previews", json=body | {"dataset": {"exclusion_threshold": 0.9}}).json()
        assert other["mined"]["state"] == "pending"
        # The model of a training is another one than this process has.
        for changes in ({"base_model": {"uri": "hf://org/model"}}, {"training": {"start": "incumbent"}}):
            preview = client.post("/previews", json={"model": "support", **changes}).json()
            assert preview["mined"]["state"] == "by_training"
        preview = client.post("/previews", json={"model": "support"}, headers=bearer("requester")).json()
        assert (preview["mined"]["state"], preview["questions"]) == ("by_training", None)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit(1)", "the process that searches has failed; its log says why"),
        ("""print('{"error": "too little"}')""", "too little"),
        ("import time; time.sleep(60)", "not found within 0 s"),
    ],
)
def test_a_search_that_fails_says_why(
    services: Services, workers: Workers, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    if "sleep" in program:
        monkeypatch.setattr("api.mining._MAX_SECONDS", 0.3)
    workers.add(*shown_history(0))
    miner = Miner(enabled=True, command=(sys.executable, "-c", program))
    with client_of(replace(services, miner=miner), "anybody") as client:
        preview = client.post("/previews", json={"model": "support"}).json()
        found = mined(client, preview)
    assert (found["state"], found["reason"], found["examples"]) == ("failed", reason, [])


def test_without_the_packages_of_the_trainers_no_search_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.mining.find_spec", lambda _: None)
    with pytest.raises(InvalidSettingsError, match=r"api\.mine_previews"):
        Miner(enabled=True)


def test_only_a_few_searches_wait(services: Services, workers: Workers) -> None:
    workers.add(*shown_history(0))
    miner = Miner(enabled=True, command=(sys.executable, "-c", "import time; time.sleep(60)"))
    with client_of(replace(services, miner=miner), "anybody") as client:
        states = [
            client.post("/previews", json={"model": "support", "dataset": {"hard_negatives": number}}).json()["mined"][
                "state"
            ]
            for number in range(5)
        ]
        assert client.portal
        client.portal.call(miner.close)
    assert states == [*["pending"] * 4, "failed"]


def test_no_more_previews_than_there_may_be_are_counted_at_once(
    client: TestClient, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_AT_ONCE", 0)
    answer = client.post("/previews", json={"model": "support"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert not workers.asked


def test_a_preview_has_its_place_before_anything_is_waited_for(
    services: Services, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_AT_ONCE", 2)
    going_on = asyncio.Event()

    async def write(_: object) -> None:
        await going_on.wait()

    monkeypatch.setattr(services.audit, "write", write)

    async def run() -> list[int]:
        transport = httpx2.ASGITransport(create_app(services))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as caller:
            calls = [
                asyncio.create_task(caller.post("/previews", json={"model": "support"}, headers=bearer("anybody")))
                for _ in range(5)
            ]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            going_on.set()
            return sorted(answer.status_code for answer in await asyncio.gather(*calls))

    assert asyncio.run(run()) == [200, 200, 503, 503, 503]
    assert len({event.preview_id for event in workers.asked}) == 2


def test_an_answer_without_the_folder_of_a_positive_is_left_out() -> None:
    logs = tuple(
        PreviewLog(
            log_id=f"{number}",
            occurred_at=NOW,
            folder_id="f",
            agent_id="a",
            question="Why?",
            label="liked",
            strength=1.0,
            positive=DocumentReference(document_id="d", folder_id=folder),
        )
        for number, folder in enumerate((None, "f"))
    )
    drawn = drawn_questions([Preview(preview_id="p", partition=0, at=NOW, logs=logs)], 10)
    assert [[log.log_id for log in question] for question in drawn] == [["1"]]
    assert explain(drawn, [], DatasetKnobs())


def test_answers_that_nobody_waits_for_are_left_alone() -> None:
    board = PreviewBoard()
    answer = Preview(preview_id="p", partition=0, at=now())
    board.apply(Record(answer.encode()))
    with board.expect("p", 2) as waiting:
        # A worker that took over a partition may repeat an answer, and one beyond the topic's partitions is none.
        for partition in (0, 0, 7):
            board.apply(Record(answer.model_copy(update={"partition": partition}).encode()))
        assert list(waiting.answers) == [0]
        assert len(board) == 1
    assert len(board) == 0
    for value in (b"\xff", b"{}", b"[1]"):
        with pytest.raises(ValueError, match=r"."):
            board.apply(Record(value))
