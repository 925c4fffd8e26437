"""Previews: what an export would write, of a partition, in bounded slices and a bounded answer."""

import asyncio
import io
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pyarrow.parquet as pq
import pytest
from structlog.testing import capture_logs

from foldtune.events import (
    MAX_PREVIEW_LOGS,
    MAX_PREVIEW_NEAR,
    DocumentReference,
    FineTuneRequested,
    Preview,
    PreviewRequested,
    SnapshotCommand,
)
from foldtune.knobs import DataSelection
from foldtune.pairs import sampling_order
from foldtune.settings import SetLimits, Sets, Settings
from foldtune.testing import FakeClock, MemoryObjectStore
from foldtune.texts import normalize_question
from foldtune.topics import Topic
from streams.metrics import SKIPPED_PREVIEWS
from streams.publishing.publisher import EventPublisher, OutgoingRecord, outgoing_records
from streams.snapshots import preview_handler
from streams.snapshots.export import export
from streams.snapshots.preview_handler import PreviewHandler
from streams.training_sets.state_events import (
    DocumentDeleted,
    DocumentUpserted,
    RetrievedPassage,
    StateEvent,
    StateRecord,
    Verdict,
)
from streams.training_sets.store import TrainingSets
from tests.histories import NOW, TOPICS, WEIGHTS, call_here, history, log
from tests.memory_table import MemoryTable

T = TypeVar("T")
LIMITS = Sets(max_age=timedelta(days=30))


class Worker:
    """The training sets of two partitions, with what answers previews of them."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.sets = TrainingSets(MemoryTable(), LIMITS)
        self.sent: list[OutgoingRecord] = []
        self.clock = FakeClock(NOW)
        self.sizes: list[int] = []
        self._limit = limit
        publisher = mock.create_autospec(EventPublisher, instance=True)
        publisher.publish.side_effect = self._publish
        settings = Settings(strengths=WEIGHTS, sets=LIMITS)
        self.previews = PreviewHandler(self.sets, publisher, settings, self._call, now=self.clock)

    async def _publish(self, events: Any, partition: int) -> tuple[OutgoingRecord, ...]:
        records = tuple(outgoing_records(events, partition))
        refused = tuple(record for record in records if len(record.value) > self._limit)
        self.sent += [record for record in records if record not in refused]
        return refused

    def _call(self, function: Callable[[], T]) -> T:
        match getattr(function, "args", ()):
            case (int(), [(str(), bytes()), *_] as contents):
                self.sizes.append(len(contents))
            case (int(), [(str(), SetLimits(), _), *_] as folders):
                self.sizes.append(sum(len(contents) for *_, contents in folders))
        return function()

    def add(self, *events: StateEvent, partition: int = 0) -> None:
        by_topic: dict[Topic, list[StateRecord]] = defaultdict(list)
        for offset, event in enumerate(events):
            by_topic[TOPICS[type(event)]].append(StateRecord(offset, 0, event, 100))
        for topic, records in by_topic.items():
            asyncio.run(self.sets.add(partition, topic, records))

    def ask(self, request: PreviewRequested, partition: int = 0, timestamp: int = 0) -> Preview:
        asyncio.run(self.previews.answer(request, partition, timestamp))
        return Preview.model_validate_json(self.sent[-1].value)


def request(questions: int = 0, **data: Any) -> PreviewRequested:
    return PreviewRequested(preview_id="p", data=DataSelection(**data), questions=questions)


def exported(worker: Worker, data: DataSelection, folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The part that an export writes, and its examples."""
    store = MemoryObjectStore()
    asked = FineTuneRequested(request_id="r", model="m", requested_at=NOW, data=data)
    command = SnapshotCommand(request=asked, partition=0, issued_at=NOW)
    part = export(command, worker.sets.view(0), (), store, WEIGHTS, call=call_here, folder=folder)
    assert part.examples
    return part, pq.read_table(io.BytesIO(store.get(store.key(part.examples.uri)))).to_pylist()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"folders": ("g", "nobodys", "f")},
        {"agents": ("a",)},
        {"start": NOW - timedelta(days=6), "end": NOW - timedelta(days=2), "folders": ("h",)},
    ],
)
def test_a_preview_counts_what_an_export_writes(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview_handler, "SEGMENTS_PER_CALL", 2)
    worker, events = Worker(), list(history(0))
    random.Random(0).shuffle(events)
    for start in range(0, len(events), 40):
        worker.add(*events[start : start + 40])
    asyncio.run(worker.sets.count_too_old(0, {"f": [1, 2], "nobodys": [3]}))
    part, rows = exported(worker, DataSelection(**data), tmp_path)
    preview = worker.ask(request(questions=10, **data))
    assert preview.labels == Counter(row["label"] for row in rows)
    assert preview.left_out == part.left_out
    assert preview.ignored == part.ignored
    assert (preview.positives, preview.documents) == (part.positives, part.documents.rows)
    assert (preview.folder_count, set(preview.folders)) == (part.folder_count, set(part.folders))
    # In slices of two segments.
    assert len(worker.sizes) > 3
    assert max(worker.sizes) == 2
    # Of what is drawn, the candidates for negatives are those that the export wrote.
    by_log = {(row["folder_id"], row["log_id"]): row for row in rows}
    answered = {normalize_question(found.question) for found in preview.logs if found.positive}
    assert len(answered) == min(10, len({row["question"] for row in rows if row["positive"]}))
    for found in preview.logs:
        row = by_log[found.folder_id, found.log_id]
        candidates = [passage for passage in found.shown if passage.use == "candidate"]
        assert [(passage.folder_id, passage.document_id, passage.text) for passage in candidates] == [
            (negative["folder_id"], negative["document_id"], negative["text"]) for negative in row["negatives"]
        ]
        assert (found.label, found.question) == (row["label"], row["question"])
        assert (found.positive and found.positive.document_id) == (row["positive"] and row["positive"]["document_id"])


