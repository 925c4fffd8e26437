"""The rolling training sets against a reference of dictionaries and sorting, under every kind of disturbance."""

import asyncio
import random
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from foldtune.settings import Sets
from foldtune.topics import DATA_TOPICS, Topic
from streams.errors import OutdatedViewError, PartitionLostError
from streams.metrics import NOT_KEPT
from streams.partitions.changelog_table import Changes
from streams.partitions.positions import offset_key
from streams.training_sets import compaction, segments
from streams.training_sets.fold import FolderSet, JudgedLog, fold
from streams.training_sets.segments import SEGMENT_PREFIX, Segment, concatenate, pack, unpack
from streams.training_sets.state_events import (
    ChatLog,
    DocumentDeleted,
    DocumentUpserted,
    ErasureRequested,
    Feedback,
    FeedbackTombstone,
    RetrievedPassage,
    StateEvent,
    StateRecord,
    Verdict,
    encode,
)
from streams.training_sets.store import PartitionView, TrainingSets
from tests.examples import examples
from tests.memory_table import MemoryTable

START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(days=20)
FOLDERS = ("f", "g")

names = st.sampled_from(["a", "b", "c", "d", "e"])
moments = st.integers(0, 20).map(lambda days: START + timedelta(days=days))
folders = st.sampled_from(FOLDERS)
verdicts = st.builds(Verdict, rating=st.sampled_from(["like", "dislike"]))
passages = st.builds(
    RetrievedPassage,
    document_id=names,
    folder_id=folders,
    rank=st.just(1),
    text=st.none() | st.sampled_from(["x", "y"]),
)
logs = st.builds(
    ChatLog,
    log_id=names,
    occurred_at=moments,
    agent_id=names,
    user_id=st.none() | names,
    conversation_id=st.none() | names,
    question=st.sampled_from(["how?", "why? " * 100]),
    folder_id=folders,
    retrieved=st.tuples(passages) | st.just(()),
    cited_document_ids=st.tuples(names) | st.just(()),
    feedback=st.none() | verdicts,
)
feedback = st.builds(
    Feedback, feedback_id=names, occurred_at=moments, log_id=names, folder_id=folders, verdict=verdicts
) | st.builds(FeedbackTombstone, log_id=names, occurred_at=moments, folder_id=folders)
documents = st.builds(
    DocumentUpserted, document_id=names, occurred_at=moments, folder_id=folders, text=st.sampled_from(["x", "y", "z"])
) | st.builds(DocumentDeleted, document_id=names, occurred_at=moments, folder_id=folders)
erasures = st.builds(
    ErasureRequested,
    erasure_id=names,
    occurred_at=moments,
    subject=st.sampled_from(["user", "log", "conversation", "agent", "document", "folder"]),
    subject_id=names | folders,
    folder_id=st.none() | folders,
)
inputs = st.one_of(
    st.tuples(st.just(Topic.CHAT_LOGS), logs),
    st.tuples(st.just(Topic.FEEDBACK), feedback),
    st.tuples(st.just(Topic.DOCUMENTS), documents),
    st.tuples(st.just(Topic.ERASURES), erasures),
)
limits = st.builds(
    Sets,
    max_age=st.integers(8, 30).map(lambda days: timedelta(days=days)),
    max_examples=st.integers(1, 6),
    max_bytes=st.integers(600, 4000),
)

Log = dict[Topic, list[StateEvent]]


