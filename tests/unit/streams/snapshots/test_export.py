"""The files of an export, and that the same state gives the same bytes."""

import asyncio
import io
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pyarrow.parquet as pq
import pytest
from msgspec import structs

from foldtune.events import FineTuneRequested, SnapshotCommand, SnapshotPart, TopicOffset
from foldtune.knobs import DataSelection
from foldtune.settings import LabelWeights, Sets
from foldtune.snapshot_schema import DOCUMENTS, EXAMPLES
from foldtune.testing import MemoryObjectStore
from foldtune.topics import Topic
from streams.snapshots.export import export
from streams.snapshots.export_child import SAMPLE_DOCUMENTS, SAMPLE_QUESTIONS
from streams.training_sets.state_events import (
    ChatLog,
    DocumentDeleted,
    DocumentUpserted,
    ErasureRequested,
    Feedback,
    RetrievedPassage,
    StateEvent,
    StateRecord,
    Verdict,
)
from streams.training_sets.store import TrainingSets
from tests.memory_table import MemoryTable

T = TypeVar("T")
NOW = datetime(2026, 1, 10, tzinfo=UTC)


def records() -> dict[Topic, list[StateRecord]]:
    logs = [
        ChatLog(
            log_id=f"l{number}",
            occurred_at=NOW - timedelta(hours=number),
            agent_id="a" if number % 2 else "b",
            question=f"question {number}?",
            folder_id="../../x" if number < 5 else "🗂️ b/c",
            retrieved=(
                RetrievedPassage(document_id="d1", folder_id="../../x", rank=1),
                RetrievedPassage(document_id="d2", folder_id="elsewhere", rank=2, text="carried"),
            ),
            cited_document_ids=("d1",),
            feedback=Verdict(rating="dislike") if number == 3 else None,
        )
        for number in range(8)
    ]
    documents = [
        DocumentUpserted(
            document_id=f"d{number}", folder_id="../../x", occurred_at=NOW, title="t", text=f"words {number}"
        )
        for number in range(3)
    ]
    return {
        Topic.CHAT_LOGS: [StateRecord(offset, 0, log, 100) for offset, log in enumerate(logs)],
        Topic.DOCUMENTS: [StateRecord(offset, 0, document, 100) for offset, document in enumerate(documents)],
    }


def call_here(function: Callable[[], T]) -> T:
    """Call in this process."""
    return function()


def run(
    data: DataSelection,
    store: MemoryObjectStore,
    *,
    block: int = 100,
    end: int = 8,
    more: Sequence[tuple[Topic, StateRecord]] = (),
) -> SnapshotPart:
    sets = TrainingSets(MemoryTable(), Sets())
    for topic, record in more:
        asyncio.run(sets.add(0, topic, [record]))
    for topic, of_topic in records().items():
        for start in range(0, len(of_topic), block):
            asyncio.run(sets.add(0, topic, of_topic[start : start + block]))
    request = FineTuneRequested(request_id="r", model="m", requested_at=NOW, data=data)
    command = SnapshotCommand(request=request, partition=0, issued_at=NOW)
    offsets = (TopicOffset(topic="chat-logs", partition=0, offset=end),)
    with TemporaryDirectory() as folder:
        return export(command, sets.view(0), offsets, store, LabelWeights(), call=call_here, folder=Path(folder))


def rows(part: SnapshotPart, store: MemoryObjectStore) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    assert part.examples
    assert part.documents
    examples = pq.read_table(io.BytesIO(store.get(store.key(part.examples.uri))))
    documents = pq.read_table(io.BytesIO(store.get(store.key(part.documents.uri))))
    assert examples.schema.equals(EXAMPLES)
    assert documents.schema.equals(DOCUMENTS)
    return examples.to_pylist(), documents.to_pylist()