def test_each_passage_that_was_shown_says_what_it_is_for() -> None:
    worker = Worker()
    worker.add(*history(1))
    uses = Counter(passage.use for found in worker.ask(request(questions=10)).logs for passage in found.shown)
    assert set(uses) == {"candidate", "positive", "cited", "deleted", "unjudged"}
    cited = Worker()
    cited.add(log(1, cited_document_ids=("d1", "d2")))
    (found,) = cited.ask(request(questions=1)).logs
    assert [(passage.document_id, passage.use) for passage in found.shown] == [("d1", "positive"), ("d2", "cited")]


def test_the_first_questions_of_two_partitions_are_whole_in_both() -> None:
    """With all logs of each, also of those that have no positive."""
    draw = random.Random(3)
    worker = Worker()
    logs = [
        (
            draw.randrange(2),
            log(
                number,
                question=f"question {draw.randrange(40)}{draw.choice(['', '?'])}",
                feedback=draw.choice([None, Verdict(rating="dislike")]),
            ),
        )
        for number in range(200)
    ]
    for partition in range(2):
        worker.add(*(found for of, found in logs if of == partition), partition=partition)
    answers = [worker.ask(request(questions=5), partition) for partition in range(2)]
    found = [sent for answer in answers for sent in answer.logs]
    assert sum(answer.cut for answer in answers) == 0

    def order(question: str) -> bytes:
        return sampling_order(normalize_question(question))

    answered = {order(item.question) for _, item in logs if item.feedback is None}
    first = sorted(answered)[:5]
    whole = {item.log_id for _, item in logs if order(item.question) in first}
    # What one of the two has more of is beyond the first of both.
    assert {sent.log_id for sent in found if order(sent.question) in first} == whole


def test_without_questions_an_answer_has_no_words_of_users() -> None:
    worker = Worker()
    worker.add(*history(0))
    answer = worker.ask(request())
    assert answer.labels
    assert not answer.logs
    assert "question" not in worker.sent[-1].value


def test_texts_of_documents_are_those_of_the_selection() -> None:
    worker = Worker()
    worker.add(*history(0))
    wanted = tuple(
        DocumentReference(document_id=document, folder_id=folder)
        for folder, document in (("f", "d1"), ("f", "d2"), ("g", "d3"), ("h", "nobodys"), (None, "d0"))
    )
    asked = PreviewRequested(preview_id="p", documents=wanted, data=DataSelection(folders=("f", "g")))
    found = worker.ask(asked).texts
    # d2 was deleted, d3 of folder g erased; d0 without a folder is that of any that is selected.
    assert [(text.folder_id, text.document_id, text.text) for text in found] == [
        ("f", "d0", "text 0"),
        ("f", "d1", "text 1"),
        ("g", "d0", "text 0"),
    ]