def reference(folder_id: str, history: Log, bounds: Sets) -> FolderSet:
    """An independent implementation: sort by time, let the last version win, cut off the oldest, erase."""
    requests: list[Any] = history[Topic.ERASURES]

    def erased(subject: str, name: str | None, at: datetime, folder_id: str = folder_id) -> bool:
        return any(
            request.subject == subject
            and request.subject_id == name
            and request.folder_id in {None, folder_id}
            and at <= request.occurred_at
            for request in requests
        )

    def of_folder(topic: Topic) -> list[Any]:
        return [event for event in history[topic] if event.folder_id == folder_id]

    def within(topic: Topic, count: int, oldest: datetime) -> list[Any]:
        # The longest tail in order of time that is within every bound; an entity is as large as its largest version.
        events: list[Any] = [event for event in of_folder(topic) if event.occurred_at >= oldest]
        events.sort(key=lambda event: (event.occurred_at, event.log_id))
        for start in range(len(events)):
            tail = events[start:]
            sizes: dict[str, int] = {}
            for event in tail:
                sizes[event.log_id] = max(size_of(event), sizes.get(event.log_id, 0))
            if len(sizes) <= count and sum(sizes.values()) <= bounds.max_bytes:
                return tail
        return []

    def latest(topic: Topic, name: str) -> dict[str, Any]:
        return {getattr(event, name): event for event in sorted(of_folder(topic), key=lambda event: event.occurred_at)}

    last = {log.log_id: log for log in within(Topic.CHAT_LOGS, bounds.max_examples, END - bounds.max_age)}
    skew = timedelta(days=1)
    feedback = within(Topic.FEEDBACK, 2 * bounds.max_examples, END - bounds.max_age - skew)
    feedback_by_log = {event.log_id: event for event in feedback}
    logs: list[JudgedLog] = []
    for log in sorted(last.values(), key=lambda log: (log.occurred_at, log.log_id)):
        subjects = (
            *(("user", log.user_id), ("log", log.log_id), ("conversation", log.conversation_id)),
            *(("agent", log.agent_id), ("folder", log.folder_id)),
        )
        if any(erased(subject, name, log.occurred_at) for subject, name in subjects):
            continue
        newest = feedback_by_log.get(log.log_id)
        is_verdict = (
            isinstance(newest, Feedback)
            and not erased("log", newest.log_id, newest.occurred_at)
            and not erased("folder", newest.folder_id, newest.occurred_at)
        )
        is_old = newest is not None and newest.occurred_at < log.occurred_at - skew
        verdict = newest.verdict if is_verdict and not is_old and newest is not None else log.feedback
        if isinstance(newest, FeedbackTombstone) and newest.occurred_at >= log.occurred_at:
            verdict = None
        logs.append(JudgedLog(without_texts(log, erased), verdict, is_verdict and is_old))
    newest = [document for _, document in sorted(latest(Topic.DOCUMENTS, "document_id").items())]
    documents = tuple(
        document
        for document in newest
        if isinstance(document, DocumentUpserted)
        and not erased("document", document.document_id, document.occurred_at)
        and not erased("folder", document.folder_id, document.occurred_at)
    )
    deleted = {document.document_id for document in newest} - {document.document_id for document in documents}
    return FolderSet(folder_id, tuple(logs), documents, frozenset(deleted))


def without_texts(log: ChatLog, erased: Any) -> ChatLog:
    def is_erased(passage: RetrievedPassage) -> bool:
        subjects = (("document", passage.document_id), ("folder", passage.folder_id))
        return passage.text is not None and any(
            erased(subject, name, log.occurred_at, passage.folder_id) for subject, name in subjects
        )

    if not any(is_erased(passage) for passage in log.retrieved):
        return log
    retrieved = tuple(
        msgspec.structs.replace(passage, text=None) if is_erased(passage) else passage for passage in log.retrieved
    )
    return msgspec.structs.replace(log, retrieved=retrieved)


def size_of(event: StateEvent) -> int:
    # More than what is stored, as for a log with an answer.
    return 2 * len(encode(event))


def folder_set(view: PartitionView, folder_id: str, as_of: datetime) -> FolderSet:
    """A folder's training set at the time ``as_of``, as an export computes it."""
    records = view.records(view.segments.get(folder_id, ()))
    return fold(folder_id, records, view.erasures(), view.limits.of(folder_id), as_of)


class Changelog:
    """The changelog of a partition, written to by all its workers."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes | None]] = []

    def rebuilt(self) -> dict[bytes, bytes]:
        content: dict[bytes, bytes] = {}
        for key, value in self.records:
            if value is None:
                content.pop(key, None)
            else:
                content[key] = value
        return content


class LocalTable(MemoryTable):
    """One worker's copy; like ``ChangelogTable`` its next write takes over foreign writes."""

    def __init__(self, changelog: Changelog) -> None:
        super().__init__()
        self._changelog = changelog
        self._known = 0
        # Writes this many more records, then the worker is killed, or finds the partition lost.
        self.remaining_writes = 1 << 30

    async def recover(self) -> None:
        await super().write(0, dict(self._changelog.records))
        self._known = len(self._changelog.records)

    async def write(self, partition: int, changes: Changes) -> bool:
        records = self._changelog.records
        alone = self._known == len(records)
        ordered = sorted(changes.items(), key=lambda change: change[1] is None)
        records += ordered[: self.remaining_writes]
        self.remaining_writes -= len(ordered)
        if self.remaining_writes < 0:
            raise PartitionLostError(partition)
        for key, value in records[self._known :]:
            await super().write(0, {key: value})
        self._known = len(records)
        return alone

    def content(self) -> dict[bytes, bytes]:
        return {key: self.get(0, key) or b"" for key in self.keys(0, b"")}


