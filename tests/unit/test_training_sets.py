"""The rolling training sets against a model that is a dictionary and a sort, through every kind of disturbance."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from infra.settings import Sets
from streams import upkeep
from streams.durable_table import Changes, MemoryTable
from streams.fold import FolderSet, JudgedLog
from streams.intake import place_key
from streams.records import Record
from streams.segments import SEGMENTS, Segment, joined, pack, unpack
from streams.stored import (
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
from streams.topics import DATA_TOPICS, Topic
from streams.training_sets import TrainingSets

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
    max_bytes=st.integers(300, 2000),
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
    return len(encode(event))


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

    async def recover(self) -> None:
        await super().write(0, dict(self._changelog.records))
        self._known = len(self._changelog.records)

    async def write(self, partition: int, changes: Changes) -> bool:  # noqa: ARG002  there is but one
        records = self._changelog.records
        alone = self._known == len(records)
        records += changes.items()
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
        self.places = {topic: int(self.table.get(0, place_key(topic)) or 0) for topic in DATA_TOPICS}

    def take(self, history: Log, topic: Topic, count: int, *, cut_off: bool = False) -> None:
        at = self.places[topic]
        block = [
            Record(at + index, 0, event, size_of(event)) for index, event in enumerate(history[topic][at : at + count])
        ]
        asyncio.run(self.sets.add(0, topic, block))
        self.places[topic] = at + len(block)
        if not cut_off:
            asyncio.run(self.sets.write(0, {place_key(topic): str(self.places[topic]).encode()}))

    def keep_up(self) -> None:
        with mock.patch.object(upkeep, "FAN_IN", 2), mock.patch.object(upkeep, "_SLACK", 0):
            asyncio.run(upkeep.keep_up(self.sets, 0, END))


class Disturbances(RuleBasedStateMachine):
    """Blocks cut anywhere, replays, crashes, zombies, eviction, merging and purging, in any order."""

    @initialize(bounds=limits)
    def begin(self, bounds: Sets) -> None:
        self.bounds = bounds
        self.changelog = Changelog()
        self.history: Log = {topic: [] for topic in DATA_TOPICS}
        self.owner = Worker(self.changelog, bounds)
        self.zombies: list[Worker] = []

    @rule(events=st.lists(inputs, min_size=1, max_size=6))
    def arrive(self, events: list[tuple[Topic, Stored]]) -> None:
        for topic, event in events:
            self.history[topic].append(event)

    @rule(topic=st.sampled_from(DATA_TOPICS), count=st.integers(1, 5))
    def take(self, topic: Topic, count: int) -> None:
        self.owner.take(self.history, topic, count)

    @rule()
    def keep_up(self) -> None:
        self.owner.keep_up()

    @rule()
    def crash(self) -> None:
        self.owner = Worker(self.changelog, self.bounds)

    @rule(topic=st.sampled_from(DATA_TOPICS), count=st.integers(1, 5))
    def crash_before_the_place_is_written(self, topic: Topic, count: int) -> None:
        self.owner.take(self.history, topic, count, cut_off=True)
        self.crash()

    @rule()
    def pause_for_too_long(self) -> None:
        self.zombies = [*self.zombies[-1:], self.owner]
        self.owner = Worker(self.changelog, self.bounds)

    @rule(topic=st.sampled_from(DATA_TOPICS), count=st.integers(1, 5))
    def zombies_take(self, topic: Topic, count: int) -> None:
        for zombie in self.zombies:
            zombie.take(self.history, topic, count)

    @rule()
    def zombies_keep_up(self) -> None:
        for zombie in self.zombies:
            zombie.keep_up()

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
            heir.keep_up()
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


Disturbances.TestCase.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
TestDisturbances = Disturbances.TestCase


def test_merging_keeps_a_folder_narrow() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    for number in range(100):
        asyncio.run(sets.add(0, Topic.CHAT_LOGS, [record(number, log(str(number), START))]))
        if number % 10 == 0:
            asyncio.run(upkeep.keep_up(sets, 0, START))
    asyncio.run(upkeep.keep_up(sets, 0, START))
    assert len(sets.view(0).segments["f"]) < upkeep.FAN_IN
    assert len(sets.view(0).folder("f", START).logs) == 100


def test_superseded_versions_of_a_document_do_not_pile_up() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    for number in range(upkeep.FAN_IN):
        text = f"version {number}"
        document = DocumentUpserted(document_id="d", folder_id="f", occurred_at=START, text=text)
        asyncio.run(sets.add(0, Topic.DOCUMENTS, [record(number, document)]))
    asyncio.run(upkeep.keep_up(sets, 0, START))
    (segment,) = sets.view(0).segments["f"]
    assert segment.records == 1


def test_corpora_published_again_and_again_do_not_pile_up() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    corpus = [
        DocumentUpserted(document_id=str(number), folder_id="f", occurred_at=START, text="x" * 100)
        for number in range(upkeep.NARROW_RECORDS)
    ]
    for again in range(10):
        asyncio.run(sets.add(0, Topic.DOCUMENTS, [record(again * 10_000 + n, one) for n, one in enumerate(corpus)]))
        asyncio.run(upkeep.keep_up(sets, 0, START))
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
            asyncio.run(sets.add(0, topic, [one for one in block if isinstance(one.event, kind)]))
        asyncio.run(upkeep.keep_up(sets, 0, START))
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
    asyncio.run(sets.add(0, Topic.CHAT_LOGS, [record(0, log("1", START)), record(1, log("3", START + 3 * day))]))
    asyncio.run(sets.add(0, Topic.CHAT_LOGS, [record(2, log("1", START + day, user_id="u"))]))
    erasure = ErasureRequested(erasure_id="1", occurred_at=START + day, subject="user", subject_id="u")
    asyncio.run(sets.add(0, Topic.ERASURES, [record(0, erasure)]))
    with mock.patch.object(upkeep, "_SLACK", 0):
        asyncio.run(upkeep.keep_up(sets, 0, START + 3 * day))
    assert [judged.log.log_id for judged in sets.view(0).folder("f", START + 3 * day).logs] == ["3"]


@pytest.mark.parametrize("kept_up", [False, True])
def test_a_smaller_version_of_a_log_brings_nothing_back(kept_up: bool) -> None:
    sets = TrainingSets(MemoryTable(), Sets(max_bytes=1_000))
    day = timedelta(days=1)
    large = "x" * 900
    events = [log("old", START), log("1", START + day, question=large), log("new", START + 2 * day)]
    asyncio.run(sets.add(0, Topic.CHAT_LOGS, [record(offset, event) for offset, event in enumerate(events)]))
    if kept_up:
        with mock.patch.object(upkeep, "_SLACK", 0):
            asyncio.run(upkeep.keep_up(sets, 0, START))
        assert [segment.records for segment in sets.view(0).segments["f"]] == [1]
    asyncio.run(sets.add(0, Topic.CHAT_LOGS, [record(3, log("1", START + 3 * day))]))
    assert [judged.log.log_id for judged in sets.view(0).folder("f", START).logs] == ["new", "1"]


def test_eviction_makes_room() -> None:
    sets = TrainingSets(MemoryTable(), Sets(max_age=timedelta(days=1)))
    for hour in range(24 * 5):
        asyncio.run(sets.add(0, Topic.CHAT_LOGS, [record(hour, log(str(hour), START + timedelta(hours=hour)))]))
    done = asyncio.run(upkeep.keep_up(sets, 0, START + timedelta(days=5)))
    # A day of age, and a day of grace for exports that are repeated.
    assert done.evicted == 24 * 3


def test_a_folder_may_have_limits_of_its_own() -> None:
    bounds = Sets(folders={"f": {"max_examples": 3}})  # type: ignore[dict-item]
    sets = TrainingSets(MemoryTable(), bounds)
    for folder_id in FOLDERS:
        records = [record(n, log(f"{folder_id}{n}", START, folder_id=folder_id)) for n in range(10)]
        asyncio.run(sets.add(0, Topic.CHAT_LOGS, records))
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
    asyncio.run(sets.add(0, Topic.CHAT_LOGS, [record(n, event) for n, event in enumerate((mine, other, third))]))
    asyncio.run(sets.add(0, Topic.DOCUMENTS, [record(0, document)]))
    requests = [
        ErasureRequested(erasure_id="1", occurred_at=START, subject="user", subject_id="u"),
        ErasureRequested(erasure_id="2", occurred_at=START, subject="document", subject_id="d"),
    ]
    asyncio.run(sets.add(0, Topic.ERASURES, [record(n, request) for n, request in enumerate(requests)]))
    assert asyncio.run(upkeep.keep_up(sets, 0, START)).purged == 2
    # A late copy, as a replay brings it, is not written again.
    asyncio.run(sets.add(0, Topic.CHAT_LOGS, [record(0, mine)]))
    assert all(marker.encode() not in (table.get(0, key) or b"") for key in table.keys(0, b""))
    assert [judged.log.log_id for judged in sets.view(0).folder("f", START).logs] == ["2", "3"]
    assert asyncio.run(upkeep.keep_up(sets, 0, START)).purged == 0


def test_where_something_was_erased_something_is_written_every_day() -> None:
    # Else the broker keeps the last segment of a quiet partition's changelog, and the words in it, for good.
    table = mock.Mock(wraps=MemoryTable())
    sets = TrainingSets(table, Sets())
    asyncio.run(sets.add(0, Topic.CHAT_LOGS, [record(0, log("1", START))]))
    asyncio.run(upkeep.keep_up(sets, 0, START))
    assert table.reclaim.call_count == 0
    request = ErasureRequested(erasure_id="1", occurred_at=START, subject="user", subject_id="nobody")
    asyncio.run(sets.add(0, Topic.ERASURES, [record(0, request)]))
    table.write.reset_mock()
    for hours in (0, 1, 23, 24, 30, 47, 48):
        asyncio.run(upkeep.keep_up(sets, 0, START + timedelta(hours=hours)))
    assert (table.write.call_count, table.reclaim.call_count) == (3, 3)
    # A crash after the marks and before the files were freed would leave the words in them.
    calls = [name for name, _, _ in table.mock_calls if name in {"write", "reclaim"}]
    assert calls[-2:] == ["reclaim", "write"]
    # Whoever takes the partition over may have read the words from a changelog that was not compacted yet.
    sets.forget()
    asyncio.run(upkeep.keep_up(sets, 0, START + timedelta(hours=49)))
    asyncio.run(upkeep.keep_up(sets, 0, START + timedelta(hours=50)))
    assert (table.write.call_count, table.reclaim.call_count) == (3, 4)


def test_labelled_logs_are_counted_from_an_offset_on_whatever_is_merged() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    for number in range(10):
        cited = ("d",) if number % 2 == 0 else ()
        event = log(str(number), START, cited_document_ids=cited)
        asyncio.run(sets.add(0, Topic.CHAT_LOGS, [record(number, event)]))
    counts = [sets.labelled_since(0, offset, None) for offset in (0, 4, 10)]
    asyncio.run(upkeep.keep_up(sets, 0, START))
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


def record(offset: int, event: Stored) -> Record:
    return Record(offset, 0, event, size_of(event))


def log(log_id: str, at: datetime, **changes: Any) -> ChatLog:
    base: dict[str, Any] = {"folder_id": "f", "question": "how?", "cited_document_ids": ("d",)}
    return ChatLog(log_id=log_id, occurred_at=at, agent_id="a", **(base | changes))
