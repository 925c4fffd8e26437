"""Segments, folding and bounds, against a model that is a dictionary and a sort."""

import asyncio
import random
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from infra.settings import SetLimits
from streams.durable_table import MemoryTable
from streams.events import (
    ChatLog,
    DocumentDeleted,
    DocumentUpserted,
    ErasureRequested,
    Feedback,
    Rating,
    Verdict,
)
from streams.fold import FolderSet, JudgedLog, fold
from streams.records import DataEvent, Record, Source
from streams.segments import Segment, pack, unpack
from streams.topics import Topic
from streams.training_sets import TrainingSets

START = datetime(2026, 1, 1, tzinfo=UTC)
FOREVER = SetLimits(max_age=timedelta(days=3650), max_examples=10_000)
TOPICS: dict[type, Topic] = {
    ChatLog: Topic.CHAT_LOGS,
    Feedback: Topic.FEEDBACK,
    DocumentUpserted: Topic.DOCUMENTS,
    DocumentDeleted: Topic.DOCUMENTS,
    ErasureRequested: Topic.ERASURES,
}

names = st.sampled_from(["a", "b", "c", "d"])
moments = st.integers(0, 20).map(lambda days: START + timedelta(days=days))
verdicts = st.builds(Verdict, rating=st.sampled_from(Rating))
events: st.SearchStrategy[DataEvent] = st.one_of(
    st.builds(
        ChatLog,
        log_id=names,
        occurred_at=moments,
        agent_id=st.just("agent"),
        user_id=st.none() | names,
        conversation_id=st.none() | names,
        question=st.sampled_from(["how?", "why?"]),
        folder_id=st.sampled_from(["f", "g"]),
        cited_document_ids=st.tuples(names) | st.just(()),
        feedback=st.none() | verdicts,
    ),
    st.builds(
        Feedback,
        feedback_id=names,
        occurred_at=moments,
        log_id=names,
        folder_id=st.sampled_from(["f", "g"]),
        verdict=verdicts,
    ),
    st.builds(
        DocumentUpserted,
        document_id=names,
        occurred_at=moments,
        folder_id=st.sampled_from(["f", "g"]),
        text=st.sampled_from(["x", "y", "z"]),
    ),
    st.builds(DocumentDeleted, document_id=names, occurred_at=moments, folder_id=st.sampled_from(["f", "g"])),
    st.builds(
        ErasureRequested,
        erasure_id=names,
        occurred_at=moments,
        subject=st.sampled_from(["user", "log", "conversation", "document"]),
        subject_id=names,
    ),
)


def as_records(history: list[DataEvent]) -> list[Record]:
    offsets = dict.fromkeys(Topic, 0)
    records = []
    for event in history:
        topic = TOPICS[type(event)]
        records.append(Record(Source(topic, offsets[topic]), event))
        offsets[topic] += 1
    return records


def reference(folder_id: str, history: list[DataEvent], limits: SetLimits, as_of: datetime) -> FolderSet:
    """The same as ``fold``, said in another way: by sorting the whole history and letting the last one win."""
    records = sorted(as_records(history), key=lambda record: (record.event.occurred_at, record.source.offset))
    logs, verdicts_by_log, documents = {}, {}, {}
    erasures = [event for event in history if isinstance(event, ErasureRequested)]

    def erased(subject: str, name: str | None, moment: datetime) -> bool:
        return any(e.subject == subject and e.subject_id == name and moment <= e.occurred_at for e in erasures)

    for record in records:
        event = record.event
        if isinstance(event, ErasureRequested) or event.folder_id != folder_id:
            continue
        match event:
            case ChatLog():
                logs[event.log_id] = event
            case Feedback():
                verdicts_by_log[event.log_id] = event
            case DocumentUpserted() | DocumentDeleted():
                documents[event.document_id] = event
    kept = [
        (log, newest_verdict(log, verdicts_by_log.get(log.log_id)))
        for log in sorted(logs.values(), key=lambda log: (log.occurred_at, log.log_id))
        if log.occurred_at >= as_of - limits.max_age
        and not erased("user", log.user_id, log.occurred_at)
        and not erased("log", log.log_id, log.occurred_at)
        and not erased("conversation", log.conversation_id, log.occurred_at)
    ]
    found = fold(folder_id, (), (), limits, as_of)
    return FolderSet(
        folder_id=found.folder_id,
        logs=tuple(JudgedLog(log, verdict) for log, verdict in kept[-limits.max_examples :]),
        documents=tuple(
            document
            for _, document in sorted(documents.items())
            if isinstance(document, DocumentUpserted)
            and not erased("document", document.document_id, document.occurred_at)
        ),
    )