class Worker:
    """An owner of the partition, which starts from the offsets stored in the table."""

    def __init__(self, changelog: Changelog, bounds: Sets) -> None:
        self.table = LocalTable(changelog)
        asyncio.run(self.table.recover())
        self.sets = TrainingSets(self.table, bounds)
        self.next_offsets = {topic: int(self.table.get(0, offset_key(topic)) or 0) for topic in DATA_TOPICS}

    def ingest(self, history: Log, topic: Topic, count: int, *, crash: bool = False) -> None:
        at = self.next_offsets[topic]
        block = [
            StateRecord(at + index, 0, event, size_of(event))
            for index, event in enumerate(history[topic][at : at + count])
        ]
        with mock.patch.object(segments, "_MAX_BYTES", 600):
            asyncio.run(self.sets.add(0, topic, block))
        self.next_offsets[topic] = at + len(block)
        if not crash:
            asyncio.run(self.sets.write(0, {offset_key(topic): str(self.next_offsets[topic]).encode()}))

    def maintain(self, records: int = 1 << 30) -> None:
        """To the end, or until ``records`` records are written."""
        self.table.remaining_writes = records
        with (
            mock.patch.object(compaction, "FAN_IN", 2),
            mock.patch.object(compaction, "_GROWTH_FACTOR", 0),
            mock.patch.object(segments, "_MAX_BYTES", 600),
            suppress(PartitionLostError),
        ):
            asyncio.run(compaction.maintain(self.sets, 0, END))
        self.table.remaining_writes = 1 << 30

    def merge(self) -> None:
        """Merge as the first write, which only then takes over foreign writes."""
        with mock.patch.object(compaction, "FAN_IN", 2):
            asyncio.run(compaction.maintain(self.sets, 0, END))

    def snapshot(self, folder_id: str) -> FolderSet:
        """As an export does: of the records below the next offsets."""
        view = self.sets.view(0)
        ends = {topic.label: offset for topic, offset in self.next_offsets.items()}
        records = [
            record
            for segment in view.segments.get(folder_id, ())
            for record in view.records([segment])
            if record.offset < ends[segment.topic_label]
        ]
        return fold(folder_id, records, view.erasures(), view.limits.of(folder_id), END)


class Disturbances(RuleBasedStateMachine):
    """Blocks cut anywhere, replays, crashes, zombies, eviction, merging and purging, in any order."""

    @initialize(bounds=limits)
    def begin(self, bounds: Sets) -> None:
        self.bounds = bounds
        self.changelog = Changelog()
        self.history: Log = {topic: [] for topic in DATA_TOPICS}
        self.owner = Worker(self.changelog, bounds)
        self.zombies: list[Worker] = []
        # Once a zombie may have written, a stored offset may fall back below what was merged.
        self.zombies_wrote = False
        self.erasures_ingested = 0

    @rule(events=st.lists(inputs, min_size=1, max_size=6))
    def arrive(self, events: list[tuple[Topic, StateEvent]]) -> None:
        for topic, event in events:
            self.history[topic].append(event)

    @rule(topic=st.sampled_from(DATA_TOPICS), count=st.integers(1, 5))
    def ingest(self, topic: Topic, count: int) -> None:
        self.owner.ingest(self.history, topic, count)
        self._note_erasures(topic)

    def _note_erasures(self, topic: Topic) -> None:
        if topic is Topic.ERASURES:
            self.erasures_ingested = max(self.erasures_ingested, self.owner.next_offsets[topic])

    @rule()
    def maintain(self) -> None:
        self.owner.maintain()

    @rule()
    def crash(self) -> None:
        self.owner = Worker(self.changelog, self.bounds)

    @rule(topic=st.sampled_from(DATA_TOPICS), count=st.integers(1, 5))
    def crash_before_the_offset_is_written(self, topic: Topic, count: int) -> None:
        self.owner.ingest(self.history, topic, count, crash=True)
        self._note_erasures(topic)
        self.crash()

    @rule()
    def pause_for_too_long(self) -> None:
        self.zombies = [*self.zombies[-1:], self.owner]
        self.zombies_wrote = True
        self.owner = Worker(self.changelog, self.bounds)

    @rule(topic=st.sampled_from(DATA_TOPICS), count=st.integers(1, 5))
    def zombies_ingest(self, topic: Topic, count: int) -> None:
        for zombie in self.zombies:
            zombie.ingest(self.history, topic, count)

    @rule()
    def zombies_maintain(self) -> None:
        for zombie in self.zombies:
            zombie.maintain()

    @rule(records=st.integers(0, 6))
    def crash_during_maintenance(self, records: int) -> None:
        self.owner.maintain(records)
        self.crash()

    @rule(records=st.integers(0, 6))
    def zombies_end_during_maintenance(self, records: int) -> None:
        for zombie in self.zombies:
            zombie.maintain(records)
        self.zombies = []

    @precondition(lambda self: not self.zombies_wrote)
    @invariant()
    def a_snapshot_ends_at_the_next_offsets(self) -> None:
        history = {topic: events[: self.owner.next_offsets[topic]] for topic, events in self.history.items()}
        # An erasure applies at once, whatever the offsets.
        history[Topic.ERASURES] = self.history[Topic.ERASURES][: self.erasures_ingested]
        for folder_id in FOLDERS:
            assert self.owner.snapshot(folder_id) == reference(folder_id, history, self.bounds)

    @invariant()
    def nothing_is_lost_or_duplicated(self) -> None:
        # A new worker, starting from the stored offsets, ingests everything that arrived.
        heir = Worker(self.changelog, self.bounds)
        before = len(self.changelog.records)
        for topic in DATA_TOPICS:
            while heir.next_offsets[topic] < len(self.history[topic]):
                heir.ingest(self.history, topic, 7)
        for folder_id in FOLDERS:
            expected = reference(folder_id, self.history, self.bounds)
            assert folder_set(heir.sets.view(0), folder_id, END) == expected
            heir.maintain()
            assert folder_set(heir.sets.view(0), folder_id, END) == expected
        assert heir.table.content() == self.changelog.rebuilt()
        del self.changelog.records[before:]

    def teardown(self) -> None:
        if not hasattr(self, "owner"):
            return
        # The owner's next write takes over a zombie's last.
        for topic in DATA_TOPICS:
            while self.owner.next_offsets[topic] < len(self.history[topic]):
                self.owner.ingest(self.history, topic, 7)
        asyncio.run(self.owner.sets.write(0, {b"anything": b""}))
        assert self.owner.table.content() == self.changelog.rebuilt()
        for folder_id in FOLDERS:
            expected = reference(folder_id, self.history, self.bounds)
            assert folder_set(self.owner.sets.view(0), folder_id, END) == expected