def test_everything_is_exported_by_default() -> None:
    store = MemoryObjectStore()
    part = run(DataSelection(), store)
    examples, documents = rows(part, store)
    assert [row["log_id"] for row in examples] == ["l4", "l3", "l2", "l1", "l0", "l7", "l6", "l5"]
    assert [row["document_id"] for row in documents] == ["d0", "d1", "d2"]
    assert examples[0]["positive"] == {"folder_id": "../../x", "document_id": "d1", "text": None}
    assert examples[0]["negatives"] == [{"folder_id": "elsewhere", "document_id": "d2", "text": "carried"}]
    disliked = examples[1]
    assert (disliked["label"], disliked["positive"], disliked["strength"]) == ("disliked", None, 0.0)
    assert (part.folder_count, part.positives, part.folders) == (2, 7, ())


def test_the_selection_is_applied_and_left_out_logs_are_counted() -> None:
    store = MemoryObjectStore()
    start = NOW - timedelta(hours=4)
    data = DataSelection(start=start, end=NOW, folders=("../../x",), agents=("a", "nobody"))
    part = run(data, store)
    examples, _ = rows(part, store)
    assert [row["log_id"] for row in examples] == ["l3", "l1"]
    assert part.left_out == {"another agent": 2, "outside the date range": 1}
    assert part.agents == ("a",)
    assert [(count.folder_id, count.examples, count.documents) for count in part.folders] == [("../../x", 1, 3)]


def other_rows(part: SnapshotPart, store: MemoryObjectStore) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return rows(part.model_copy(update={"examples": part.other_examples, "documents": part.other_documents}), store)


def log(number: int, folder_id: str = "other", cited: str = "o0", **fields: Any) -> tuple[Topic, StateRecord]:
    passage = RetrievedPassage(document_id=cited, folder_id=folder_id, rank=1)
    event = ChatLog(
        log_id=f"o{number}",
        occurred_at=NOW - timedelta(minutes=number),
        agent_id="c",
        question=f"what of {number}?",
        folder_id=folder_id,
        retrieved=(passage,),
        cited_document_ids=(cited,),
        **fields,
    )
    return Topic.CHAT_LOGS, StateRecord(100 + number, 0, event, 100)


def document(number: int, folder_id: str = "other", text: str = "words") -> tuple[Topic, StateRecord]:
    event = DocumentUpserted(document_id=f"o{number}", folder_id=folder_id, occurred_at=NOW, title="", text=text)
    return Topic.DOCUMENTS, StateRecord(100 + number, 0, event, 100)


OTHER = [*(log(number) for number in range(220)), *(document(number) for number in range(450))]
# All of it came after the logs of the selected folder.
ONE_FOLDER = DataSelection(folders=("../../x",), end=NOW - timedelta(hours=2), agents=("a",))


def test_a_sample_of_the_folders_that_are_not_selected_comes_with_the_snapshot() -> None:
    store = MemoryObjectStore()
    part = run(ONE_FOLDER, store, more=OTHER, end=1_000)
    examples, documents = other_rows(part, store)
    of_other = [row for row in examples if row["folder_id"] == "other"]
    # Whatever dates and agents the request selects.
    assert len(of_other) == SAMPLE_QUESTIONS
    assert all(row["positive"] and not row["negatives"] for row in examples)
    assert len(documents) == SAMPLE_DOCUMENTS
    assert "o0" in {row["document_id"] for row in documents}
    # The selected folder is not in it, and the sample nowhere else.
    assert {row["folder_id"] for row in examples} == {"other", "🗂️ b/c"}
    assert {row["folder_id"] for row in rows(part, store)[0]} == {"../../x"}
    assert [count.folder_id for count in part.folders] == ["../../x"]
    assert part.folder_count == 1
    again = run(ONE_FOLDER, MemoryObjectStore(), more=OTHER, end=1_000)
    assert (again.other_examples, again.other_documents) == (part.other_examples, part.other_documents)


def test_a_request_of_all_folders_and_a_partition_without_others_have_no_sample() -> None:
    store = MemoryObjectStore()
    for data in (DataSelection(), DataSelection(folders=("../../x", "🗂️ b/c"))):
        part = run(data, store)
        assert (part.other_examples, part.other_documents) == (None, None)
    assert not [key for key in store.list("") if "other" in key]


