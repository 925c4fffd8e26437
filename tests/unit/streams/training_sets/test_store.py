"""The rolling training sets against a model that is a dictionary and a sort, through every kind of disturbance."""

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
from streams.partitions.changelog_table import Changes
from streams.partitions.consumer import offset_key
from streams.training_sets import compaction, segments
from streams.training_sets.decoding import Record
from streams.training_sets.fold import FolderSet, JudgedLog, fold
from streams.training_sets.segments import SEGMENTS, Segment, joined, pack, unpack
from streams.training_sets.state_events import (
    ChatLog,
    DocumentDeleted,
    DocumentUpserted,
    ErasureRequested,
    Feedback,
    RetrievedPassage,
    Stored,
    Verdict,
    encode,
)
from streams.training_sets.store import TrainingSets
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
    agent_id=st.just("agent"),
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
)
documents = st.builds(
    DocumentUpserted, document_id=names, occurred_at=moments, folder_id=folders, text=st.sampled_from(["x", "y", "z"])
) | st.builds(DocumentDeleted, document_id=names, occurred_at=moments, folder_id=folders)
erasures = st.builds(
    ErasureRequested,
    erasure_id=names,
    occurred_at=moments,
    subject=st.sampled_from(["user", "log", "conversation", "document"]),
    subject_id=names,
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

Log = dict[Topic, list[Stored]]


def reference(folder_id: str, history: Log, bounds: Sets) -> FolderSet:
    """The same as the product, said in another way: sort by time, let the last one win, cut off the old, forget."""
    requests: list[Any] = history[Topic.ERASURES]

    def erased(subject: str, name: str | None, at: datetime) -> bool:
        return any(one.subject == subject and one.subject_id == name and at <= one.occurred_at for one in requests)

    def within(topic: Topic, count: int, oldest: datetime) -> list[Any]:
        # As long a tail, in the order of time, as is within every bound; a thing is as large as its largest version.
        mine: list[Any] = [event for event in history[topic] if event.folder_id == folder_id]  # type: ignore[union-attr]
        mine = sorted((one for one in mine if one.occurred_at >= oldest), key=lambda one: (one.occurred_at, one.log_id))
        for start in range(len(mine)):
            tail = mine[start:]
            sizes = {one.log_id: max(size_of(other) for other in tail if other.log_id == one.log_id) for one in tail}
            if len(sizes) <= count and sum(sizes.values()) <= bounds.max_bytes:
                return tail
        return []

    def latest(topic: Topic, name: str) -> dict[str, Any]:
        mine = [event for event in history[topic] if event.folder_id == folder_id]  # type: ignore[union-attr]
        return {getattr(event, name): event for event in sorted(mine, key=lambda event: event.occurred_at)}

    last = {log.log_id: log for log in within(Topic.CHAT_LOGS, bounds.max_examples, END - bounds.max_age)}
    skew = timedelta(days=1)
    verdicts = within(Topic.FEEDBACK, 2 * bounds.max_examples, END - bounds.max_age - skew)
    verdicts_on = {said.log_id: said for said in verdicts}
    chosen: list[JudgedLog] = []
    for log in sorted(last.values(), key=lambda log: (log.occurred_at, log.log_id)):
        subjects = (("user", log.user_id), ("log", log.log_id), ("conversation", log.conversation_id))
        if any(erased(subject, name, log.occurred_at) for subject, name in subjects):
            continue
        said = verdicts_on.get(log.log_id)
        counts = (
            said is not None
            and said.occurred_at >= log.occurred_at - skew
            and not erased("log", said.log_id, said.occurred_at)
        )
        verdict = said.verdict if counts and said is not None else log.feedback
        chosen.append(JudgedLog(without_texts(log, erased), verdict))
    documents_now = latest(Topic.DOCUMENTS, "document_id")
    living = tuple(
        document
        for _, document in sorted(documents_now.items())
        if isinstance(document, DocumentUpserted) and not erased("document", document.document_id, document.occurred_at)
    )
    return FolderSet(folder_id, tuple(chosen), living)


def without_texts(log: ChatLog, erased: Any) -> ChatLog:
    def goes(passage: RetrievedPassage) -> bool:
        return passage.text is not None and erased("document", passage.document_id, log.occurred_at)

    if not any(goes(passage) for passage in log.retrieved):
        return log
    left = tuple(msgspec.structs.replace(one, text=None) if goes(one) else one for one in log.retrieved)
    return msgspec.structs.replace(log, retrieved=left)


def size_of(event: Stored) -> int:
    # More than what is kept of it, as where a log has an answer.
    return 2 * len(encode(event))


class Changelog:
    """What all workers of a partition write to, one after the other."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes | None]] = []

    def rebuilt(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for key, value in self.records:
            if value is None:
                found.pop(key, None)
            else:
                found[key] = value
        return found


class LocalTable(MemoryTable):
    """One worker's copy; like the durable table it takes over, at its next write, what others wrote meanwhile."""

    def __init__(self, changelog: Changelog) -> None:
        super().__init__()
        self._changelog = changelog
        self._known = 0
        # How many records it still writes before it is killed, or finds the partition lost.
        self.left = 1 << 30

    async def recover(self) -> None:
        await super().write(0, dict(self._changelog.records))
        self._known = len(self._changelog.records)

    async def write(self, partition: int, changes: Changes) -> bool:
        records = self._changelog.records
        alone = self._known == len(records)
        ordered = sorted(changes.items(), key=lambda change: change[1] is None)
        records += ordered[: self.left]
        self.left -= len(ordered)
        if self.left < 0:
            raise PartitionLostError(partition)
        for key, value in records[self._known :]:
            await super().write(0, {key: value})
        self._known = len(records)
        return alone

    def content(self) -> dict[bytes, bytes]:
        return {key: self.get(0, key) or b"" for key in self.keys(0, b"")}


class Worker:
    """An owner of the partition, which goes on from the places that the table tells."""

    def __init__(self, changelog: Changelog, bounds: Sets) -> None:
        self.table = LocalTable(changelog)
        asyncio.run(self.table.recover())
        self.sets = TrainingSets(self.table, bounds)
        self.places = {topic: int(self.table.get(0, offset_key(topic)) or 0) for topic in DATA_TOPICS}

    def take(self, history: Log, topic: Topic, count: int, *, cut_off: bool = False) -> None:
        at = self.places[topic]
        block = [
            Record(at + index, 0, event, size_of(event)) for index, event in enumerate(history[topic][at : at + count])
        ]
        with mock.patch.object(segments, "_MAX_BYTES", 600):
            asyncio.run(self.sets.add(0, topic, block))
        self.places[topic] = at + len(block)
        if not cut_off:
            asyncio.run(self.sets.write(0, {offset_key(topic): str(self.places[topic]).encode()}))

    def maintain(self, records: int = 1 << 30) -> None:
        """Until it is done, or has written so many records."""
        self.table.left = records
        with (
            mock.patch.object(compaction, "FAN_IN", 2),
            mock.patch.object(compaction, "_SLACK", 0),
            mock.patch.object(segments, "_MAX_BYTES", 600),
            suppress(PartitionLostError),
        ):
            asyncio.run(compaction.maintain(self.sets, 0, END))
        self.table.left = 1 << 30

    def merge(self) -> None:
        """Its first write is a merge: with it, it learns what was written meanwhile."""
        with mock.patch.object(compaction, "FAN_IN", 2):
            asyncio.run(compaction.maintain(self.sets, 0, END))

    def snapshot(self, folder_id: str) -> FolderSet:
        """As an export makes it: of what lies before the places."""
        view = self.sets.view(0)
        places = {topic.label: place for topic, place in self.places.items()}
        records = [
            record
            for segment in view.segments.get(folder_id, ())
            for record in view.records([segment])
            if record.offset < places[segment.topic_label]
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
        # Whether what a zombie wrote may be about: then a place may fall back behind what was merged.
        self.haunted = False
        self.erasures_taken = 0

    @rule(events=st.lists(inputs, min_size=1, max_size=6))
    def arrive(self, events: list[tuple[Topic, Stored]]) -> None:
        for topic, event in events:
            self.history[topic].append(event)

    @rule(topic=st.sampled_from(DATA_TOPICS), count=st.integers(1, 5))
    def take(self, topic: Topic, count: int) -> None:
        self.owner.take(self.history, topic, count)
        self._note_erasures(topic)

    def _note_erasures(self, topic: Topic) -> None:
        if topic is Topic.ERASURES:
            self.erasures_taken = max(self.erasures_taken, self.owner.places[topic])

    @rule()
    def maintain(self) -> None:
        self.owner.maintain()

    @rule()
    def crash(self) -> None:
        self.owner = Worker(self.changelog, self.bounds)

    @rule(topic=st.sampled_from(DATA_TOPICS), count=st.integers(1, 5))
    def crash_before_the_place_is_written(self, topic: Topic, count: int) -> None:
        self.owner.take(self.history, topic, count, cut_off=True)
        self._note_erasures(topic)
        self.crash()

    @rule()
    def pause_for_too_long(self) -> None:
        self.zombies = [*self.zombies[-1:], self.owner]
        self.haunted = True
        self.owner = Worker(self.changelog, self.bounds)

    @rule(topic=st.sampled_from(DATA_TOPICS), count=st.integers(1, 5))
    def zombies_take(self, topic: Topic, count: int) -> None:
        for zombie in self.zombies:
            zombie.take(self.history, topic, count)

    @rule()
    def zombies_keep_up(self) -> None:
        for zombie in self.zombies:
            zombie.maintain()

    @rule(records=st.integers(0, 6))
    def crash_while_keeping_up(self, records: int) -> None:
        self.owner.maintain(records)
        self.crash()

    @rule(records=st.integers(0, 6))
    def zombies_end_while_keeping_up(self, records: int) -> None:
        for zombie in self.zombies:
            zombie.maintain(records)
        self.zombies = []

    @precondition(lambda self: not self.haunted)
    @invariant()
    def a_snapshot_is_of_the_places(self) -> None:
        history = {topic: events[: self.owner.places[topic]] for topic, events in self.history.items()}
        # An erasure holds at once, wherever the place is.
        history[Topic.ERASURES] = self.history[Topic.ERASURES][: self.erasures_taken]
        for folder_id in FOLDERS:
            assert self.owner.snapshot(folder_id) == reference(folder_id, history, self.bounds)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        # Everything that arrived is taken in by a worker of its own, who starts from the places written.
        heir = Worker(self.changelog, self.bounds)
        before = len(self.changelog.records)
        for topic in DATA_TOPICS:
            while heir.places[topic] < len(self.history[topic]):
                heir.take(self.history, topic, 7)
        for folder_id in FOLDERS:
            expected = reference(folder_id, self.history, self.bounds)
            assert heir.sets.view(0).folder(folder_id, END) == expected
            heir.maintain()
            assert heir.sets.view(0).folder(folder_id, END) == expected
        assert heir.table.content() == self.changelog.rebuilt()
        del self.changelog.records[before:]

    def teardown(self) -> None:
        if not hasattr(self, "owner"):
            return
        # What a zombie wrote last is taken over with the owner's next write.
        for topic in DATA_TOPICS:
            while self.owner.places[topic] < len(self.history[topic]):
                self.owner.take(self.history, topic, 7)
        asyncio.run(self.owner.sets.write(0, {b"anything": b""}))
        assert self.owner.table.content() == self.changelog.rebuilt()
        for folder_id in FOLDERS:
            expected = reference(folder_id, self.history, self.bounds)
            assert self.owner.sets.view(0).folder(folder_id, END) == expected


Disturbances.TestCase.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
TestDisturbances = Disturbances.TestCase


def test_merging_keeps_a_folder_narrow() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    for number in range(100):
        add(sets, Topic.CHAT_LOGS, [record(number, log(str(number), START))])
        if number % 10 == 0:
            asyncio.run(compaction.maintain(sets, 0, START))
    asyncio.run(compaction.maintain(sets, 0, START))
    assert len(sets.view(0).segments["f"]) < compaction.FAN_IN
    assert len(sets.view(0).folder("f", START).logs) == 100


def test_superseded_versions_of_a_document_do_not_pile_up() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    for number in range(compaction.FAN_IN):
        text = f"version {number}"
        document = DocumentUpserted(document_id="d", folder_id="f", occurred_at=START, text=text)
        add(sets, Topic.DOCUMENTS, [record(number, document)])
    asyncio.run(compaction.maintain(sets, 0, START))
    (segment,) = sets.view(0).segments["f"]
    assert segment.records == 1


def test_corpora_published_again_and_again_do_not_pile_up() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    corpus = [
        DocumentUpserted(document_id=str(number), folder_id="f", occurred_at=START, text="x" * 100)
        for number in range(compaction.NARROW_RECORDS)
    ]
    for again in range(10):
        add(sets, Topic.DOCUMENTS, [record(again * 10_000 + n, one) for n, one in enumerate(corpus)])
        asyncio.run(compaction.maintain(sets, 0, START))
        assert sum(segment.records for segment in sets.view(0).segments["f"]) <= 2 * len(corpus)
    assert sets.view(0).folder("f", START).documents == tuple(sorted(corpus, key=lambda one: one.document_id))


def test_a_history_imported_in_any_order_stays_within_twice_its_bounds() -> None:
    sets = TrainingSets(MemoryTable(), Sets(max_examples=100))
    events: list[Stored] = []
    for number in random.Random(0).sample(range(2_000), 2_000):
        at = START + timedelta(minutes=number)
        verdict = Feedback(
            feedback_id=str(number), occurred_at=at, log_id=str(number), folder_id="f", verdict=Verdict(rating="like")
        )
        events += [log(str(number), at), verdict]
    for start in range(0, len(events), 100):
        block = [record(start + place, event) for place, event in enumerate(events[start : start + 100])]
        for topic, kind in ((Topic.CHAT_LOGS, ChatLog), (Topic.FEEDBACK, Feedback)):
            add(sets, topic, [one for one in block if isinstance(one.event, kind)])
        asyncio.run(compaction.maintain(sets, 0, START))
    segments = sets.view(0).segments["f"]
    assert sum(segment.records for segment in segments if segment.topic is Topic.CHAT_LOGS) <= 2 * 100
    assert sum(segment.records for segment in segments if segment.topic is Topic.FEEDBACK) <= 2 * 200
    found = sets.view(0).folder("f", START).logs
    assert [judged.log.log_id for judged in found] == [str(number) for number in range(1_900, 2_000)]
    assert {judged.verdict.rating for judged in found if judged.verdict} == {"like"}


def test_what_an_erased_log_pushed_out_does_not_come_back() -> None:
    # The newest version of log 1 is erased and falls out of the bound; an older one lies beside a log that stays.
    sets = TrainingSets(MemoryTable(), Sets(max_examples=2))
    day = timedelta(days=1)
    add(sets, Topic.CHAT_LOGS, [record(0, log("1", START)), record(1, log("3", START + 3 * day))])
    add(sets, Topic.CHAT_LOGS, [record(2, log("1", START + day, user_id="u"))])
    erasure = ErasureRequested(erasure_id="1", occurred_at=START + day, subject="user", subject_id="u")
    add(sets, Topic.ERASURES, [record(0, erasure)])
    with mock.patch.object(compaction, "_SLACK", 0):
        asyncio.run(compaction.maintain(sets, 0, START + 3 * day))
    assert [judged.log.log_id for judged in sets.view(0).folder("f", START + 3 * day).logs] == ["3"]


@pytest.mark.parametrize("kept_up", [False, True])
def test_a_smaller_version_of_a_log_brings_nothing_back(kept_up: bool) -> None:
    sets = TrainingSets(MemoryTable(), Sets(max_bytes=2_000))
    day = timedelta(days=1)
    large = "x" * 900
    events = [log("old", START), log("1", START + day, question=large), log("new", START + 2 * day)]
    add(sets, Topic.CHAT_LOGS, [record(offset, event) for offset, event in enumerate(events)])
    if kept_up:
        with mock.patch.object(compaction, "_SLACK", 0):
            asyncio.run(compaction.maintain(sets, 0, START))
        # The newest, and the place of what had no room.
        assert [segment.records for segment in sets.view(0).segments["f"]] == [2]
    add(sets, Topic.CHAT_LOGS, [record(3, log("1", START + 3 * day))])
    assert [judged.log.log_id for judged in sets.view(0).folder("f", START).logs] == ["new", "1"]


@pytest.mark.parametrize("answer", [0, 600, 1_000, 3_000])
def test_keeping_up_comes_to_an_end(answer: int) -> None:
    # Envelopes, most of whose bytes are answers, which are not kept.
    table = mock.Mock(wraps=MemoryTable())
    sets = TrainingSets(table, Sets())
    for offset in range(60):
        envelope = [
            Record(offset, position, log(f"{offset} {position}", START), size=150 + answer) for position in range(100)
        ]
        add(sets, Topic.CHAT_LOGS, envelope)
    while asyncio.run(compaction.maintain(sets, 0, START)) != compaction.MaintenanceCounts():
        assert table.write.call_count < 300
    found = sets.view(0).segments["f"]
    assert sum(segment.records for segment in found) == 6_000
    assert len(found) < 6_000 / compaction.NARROW_RECORDS + compaction.FAN_IN


def test_what_compaction_brings_together_is_no_larger_than_a_message() -> None:
    # Of an envelope each log has an equal share, which says little of a large one among small ones.
    sets = TrainingSets(MemoryTable(), Sets(max_examples=20))
    for offset in range(30):
        large = Record(offset, 0, log(f"large {offset}", START, question="x" * 200_000), size=300)
        small = [Record(offset, 1 + number, log("the same", START), size=300) for number in range(100)]
        add(sets, Topic.CHAT_LOGS, [large, *small])
    asyncio.run(compaction.maintain(sets, 0, START))
    assert max(segment.size for segment in sets.view(0).segments["f"]) < 512 * 1024
    assert len(sets.view(0).folder("f", START).logs) == 20


def test_a_zombies_compaction_deletes_nothing_that_it_does_not_write() -> None:
    changelog, day = Changelog(), timedelta(days=1)
    events: Log = {topic: [] for topic in DATA_TOPICS}
    events[Topic.CHAT_LOGS] = [log(str(number), START + number * day) for number in range(3)]
    # A block whose place was not written, and again, cut otherwise: two segments that overlap.
    Worker(changelog, Sets()).take(events, Topic.CHAT_LOGS, 2, cut_off=True)
    Worker(changelog, Sets()).take(events, Topic.CHAT_LOGS, 3)
    zombie, owner = Worker(changelog, Sets()), Worker(changelog, Sets())
    owner.maintain()
    owner.maintain()
    zombie.maintain()
    heir = Worker(changelog, Sets())
    assert [judged.log.log_id for judged in heir.sets.view(0).folder("f", END).logs] == ["0", "1", "2"]


def test_what_a_zombie_brings_back_of_the_erased_is_erased_again() -> None:
    changelog, marker = Changelog(), "unforgettable"
    events: Log = {topic: [] for topic in DATA_TOPICS}
    events[Topic.CHAT_LOGS] = [log(str(number), START, user_id="u", question=marker) for number in range(2)]
    owner = Worker(changelog, Sets())
    for _ in events[Topic.CHAT_LOGS]:
        owner.take(events, Topic.CHAT_LOGS, 1)
    zombie, owner = owner, Worker(changelog, Sets())
    events[Topic.ERASURES] = [ErasureRequested(erasure_id="1", occurred_at=START, subject="user", subject_id="u")]
    owner.take(events, Topic.ERASURES, 1)
    owner.maintain()
    assert marker.encode() not in b"".join(owner.table.content().values())
    # It merges what it knows; and the owner ends before it has seen that.
    zombie.merge()
    heir = Worker(changelog, Sets())
    assert marker.encode() in b"".join(heir.table.content().values())
    heir.maintain()
    assert marker.encode() not in b"".join(heir.table.content().values())


def test_what_is_taken_over_during_a_purge_is_purged_by_the_next() -> None:
    changelog, marker = Changelog(), "unforgettable"
    events: Log = {topic: [] for topic in DATA_TOPICS}
    events[Topic.CHAT_LOGS] = [log(str(number), START, user_id="u", question=marker) for number in range(2)]
    events[Topic.ERASURES] = [ErasureRequested(erasure_id="1", occurred_at=START, subject="user", subject_id="u")]
    owner = Worker(changelog, Sets())
    owner.take(events, Topic.CHAT_LOGS, 1)
    owner.take(events, Topic.CHAT_LOGS, 1)
    zombie, owner = owner, Worker(changelog, Sets())
    owner.take(events, Topic.ERASURES, 1)

    def meanwhile(_: int) -> None:
        zombie.merge()
        asyncio.run(owner.sets.write(0, {b"anything": b""}))

    with mock.patch.object(owner.table, "reclaim", side_effect=meanwhile):
        asyncio.run(compaction.maintain(owner.sets, 0, END))
    assert marker.encode() in b"".join(owner.table.content().values())
    owner.maintain()
    assert marker.encode() not in b"".join(owner.table.content().values())


def test_a_view_that_was_rewritten_says_so() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    for number in range(compaction.FAN_IN):
        add(sets, Topic.CHAT_LOGS, [record(number, log(str(number), START))])
    view = sets.view(0)
    asyncio.run(compaction.maintain(sets, 0, START))
    with pytest.raises(OutdatedViewError):
        view.folder("f", START)


def test_what_lies_behind_the_place_reached_is_left_alone() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    for number in range(compaction.FAN_IN):
        asyncio.run(sets.add(0, Topic.CHAT_LOGS, [record(number, log("same", START + timedelta(days=number)))]))
    assert asyncio.run(compaction.maintain(sets, 0, START)) == compaction.MaintenanceCounts()
    asyncio.run(sets.write(0, {offset_key(Topic.CHAT_LOGS): b"%d" % compaction.FAN_IN}))
    assert asyncio.run(compaction.maintain(sets, 0, START)).merged == compaction.FAN_IN


@pytest.mark.parametrize("kept_up", [False, True])
def test_a_small_log_finds_no_room_behind_a_large_one_that_had_none(kept_up: bool) -> None:
    sets = TrainingSets(MemoryTable(), Sets(max_bytes=2_000))
    day = timedelta(days=1)
    add(sets, Topic.CHAT_LOGS, [record(0, log("1", START + day, question="x" * 900))])
    add(sets, Topic.CHAT_LOGS, [record(1, log("new", START + 2 * day))])
    if kept_up:
        with mock.patch.object(compaction, "_SLACK", 0):
            asyncio.run(compaction.maintain(sets, 0, START))
        assert b"xxx" not in b"".join(sets.table.get(0, key) or b"" for key in sets.table.keys(0, SEGMENTS))
    add(sets, Topic.CHAT_LOGS, [record(2, log("late", START))])
    assert [judged.log.log_id for judged in sets.view(0).folder("f", START).logs] == ["new"]


def test_eviction_makes_room() -> None:
    sets = TrainingSets(MemoryTable(), Sets(max_age=timedelta(days=1)))
    for hour in range(24 * 5):
        add(sets, Topic.CHAT_LOGS, [record(hour, log(str(hour), START + timedelta(hours=hour)))])
    done = asyncio.run(compaction.maintain(sets, 0, START + timedelta(days=5)))
    # A day of age, and a day of grace for exports that are repeated.
    assert done.evicted == 24 * 3


def test_a_folder_may_have_limits_of_its_own() -> None:
    bounds = Sets(folders={"f": {"max_examples": 3}})
    sets = TrainingSets(MemoryTable(), bounds)
    for folder_id in FOLDERS:
        records = [record(n, log(f"{folder_id}{n}", START, folder_id=folder_id)) for n in range(10)]
        add(sets, Topic.CHAT_LOGS, records)
    assert [len(sets.view(0).folder(folder_id, START).logs) for folder_id in FOLDERS] == [3, 10]


def test_an_erasure_leaves_no_word_in_the_table() -> None:
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
    # A late copy, as a replay brings it, is not written again.
    add(sets, Topic.CHAT_LOGS, [record(0, mine)])
    assert all(marker.encode() not in (table.get(0, key) or b"") for key in table.keys(0, b""))
    assert [judged.log.log_id for judged in sets.view(0).folder("f", START).logs] == ["2", "3"]
    assert asyncio.run(compaction.maintain(sets, 0, START)).purged == 0


def test_where_something_was_erased_something_is_written_every_day() -> None:
    # Else the broker keeps the last segment of a quiet partition's changelog, and the words in it, for good.
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
    # A crash after the marks and before the files were freed would leave the words in them.
    calls = [name for name, _, _ in table.mock_calls if name in {"write", "reclaim"}]
    assert calls[-2:] == ["reclaim", "write"]
    # Whoever takes the partition over may have read the words from a changelog that was not compacted yet.
    sets.forget()
    asyncio.run(compaction.maintain(sets, 0, START + timedelta(hours=49)))
    asyncio.run(compaction.maintain(sets, 0, START + timedelta(hours=50)))
    assert (table.write.call_count, table.reclaim.call_count) == (3, 4)


def test_labelled_logs_are_counted_from_an_offset_on_whatever_is_merged() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    for number in range(10):
        cited = ("d",) if number % 2 == 0 else ()
        event = log(str(number), START, cited_document_ids=cited)
        add(sets, Topic.CHAT_LOGS, [record(number, event)])
    counts = [sets.labelled_since(0, offset, None) for offset in (0, 4, 10)]
    asyncio.run(compaction.maintain(sets, 0, START))
    assert len(sets.view(0).segments["f"]) == 1
    assert [sets.labelled_since(0, offset, None) for offset in (0, 4, 10)] == counts == [5, 3, 0]
    assert sets.labelled_since(0, 0, ["other"]) == 0


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6), wide=st.booleans())
def test_segments_are_joined_as_if_they_had_been_packed_at_once(sizes: list[int], wide: bool) -> None:
    question = "why, " * 20_000 if wide else "how?"
    records = [record(number, log(str(number), START, question=question)) for number in range(sum(sizes))]
    cuts = [sum(sizes[:place]) for place in range(len(sizes) + 1)]
    parts = [part for a, b in pairwise(cuts) for part in pack(Topic.CHAT_LOGS, records[a:b])]
    together = list(joined(parts))
    assert [one for _, content in together for one in unpack(content)] == records
    assert [next(pack(Topic.CHAT_LOGS, unpack(content))) for _, content in together] == together
    assert max(len(content) for _, content in together) < 512 * 1024