Disturbances.TestCase.settings = settings(max_examples=examples(20), stateful_step_count=25, deadline=None)
TestDisturbances = Disturbances.TestCase


def test_merging_bounds_the_number_of_segments() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    for number in range(100):
        add(sets, Topic.CHAT_LOGS, [record(number, log(str(number), START))])
        if number % 10 == 0:
            asyncio.run(compaction.maintain(sets, 0, START))
    asyncio.run(compaction.maintain(sets, 0, START))
    assert len(sets.view(0).segments["f"]) < compaction.FAN_IN
    assert len(folder_set(sets.view(0), "f", START).logs) == 100


def test_merging_drops_old_versions_of_a_document() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    for number in range(compaction.FAN_IN):
        text = f"version {number}"
        document = DocumentUpserted(document_id="d", folder_id="f", occurred_at=START, text=text)
        add(sets, Topic.DOCUMENTS, [record(number, document)])
    asyncio.run(compaction.maintain(sets, 0, START))
    (segment,) = sets.view(0).segments["f"]
    assert segment.record_count == 1


def test_a_corpus_published_repeatedly_stays_within_twice_its_size() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    corpus = [
        DocumentUpserted(document_id=str(number), folder_id="f", occurred_at=START, text="x" * 100)
        for number in range(compaction.SMALL_RECORDS)
    ]
    for again in range(10):
        add(sets, Topic.DOCUMENTS, [record(again * 10_000 + n, document) for n, document in enumerate(corpus)])
        asyncio.run(compaction.maintain(sets, 0, START))
        assert sum(segment.record_count for segment in sets.view(0).segments["f"]) <= 2 * len(corpus)
    assert folder_set(sets.view(0), "f", START).documents == tuple(
        sorted(corpus, key=lambda document: document.document_id)
    )


def test_a_history_imported_in_any_order_stays_within_twice_its_bounds() -> None:
    sets = TrainingSets(MemoryTable(), Sets(max_examples=100))
    events: list[StateEvent] = []
    for number in random.Random(0).sample(range(2_000), 2_000):
        at = START + timedelta(minutes=number)
        verdict = Feedback(
            feedback_id=str(number), occurred_at=at, log_id=str(number), folder_id="f", verdict=Verdict(rating="like")
        )
        events += [log(str(number), at), verdict]
    for start in range(0, len(events), 100):
        block = [record(start + place, event) for place, event in enumerate(events[start : start + 100])]
        for topic, kind in ((Topic.CHAT_LOGS, ChatLog), (Topic.FEEDBACK, Feedback)):
            add(sets, topic, [other for other in block if isinstance(other.event, kind)])
        asyncio.run(compaction.maintain(sets, 0, START))
    segments = sets.view(0).segments["f"]
    assert sum(segment.record_count for segment in segments if segment.topic is Topic.CHAT_LOGS) <= 2 * 100
    assert sum(segment.record_count for segment in segments if segment.topic is Topic.FEEDBACK) <= 2 * 200
    logs = folder_set(sets.view(0), "f", START).logs
    assert [judged.log.log_id for judged in logs] == [str(number) for number in range(1_900, 2_000)]
    assert {judged.verdict.rating for judged in logs if judged.verdict} == {"like"}


def test_a_log_superseded_by_an_erased_one_does_not_come_back() -> None:
    # The newest version of log 1 is erased and exceeds the bound; an older one shares its segment with a retained log.
    sets = TrainingSets(MemoryTable(), Sets(max_examples=2))
    day = timedelta(days=1)
    add(sets, Topic.CHAT_LOGS, [record(0, log("1", START)), record(1, log("3", START + 3 * day))])
    add(sets, Topic.CHAT_LOGS, [record(2, log("1", START + day, user_id="u"))])
    erasure = ErasureRequested(erasure_id="1", occurred_at=START + day, subject="user", subject_id="u")
    add(sets, Topic.ERASURES, [record(0, erasure)])
    with mock.patch.object(compaction, "_GROWTH_FACTOR", 0):
        asyncio.run(compaction.maintain(sets, 0, START + 3 * day))
    assert [judged.log.log_id for judged in folder_set(sets.view(0), "f", START + 3 * day).logs] == ["3"]