def newest_verdict(log: ChatLog, said: Feedback | None) -> Verdict | None:
    late_enough = said is not None and said.occurred_at >= log.occurred_at - timedelta(days=1)
    return said.verdict if said is not None and late_enough else log.feedback


async def take_in(sets: TrainingSets, records: list[Record], seed: int, *, replays: bool) -> None:
    """Deliver records block by block; with ``replays``, stretches come again, cut at other borders."""
    chooser = random.Random(seed)
    position = 0
    while position < len(records):
        size = chooser.randint(1, 5)
        await sets.add(0, records[position : position + size])
        position += size
        if replays and chooser.random() < 0.4:
            position = max(0, position - chooser.randint(1, 6))


@given(history=st.lists(events, max_size=40), seed=st.integers(0, 1000), limit=st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_the_fold_is_a_function_of_the_input_alone(history: list[DataEvent], seed: int, limit: int) -> None:
    limits = SetLimits(max_age=timedelta(days=15), max_examples=limit)
    as_of = START + timedelta(days=20)
    straight, disturbed = TrainingSets(MemoryTable(), limits), TrainingSets(MemoryTable(), limits)
    records = as_records(history)
    asyncio.run(take_in(straight, records, seed, replays=False))
    asyncio.run(take_in(disturbed, records, seed + 1, replays=True))
    for folder_id in ("f", "g"):
        expected = reference(folder_id, history, limits, as_of)
        assert straight.view(0).folder(folder_id, as_of) == expected
        assert disturbed.view(0).folder(folder_id, as_of) == expected
        # What was kept in memory must be what the keys alone tell.
        disturbed.forget()
        assert disturbed.view(0).folder(folder_id, as_of) == expected


@given(history=st.lists(events, max_size=40), limit=st.integers(1, 4), days=st.integers(0, 30))
@settings(max_examples=150, deadline=None)
def test_eviction_takes_only_what_no_fold_needs(history: list[DataEvent], limit: int, days: int) -> None:
    history = [event for event in history if not isinstance(event, ErasureRequested)]
    limits = SetLimits(max_age=timedelta(days=12), max_examples=limit)
    moment = START + timedelta(days=days)
    sets = TrainingSets(MemoryTable(), limits)
    asyncio.run(take_in(sets, as_records(history), 1, replays=True))
    before = {folder_id: sets.view(0).folder(folder_id, moment) for folder_id in ("f", "g")}
    asyncio.run(sets.evict(0, moment))
    assert {folder_id: sets.view(0).folder(folder_id, moment).logs for folder_id in before} == {
        folder_id: found.logs for folder_id, found in before.items()
    }


def test_eviction_makes_room() -> None:
    limits = SetLimits(max_age=timedelta(days=1), max_examples=1000)
    sets = TrainingSets(MemoryTable(), limits)
    logs = [_log(str(hour), START + timedelta(hours=hour)) for hour in range(48)]
    for record in as_records(list(logs)):
        asyncio.run(sets.add(0, [record]))
    gone = asyncio.run(sets.evict(0, START + timedelta(hours=48)))
    assert gone == 24
    assert len(sets.view(0).segments["f"]) == 24


def test_labelled_logs_are_counted_from_an_offset_on() -> None:
    sets = TrainingSets(MemoryTable(), FOREVER)
    logs: list[DataEvent] = [_log(str(number), START, cited=number % 2 == 0) for number in range(10)]
    records = as_records(logs)
    asyncio.run(sets.add(0, records[:4]))
    asyncio.run(sets.add(0, records[4:]))
    assert sets.labelled_since(0, 0, None) == 5
    assert sets.labelled_since(0, 4, None) == 3
    assert sets.labelled_since(0, 0, ["other"]) == 0


@given(folder=st.text(min_size=1, max_size=256))
def test_a_key_says_what_its_segment_is(folder: str) -> None:
    log = _log("l", START).model_copy(update={"folder_id": folder})
    ((segment, content),) = pack([Record(Source(Topic.CHAT_LOGS, 12, 3), log)])
    assert Segment.of_key(segment.key) == segment
    assert list(unpack(segment, content)) == [Record(Source(Topic.CHAT_LOGS, 12, 3), log)]


def test_the_words_of_the_answer_are_not_kept() -> None:
    log = _log("l", START).model_copy(update={"answer": "a secret"})
    ((_, content),) = pack([Record(Source(Topic.CHAT_LOGS, 0), log)])
    assert b"secret" not in content


def _log(log_id: str, at: datetime, *, cited: bool = True) -> ChatLog:
    return ChatLog(
        log_id=log_id,
        occurred_at=at,
        agent_id="a",
        question="how?",
        folder_id="f",
        cited_document_ids=("d",) if cited else (),
    )