def test_erasures_deletions_and_verdicts_hold_in_the_sample() -> None:
    disliked = [log(number, cited="o3", feedback=Verdict(rating="dislike")) for number in (60, 61)]
    deleted = Topic.DOCUMENTS, StateRecord(500, 0, DocumentDeleted("o2", "other", NOW + timedelta(minutes=1)), 100)
    of_deleted = log(62, cited="o2")
    erased = Topic.ERASURES, StateRecord(0, 0, ErasureRequested("e", NOW, "log", "o5"), 100)
    store = MemoryObjectStore()
    logs = [log(number) for number in range(9)]
    more = [erased, *logs, *disliked, of_deleted, document(0), document(2), document(3), deleted]
    examples, documents = other_rows(run(ONE_FOLDER, store, more=more, end=1_000), store)
    ids = {row["log_id"] for row in examples if row["folder_id"] == "other"}
    assert ids == {f"o{number}" for number in range(9)} - {"o5"}
    assert {row["document_id"] for row in documents} == {"o0", "o3"}


def test_the_sample_is_bounded_in_folders_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryObjectStore()
    many = [event for number in range(40) for event in (log(number, f"f{number}"), document(number, f"f{number}"))]
    examples, _ = other_rows(run(ONE_FOLDER, store, more=many, end=1_000), store)
    assert len({row["folder_id"] for row in examples}) == 32
    large = [log(0), document(0, text="x" * 600_000), document(1, text="y" * 600_000)]
    _, documents = other_rows(run(ONE_FOLDER, store, more=large, end=1_000), store)
    assert [row["document_id"] for row in documents] == ["o0"]
    monkeypatch.setattr("streams.snapshots.export._OTHER_BYTES", 1)
    assert run(ONE_FOLDER, store, more=large, end=1_000).other_examples is None


def test_the_same_state_gives_the_same_bytes_however_it_was_ingested() -> None:
    one, other = MemoryObjectStore(), MemoryObjectStore()
    first, second = run(DataSelection(), one), run(DataSelection(), other, block=3)
    assert (first.examples, first.documents) == (second.examples, second.documents)
    assert one.list("") == other.list("")


def test_no_id_of_an_event_becomes_part_of_a_key() -> None:
    store = MemoryObjectStore()
    run(DataSelection(), store)
    assert all(".." not in key and "🗂️" not in key and " " not in key for key in store.list(""))


def test_records_above_the_recorded_offsets_are_left_out() -> None:
    store = MemoryObjectStore()
    examples, documents = rows(run(DataSelection(), store, end=6), store)
    assert {row["log_id"] for row in examples} == {"l0", "l1", "l2", "l3", "l4", "l5"}
    assert len(documents) == 3


X, LATER = "../../x", NOW + timedelta(seconds=1)
DELETED = DocumentDeleted("d1", X, LATER)
AGAIN = DocumentUpserted("d1", X, LATER + timedelta(seconds=1), "new words")
ERASED = ErasureRequested("e", LATER, "document", "d1")
# Carries the text of a document of the folder elsewhere, whether that was ever published or not.
CARRYING = ChatLog(
    log_id="c",
    occurred_at=NOW,
    agent_id="a",
    question="why?",
    folder_id=X,
    retrieved=(RetrievedPassage("d1", X, 1, text="words"), RetrievedPassage("d9", X, 2, text="never published")),
    cited_document_ids=("d1",),
)


@pytest.mark.parametrize(
    ("events", "left_out", "kept"),
    [
        ([DELETED], 6, ["l7", "l6", "l5"]),
        ([AGAIN], 0, None),
        ([DELETED, AGAIN], 0, None),
        ([ERASED], 6, ["l7", "l6", "l5"]),
        ([ERASED, AGAIN], 0, None),
        ([DELETED, ERASED, AGAIN], 0, None),
        # Of another folder, and of one without a verdict on it.
        ([DocumentDeleted("d1", "elsewhere", LATER)], 0, None),
        ([DocumentDeleted("d0", X, LATER)], 0, None),
    ],
)
def test_examples_of_a_deleted_document_are_left_out_in_whatever_order_it_comes(
    events: list[StateEvent], left_out: int, kept: list[str] | None
) -> None:
    arrivals = [
        (
            Topic.ERASURES if isinstance(event, ErasureRequested) else Topic.DOCUMENTS,
            StateRecord(10 + at, 0, event, 100),
        )
        for at, event in enumerate(events)
    ]
    arrivals.append((Topic.CHAT_LOGS, StateRecord(6, 0, CARRYING, 100)))
    for order in permutations(arrivals):
        store = MemoryObjectStore()
        part = run(DataSelection(), store, more=order)
        examples, documents = rows(part, store)
        assert part.left_out == ({"document deleted": left_out} if left_out else {})
        assert part.positives == (3 if left_out else 8)
        if kept is not None:
            assert [row["log_id"] for row in examples] == kept
            assert "d1" not in {row["document_id"] for row in documents}