@pytest.mark.parametrize("maintained", [False, True])
def test_a_smaller_version_of_a_log_brings_no_older_log_back(maintained: bool) -> None:
    sets = TrainingSets(MemoryTable(), Sets(max_bytes=2_000))
    day = timedelta(days=1)
    large = "x" * 900
    events = [log("old", START), log("1", START + day, question=large), log("new", START + 2 * day)]
    add(sets, Topic.CHAT_LOGS, [record(offset, event) for offset, event in enumerate(events)])
    if maintained:
        with mock.patch.object(compaction, "_GROWTH_FACTOR", 0):
            asyncio.run(compaction.maintain(sets, 0, START))
        # The newest, and the tombstone of the log that exceeded the bound.
        assert [segment.record_count for segment in sets.view(0).segments["f"]] == [2]
    add(sets, Topic.CHAT_LOGS, [record(3, log("1", START + 3 * day))])
    assert [judged.log.log_id for judged in folder_set(sets.view(0), "f", START).logs] == ["new", "1"]


@pytest.mark.parametrize("answer", [0, 600, 1_000, 3_000])
def test_maintenance_terminates(answer: int) -> None:
    # Envelopes, most of whose bytes are answers, which are not stored.
    table = mock.Mock(wraps=MemoryTable())
    sets = TrainingSets(table, Sets())
    for offset in range(60):
        envelope = [
            StateRecord(offset, position, log(f"{offset} {position}", START), size=150 + answer)
            for position in range(100)
        ]
        add(sets, Topic.CHAT_LOGS, envelope)
    while asyncio.run(compaction.maintain(sets, 0, START)) != compaction.MaintenanceCounts():
        assert table.write.call_count < 300
    segments = sets.view(0).segments["f"]
    assert sum(segment.record_count for segment in segments) == 6_000
    assert len(segments) < 6_000 / compaction.SMALL_RECORDS + compaction.FAN_IN


def test_a_compacted_segment_fits_into_a_message() -> None:
    # Each log of an envelope counts with an equal share of its size, far from that of a large log among small ones.
    sets = TrainingSets(MemoryTable(), Sets(max_examples=20))
    for offset in range(30):
        large = StateRecord(offset, 0, log(f"large {offset}", START, question="x" * 200_000), size=300)
        small = [StateRecord(offset, 1 + number, log("the same", START), size=300) for number in range(100)]
        add(sets, Topic.CHAT_LOGS, [large, *small])
    asyncio.run(compaction.maintain(sets, 0, START))
    assert max(segment.size for segment in sets.view(0).segments["f"]) < 512 * 1024
    assert len(folder_set(sets.view(0), "f", START).logs) == 20


def test_a_zombies_compaction_deletes_no_record_that_it_does_not_replace() -> None:
    changelog, day = Changelog(), timedelta(days=1)
    events: Log = {topic: [] for topic in DATA_TOPICS}
    events[Topic.CHAT_LOGS] = [log(str(number), START + number * day) for number in range(3)]
    # A block whose offset was not written, redelivered with other borders: two overlapping segments.
    Worker(changelog, Sets()).ingest(events, Topic.CHAT_LOGS, 2, crash=True)
    Worker(changelog, Sets()).ingest(events, Topic.CHAT_LOGS, 3)
    zombie, owner = Worker(changelog, Sets()), Worker(changelog, Sets())
    owner.maintain()
    owner.maintain()
    zombie.maintain()
    heir = Worker(changelog, Sets())
    assert [judged.log.log_id for judged in folder_set(heir.sets.view(0), "f", END).logs] == ["0", "1", "2"]


def test_erased_content_that_a_zombie_writes_back_is_purged_again() -> None:
    changelog, marker = Changelog(), "unforgettable"
    events: Log = {topic: [] for topic in DATA_TOPICS}
    events[Topic.CHAT_LOGS] = [log(str(number), START, user_id="u", question=marker) for number in range(2)]
    owner = Worker(changelog, Sets())
    for _ in events[Topic.CHAT_LOGS]:
        owner.ingest(events, Topic.CHAT_LOGS, 1)
    zombie, owner = owner, Worker(changelog, Sets())
    events[Topic.ERASURES] = [ErasureRequested(erasure_id="1", occurred_at=START, subject="user", subject_id="u")]
    owner.ingest(events, Topic.ERASURES, 1)
    owner.maintain()
    assert marker.encode() not in b"".join(owner.table.content().values())
    # The zombie merges the segments that it knows, and the owner ends before it takes that over.
    zombie.merge()
    heir = Worker(changelog, Sets())
    assert marker.encode() in b"".join(heir.table.content().values())
    heir.maintain()
    assert marker.encode() not in b"".join(heir.table.content().values())