def test_texts_near_a_question_are_those_that_have_most_of_its_words() -> None:
    worker = Worker()
    texts = ("what a call costs", "a call", "what it costs", "nothing of that", "costs of lines", "deleted: call costs")
    documents = [DocumentUpserted(f"d{number}", "f", NOW, text) for number, text in enumerate(texts)]
    worker.add(*documents, DocumentDeleted("d5", "f", NOW + timedelta(seconds=1)), log(1))
    near = ({"call": 2.0, "costs": 1.5, "what": 0.1}, {"lines": 1.0})
    answer = worker.ask(PreviewRequested(preview_id="p", near=near))
    # The nearest to each question first.
    assert [text.text for text in answer.texts] == [
        "what a call costs",
        "costs of lines",
        "a call",
        "what it costs",
    ]
    assert (answer.labels, answer.logs, answer.left_out) == ({}, (), {})
    many = Worker()
    many.add(*(DocumentUpserted(f"d{number}", "f", NOW, f"call {number}") for number in range(MAX_PREVIEW_NEAR + 9)))
    assert len(many.ask(PreviewRequested(preview_id="p", near=near)).texts) == MAX_PREVIEW_NEAR
    elsewhere = PreviewRequested(preview_id="p", near=near, data=DataSelection(folders=("g",)))
    assert many.ask(elsewhere).texts == ()


def test_an_answer_fits_into_a_record_whatever_was_logged() -> None:
    worker = Worker()
    shown = tuple(
        RetrievedPassage(document_id=f"d{rank}", folder_id="f", rank=rank, text="\x01" * 4_000) for rank in range(1, 5)
    )
    many = [log(number, question=f"question {number % 3}", retrieved=shown) for number in range(30)]
    names = [f"{number:03d}".rjust(256, "\x01") for number in range(300)]
    documents = [DocumentUpserted("d", name, NOW, "text") for name in names]
    worker.add(*many, *documents)
    answer = worker.ask(request(questions=3, folders=(*names, "f")))
    assert len(worker.sent[-1].value) < Topic.PREVIEWS.max_record_bytes
    # One of each question before a second one of any.
    assert [found.question for found in answer.logs] == ["question 1", "question 0", "question 2", "question 1"]
    assert answer.cut == 30 - len(answer.logs)
    assert len(answer.folders) == 200
    few = Worker()
    few.add(*(log(number, question="question") for number in range(30)))
    answer = few.ask(request(questions=3))
    assert (len(answer.logs), answer.cut) == (MAX_PREVIEW_LOGS, 10)


def test_a_preview_that_nobody_waits_for_is_given_up_and_counted() -> None:
    worker, before = Worker(), SKIPPED_PREVIEWS._value.get()
    worker.add(log(1))
    asked = request()
    late = int((NOW - timedelta(seconds=asked.seconds + 1)).timestamp() * 1000)
    asyncio.run(worker.previews.answer(asked, 0, late))
    # Or meanwhile.
    at = int(NOW.timestamp() * 1000)
    with mock.patch.object(worker.previews, "_call", side_effect=lambda _: worker.clock.advance(timedelta(minutes=1))):
        asyncio.run(worker.previews.answer(asked, 0, at))
    assert not worker.sent
    assert SKIPPED_PREVIEWS._value.get() == before + 2


def test_a_folder_that_is_rewritten_meanwhile_is_read_again() -> None:
    worker = Worker()
    worker.add(log(1), log(2), log(3, "g"))
    plain = worker.previews._send

    def rewritten(view: Any, folder_ids: list[str], *others: Any) -> None:
        if not worker.sizes:
            asyncio.run(worker.sets.replace(0, {}, view.segments["f"]))
            worker.sizes.append(0)
        plain(view, folder_ids, *others)

    with mock.patch.object(worker.previews, "_send", rewritten):
        assert worker.ask(request()).labels == {"cited": 1}


def test_what_fails_is_an_answer() -> None:
    worker = Worker()
    worker.add(log(1))
    killed = mock.patch.object(worker.previews, "_call", side_effect=OSError("the export process was killed"))
    with killed, capture_logs():
        assert worker.ask(request()).error == "OSError: the export process was killed"
    small = Worker(limit=300)
    small.add(log(1))
    answer = small.ask(request(questions=3))
    assert answer.error
    assert "cannot be written" in answer.error