def test_verdicts_of_a_clock_that_is_days_behind_are_counted_of_the_selected_logs() -> None:
    dislike, hours = Verdict(rating="dislike"), timedelta(hours=1)
    feedback = [
        # Of a log from two hours ago, and of one from four: dates differ by a little more than a day, and by less.
        Feedback("b", NOW - 27 * hours, "l2", X, dislike),
        Feedback("c", NOW - 27 * hours, "l4", X, dislike),
        # Replaced by one that counts; and of no log.
        Feedback("d", NOW - 50 * hours, "l1", X, dislike),
        Feedback("e", NOW, "l1", X, dislike),
        Feedback("f", NOW - 50 * hours, "none", X, dislike),
    ]
    more = [(Topic.FEEDBACK, StateRecord(at, 0, event, 100)) for at, event in enumerate(feedback)]
    store = MemoryObjectStore()
    part = run(DataSelection(), store, more=more)
    assert part.ignored == {"verdicts dated more than a day before their log": 1}
    labels = {row["log_id"]: row["label"] for row in rows(part, store)[0]}
    assert (labels["l1"], labels["l2"], labels["l4"]) == ("disliked", "cited", "disliked")
    assert run(DataSelection(agents=("a",)), store, more=more).ignored == {}
    assert run(DataSelection(), store).ignored == {}


def test_logs_that_another_agents_with_the_same_id_replaced_are_counted_by_selected_folder() -> None:
    (topic, of_c), store = log(0, X), MemoryObjectStore()
    assert isinstance(of_c.event, ChatLog)
    of_b = structs.replace(
        of_c, offset=200, event=structs.replace(of_c.event, agent_id="b", occurred_at=NOW + timedelta(1))
    )
    more = [(topic, of_c), (topic, of_b)]
    part = run(DataSelection(), store, more=more, end=1_000)
    assert part.ignored == {"logs replaced by another agent's with the same log_id": 1}
    assert "o0" in {row["log_id"] for row in rows(part, store)[0]}
    assert run(DataSelection(folders=("🗂️ b/c",)), store, more=more, end=1_000).ignored == {}


def test_a_deleted_document_is_no_negative_and_one_that_was_never_published_is() -> None:
    store = MemoryObjectStore()
    log = structs.replace(CARRYING, cited_document_ids=("d9",))
    arrivals = [(Topic.DOCUMENTS, StateRecord(10, 0, DELETED, 100)), (Topic.CHAT_LOGS, StateRecord(6, 0, log, 100))]
    examples, _ = rows(run(DataSelection(), store, more=arrivals), store)
    (row,) = [row for row in examples if row["log_id"] == "c"]
    assert row["positive"] == {"folder_id": X, "document_id": "d9", "text": "never published"}
    assert row["negatives"] == []


def test_logs_that_were_too_old_when_they_arrived_are_counted_even_if_the_folder_has_nothing_else(
    tmp_path: Path,
) -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    asyncio.run(sets.count_too_old(0, {"f": [3, 4, 4], "g": [5]}))
    asyncio.run(sets.count_too_old(0, {"f": [3, 4, 4, 7]}))
    for folders, counts in (
        (("f",), {"older than sets.max_age": 4}),
        (("f", "g"), {"older than sets.max_age": 5}),
        (("h",), {}),
    ):
        request = FineTuneRequested(request_id="r", model="m", requested_at=NOW, data=DataSelection(folders=folders))
        command = SnapshotCommand(request=request, partition=0, issued_at=NOW)
        part = export(command, sets.view(0), (), MemoryObjectStore(), LabelWeights(), call=call_here, folder=tmp_path)
        assert part.left_out == counts