def test_foreign_writes_during_a_purge_are_purged_by_the_next() -> None:
    changelog, marker = Changelog(), "unforgettable"
    events: Log = {topic: [] for topic in DATA_TOPICS}
    events[Topic.CHAT_LOGS] = [log(str(number), START, user_id="u", question=marker) for number in range(2)]
    events[Topic.ERASURES] = [ErasureRequested(erasure_id="1", occurred_at=START, subject="user", subject_id="u")]
    owner = Worker(changelog, Sets())
    owner.ingest(events, Topic.CHAT_LOGS, 1)
    owner.ingest(events, Topic.CHAT_LOGS, 1)
    zombie, owner = owner, Worker(changelog, Sets())
    owner.ingest(events, Topic.ERASURES, 1)

    def meanwhile(_: int) -> None:
        zombie.merge()
        asyncio.run(owner.sets.write(0, {b"anything": b""}))

    with mock.patch.object(owner.table, "reclaim", side_effect=meanwhile):
        asyncio.run(compaction.maintain(owner.sets, 0, END))
    assert marker.encode() in b"".join(owner.table.content().values())
    owner.maintain()
    assert marker.encode() not in b"".join(owner.table.content().values())


def test_reading_a_rewritten_segment_raises() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    for number in range(compaction.FAN_IN):
        add(sets, Topic.CHAT_LOGS, [record(number, log(str(number), START))])
    view = sets.view(0)
    asyncio.run(compaction.maintain(sets, 0, START))
    with pytest.raises(OutdatedViewError):
        folder_set(view, "f", START)


def test_segments_above_the_stored_offset_are_not_rewritten() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    for number in range(compaction.FAN_IN):
        asyncio.run(sets.add(0, Topic.CHAT_LOGS, [record(number, log("same", START + timedelta(days=number)))]))
    assert asyncio.run(compaction.maintain(sets, 0, START)) == compaction.MaintenanceCounts()
    asyncio.run(sets.write(0, {offset_key(Topic.CHAT_LOGS): b"%d" % compaction.FAN_IN}))
    assert asyncio.run(compaction.maintain(sets, 0, START)).merged == compaction.FAN_IN


@pytest.mark.parametrize("maintained", [False, True])
def test_a_small_log_older_than_a_large_one_that_did_not_fit_is_left_out(maintained: bool) -> None:
    sets = TrainingSets(MemoryTable(), Sets(max_bytes=2_000))
    day = timedelta(days=1)
    add(sets, Topic.CHAT_LOGS, [record(0, log("1", START + day, question="x" * 900))])
    add(sets, Topic.CHAT_LOGS, [record(1, log("new", START + 2 * day))])
    if maintained:
        with mock.patch.object(compaction, "_GROWTH_FACTOR", 0):
            asyncio.run(compaction.maintain(sets, 0, START))
        assert b"xxx" not in b"".join(sets.table.get(0, key) or b"" for key in sets.table.keys(0, SEGMENT_PREFIX))
    add(sets, Topic.CHAT_LOGS, [record(2, log("late", START))])
    assert [judged.log.log_id for judged in folder_set(sets.view(0), "f", START).logs] == ["new"]


def test_expired_segments_are_evicted() -> None:
    sets = TrainingSets(MemoryTable(), Sets(max_age=timedelta(days=1)))
    for hour in range(24 * 5):
        add(sets, Topic.CHAT_LOGS, [record(hour, log(str(hour), START + timedelta(hours=hour)))])
    done = asyncio.run(compaction.maintain(sets, 0, START + timedelta(days=5)))
    # A day of age, and a day of grace for repeated exports.
    assert done.evicted == 24 * 3


def test_logs_beyond_a_bound_are_counted_by_reason_and_older_versions_are_not() -> None:
    def counts() -> list[float]:
        return [NOT_KEPT.labels("chat-logs", reason)._value.get() for reason in ("over_bound", "expired")]

    sets, before = TrainingSets(MemoryTable(), Sets(max_examples=2, max_age=timedelta(days=10))), counts()
    days = [0, 11, 12, 13, 14, 15]
    events = [log(str(day), START + timedelta(days=day)) for day in days] + [log("15", START + timedelta(days=14))]
    add(sets, Topic.CHAT_LOGS, [record(at, event) for at, event in enumerate(events)])
    with mock.patch.object(compaction, "_GROWTH_FACTOR", 0):
        asyncio.run(compaction.maintain(sets, 0, START + timedelta(days=15)))
    assert [after - past for after, past in zip(counts(), before, strict=True)] == [3, 1]