@given(folder=st.text(min_size=1, max_size=256))
def test_a_key_says_what_its_segment_is(folder: str) -> None:
    event = log("l", START, folder_id=folder)
    ((segment, content),) = pack(Topic.CHAT_LOGS, [Record(12, 3, event, 100)])
    assert Segment.of_key(segment.key) == segment
    assert segment.key.startswith(SEGMENTS)
    assert unpack(content) == [Record(12, 3, event, 100)]


def test_no_segment_is_too_large_for_a_message() -> None:
    large = [record(n, log(str(n), START, question="x" * 100_000)) for n in range(20)]
    packed = list(pack(Topic.CHAT_LOGS, large))
    assert sum(segment.records for segment, _ in packed) == 20
    assert max(len(content) for _, content in packed) < 512 * 1024


def test_the_words_of_the_answer_are_not_kept() -> None:
    ((_, content),) = pack(Topic.CHAT_LOGS, [record(0, log("l", START, answer="a secret"))])
    assert b"secret" not in content


def add(sets: TrainingSets, topic: Topic, records: list[Record]) -> None:
    """As the intake does it: first the block, then the place behind it."""
    asyncio.run(sets.add(0, topic, records))
    asyncio.run(sets.write(0, {offset_key(topic): b"%d" % (records[-1].offset + 1)}))


def record(offset: int, event: Stored) -> Record:
    return Record(offset, 0, event, size_of(event))


def log(log_id: str, at: datetime, **changes: Any) -> ChatLog:
    base: dict[str, Any] = {"folder_id": "f", "question": "how?", "cited_document_ids": ("d",)}
    return ChatLog(log_id=log_id, occurred_at=at, agent_id="a", **(base | changes))