def test_logs_that_another_agents_replaced_are_counted_until_they_are_dropped_and_then_by_the_metric() -> None:
    def dropped() -> float:
        return float(NOT_KEPT.labels("chat-logs", "replaced")._value.get())

    sets, before = TrainingSets(MemoryTable(), Sets(max_examples=3)), dropped()
    events = [
        log("1", START),
        log("2", START),
        log("3", START),
        # Of the same agent; of two others, one of them twice; and beyond the bound.
        log("1", START + timedelta(hours=1)),
        log("2", START + timedelta(hours=2), agent_id="b"),
        log("3", START + timedelta(hours=3), agent_id="c"),
        log("3", START + timedelta(hours=4), agent_id="b"),
        log("3", START + timedelta(hours=4), agent_id="b"),
        log("0", START - timedelta(hours=2)),
        log("0", START - timedelta(hours=1), agent_id="b"),
    ]
    add(sets, Topic.CHAT_LOGS, [record(at, event) for at, event in enumerate(events)])
    assert folder_set(sets.view(0), "f", START).replaced == 3
    with mock.patch.object(compaction, "_GROWTH_FACTOR", 0):
        for _ in range(2):
            asyncio.run(compaction.maintain(sets, 0, START))
            assert dropped() - before == 3
    assert folder_set(sets.view(0), "f", START).replaced == 0


def test_limits_can_be_set_by_folder() -> None:
    bounds = Sets(folders={"f": {"max_examples": 3}})
    sets = TrainingSets(MemoryTable(), bounds)
    for folder_id in FOLDERS:
        records = [record(n, log(f"{folder_id}{n}", START, folder_id=folder_id)) for n in range(10)]
        add(sets, Topic.CHAT_LOGS, records)
    assert [len(folder_set(sets.view(0), folder_id, START).logs) for folder_id in FOLDERS] == [3, 10]


def test_an_erasure_leaves_no_text_in_the_table() -> None:
    table = MemoryTable()
    sets = TrainingSets(table, Sets())
    marker = "unforgettable"
    mine = log("1", START, user_id="u", question=marker)
    other = log("2", START, user_id="v", question="how?")
    carried = RetrievedPassage(document_id="d", folder_id="f", rank=1, text=marker)
    third = log("3", START, user_id="v", retrieved=(carried,))
    document = DocumentUpserted(document_id="d", folder_id="f", occurred_at=START, text=marker)
    add(sets, Topic.CHAT_LOGS, [record(n, event) for n, event in enumerate((mine, other, third))])
    add(sets, Topic.DOCUMENTS, [record(0, document)])
    requests = [
        ErasureRequested(erasure_id="1", occurred_at=START, subject="user", subject_id="u"),
        ErasureRequested(erasure_id="2", occurred_at=START, subject="document", subject_id="d"),
    ]
    add(sets, Topic.ERASURES, [record(n, request) for n, request in enumerate(requests)])
    assert asyncio.run(compaction.maintain(sets, 0, START)).purged == 2
    # A redelivered copy is not written again.
    add(sets, Topic.CHAT_LOGS, [record(0, mine)])
    assert all(marker.encode() not in (table.get(0, key) or b"") for key in table.keys(0, b""))
    assert [judged.log.log_id for judged in folder_set(sets.view(0), "f", START).logs] == ["2", "3"]
    assert asyncio.run(compaction.maintain(sets, 0, START)).purged == 0


def test_a_purge_writes_its_marker_every_day() -> None:
    # Otherwise the broker never compacts the last segment of a quiet partition's changelog, nor the text in it.
    table = mock.Mock(wraps=MemoryTable())
    sets = TrainingSets(table, Sets())
    add(sets, Topic.CHAT_LOGS, [record(0, log("1", START))])
    asyncio.run(compaction.maintain(sets, 0, START))
    assert table.reclaim.call_count == 0
    request = ErasureRequested(erasure_id="1", occurred_at=START, subject="user", subject_id="nobody")
    add(sets, Topic.ERASURES, [record(0, request)])
    table.write.reset_mock()
    for hours in (0, 1, 23, 24, 30, 47, 48):
        asyncio.run(compaction.maintain(sets, 0, START + timedelta(hours=hours)))
    assert (table.write.call_count, table.reclaim.call_count) == (3, 3)
    # A crash after the marker and before the files were compacted would leave the text in them.
    calls = [name for name, _, _ in table.mock_calls if name in {"write", "reclaim"}]
    assert calls[-2:] == ["reclaim", "write"]
    # A new owner may have recovered the text from a changelog that was not compacted yet.
    sets.invalidate()
    asyncio.run(compaction.maintain(sets, 0, START + timedelta(hours=49)))
    asyncio.run(compaction.maintain(sets, 0, START + timedelta(hours=50)))
    assert (table.write.call_count, table.reclaim.call_count) == (3, 4)


def test_merging_does_not_change_the_count_of_labelled_logs() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    for number in range(10):
        cited = ("d",) if number % 2 == 0 else ()
        event = log(str(number), START, cited_document_ids=cited)
        add(sets, Topic.CHAT_LOGS, [record(number, event)])
    counts = [sets.labelled_since(0, {Topic.CHAT_LOGS: offset}, None) for offset in (0, 4, 10)]
    asyncio.run(compaction.maintain(sets, 0, START))
    assert len(sets.view(0).segments["f"]) == 1
    assert [sets.labelled_since(0, {Topic.CHAT_LOGS: offset}, None) for offset in (0, 4, 10)] == counts == [5, 3, 0]
    assert sets.labelled_since(0, {Topic.CHAT_LOGS: 0}, ["other"]) == 0


def verdicts_of(*events: StateEvent) -> list[Verdict | None]:
    records = [record(offset, event) for offset, event in enumerate(events)]
    erasures = TrainingSets(MemoryTable(), Sets()).erasures(0)
    return [judged.verdict for judged in fold("f", records, erasures, Sets().of("f"), END).logs]


def test_a_verdict_that_is_taken_back_is_none_nor_is_the_logs_own_or_one_that_comes_late() -> None:
    like, hour = Verdict(rating="like"), timedelta(hours=1)
    event, said = log("l", START, feedback=like), Feedback("b", START + hour, "l", "f", like)
    taken_back = FeedbackTombstone("l", START + 2 * hour, "f")
    assert verdicts_of(event, said) == verdicts_of(event) == [like]
    assert verdicts_of(event, taken_back) == [None]
    assert verdicts_of(event, said, taken_back) == verdicts_of(event, taken_back, said) == [None]
    again = Feedback("c", START + 3 * hour, "l", "f", Verdict(rating="dislike"))
    assert verdicts_of(event, said, taken_back, again) == [again.verdict]
    # As of an erasure of the log, which was published again after it.
    assert verdicts_of(log("l", START + 3 * hour, feedback=like), taken_back) == [like]


def test_feedback_that_names_a_document_is_a_new_label_from_its_own_offset_on() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    corrected, like = Verdict(correct_document_id="d"), Verdict(rating="like")
    for number in range(10):
        add(sets, Topic.CHAT_LOGS, [record(number, log(str(number), START, cited_document_ids=()))])
        verdict = corrected if number % 2 == 0 else like
        add(sets, Topic.FEEDBACK, [record(number, Feedback("b", START, str(number), "f", verdict))])
    offsets = [{Topic.CHAT_LOGS: 0, Topic.FEEDBACK: offset} for offset in (0, 4, 10)]
    assert [sets.labelled_since(0, since, None) for since in offsets] == [5, 3, 0]
    asyncio.run(compaction.maintain(sets, 0, START))
    assert len(sets.view(0).segments["f"]) == 2
    assert [sets.labelled_since(0, since, None) for since in offsets] == [5, 3, 0]
    assert sets.labelled_since(0, {Topic.CHAT_LOGS: 0}, None) == 0


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6), large=st.booleans())
def test_concatenated_segments_equal_those_packed_at_once(sizes: list[int], large: bool) -> None:
    question = "why, " * 20_000 if large else "how?"
    records = [record(number, log(str(number), START, question=question)) for number in range(sum(sizes))]
    cuts = [sum(sizes[:place]) for place in range(len(sizes) + 1)]
    parts = [part for a, b in pairwise(cuts) for part in pack(Topic.CHAT_LOGS, records[a:b])]
    together = list(concatenate(parts))
    assert [unpacked for _, content in together for unpacked in unpack(content)] == records
    assert [next(pack(Topic.CHAT_LOGS, unpack(content))) for _, content in together] == together
    assert max(len(content) for _, content in together) < 512 * 1024


@given(folder=st.text(min_size=1, max_size=256))
def test_a_segment_is_parsed_from_its_key(folder: str) -> None:
    event = log("l", START, folder_id=folder)
    ((segment, content),) = pack(Topic.CHAT_LOGS, [StateRecord(12, 3, event, 100)])
    assert Segment.from_key(segment.key) == segment
    assert segment.key.startswith(SEGMENT_PREFIX)
    assert unpack(content) == [StateRecord(12, 3, event, 100)]


def test_a_segment_fits_into_a_message() -> None:
    large = [record(n, log(str(n), START, question="x" * 100_000)) for n in range(20)]
    packed = list(pack(Topic.CHAT_LOGS, large))
    assert sum(segment.record_count for segment, _ in packed) == 20
    assert max(len(content) for _, content in packed) < 512 * 1024


def test_the_answer_is_not_stored() -> None:
    ((_, content),) = pack(Topic.CHAT_LOGS, [record(0, log("l", START, answer="a secret"))])
    assert b"secret" not in content


def add(sets: TrainingSets, topic: Topic, records: list[StateRecord]) -> None:
    """As the partition consumer does: first the block, then the next offset."""
    asyncio.run(sets.add(0, topic, records))
    asyncio.run(sets.write(0, {offset_key(topic): b"%d" % (records[-1].offset + 1)}))


def record(offset: int, event: StateEvent) -> StateRecord:
    return StateRecord(offset, 0, event, size_of(event))


def log(log_id: str, at: datetime, **changes: Any) -> ChatLog:
    base: dict[str, Any] = {"agent_id": "a", "folder_id": "f", "question": "how?", "cited_document_ids": ("d",)}
    return ChatLog(log_id=log_id, occurred_at=at, **(base | changes))
