"""What the worker accepts of a raw message, and the reasons for what it rejects."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from pydantic import ValidationError

from foldtune import events
from foldtune.bounds import Bounds, Rules, written_at
from foldtune.kafka import partition_of
from foldtune.reasons import Rejected
from foldtune.topics import DATA_TOPICS, Topic
from streams.training_sets.decoding import decode, decode_block, reject_misplaced
from streams.training_sets.segments import pack, unpack
from streams.training_sets.state_events import (
    ChatLog,
    DocumentDeleted,
    DocumentUpserted,
    Feedback,
    FeedbackTombstone,
    StateRecord,
    encode,
)
from tests.examples import examples

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
BOUNDS = Bounds(question_bytes=40, passage_bytes=100, event_bytes=4096, passages_per_log=3)


def log(**changes: Any) -> dict[str, Any]:
    return {
        "log_id": "l1",
        "occurred_at": "2026-01-01T12:00:00Z",
        "agent_id": "a",
        "question": "how?",
        "folder_id": "f",
    } | changes


def as_json(content: object) -> bytes:
    return json.dumps(content).encode()


def decoded(content: object, topic: Topic = Topic.CHAT_LOGS) -> list[StateRecord | Rejected]:
    value = content if isinstance(content, bytes) else as_json(content)
    return decode(topic, 7, value, Rules(NOON, BOUNDS))


def reason(content: object, topic: Topic = Topic.CHAT_LOGS) -> str:
    (only,) = decoded(content, topic)
    assert isinstance(only, Rejected)
    return "; ".join(only.reasons)


def test_a_valid_log_becomes_a_record_with_its_offset() -> None:
    (record,) = decoded(log(unknown_field=1))
    assert isinstance(record, StateRecord)
    assert isinstance(record.event, ChatLog)
    assert (record.offset, record.position) == (7, 0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{nope", "event: Invalid JSON"),
        (b"\xff\xfe", "event: Invalid JSON"),
        (b"[]", "event: Input should be an object"),
        (log(question=5), "question: Input should be a valid string"),
        (log(question=""), "question: String should have at least 1 character"),
        (log(question=" \n"), "question: only white space"),
        (log(question="\u200b\ufeff\u0000 \u3000"), "question: only white space"),
        (log(question="ö" * 30), "question: 60 bytes, at most 40"),
        (log(folder_id="x" * 257), "folder_id: String should have at most 256 characters"),
        (log(occurred_at="2026-01-01T12:00:00"), "occurred_at: Input should have timezone info"),
        (log(occurred_at="2026-01-01T12:11:00Z"), "occurred_at: 2026-01-01T12:11:00+00:00 lies more than 0:10:00 in"),
        (log(occurred_at="9999-12-31T23:59:59-10:00"), "occurred_at: 9999-12-31T23:59:59-10:00 lies more than 0:10:00"),
        (log(occurred_at="9999-12-31T23:59-10:00"), "occurred_at: lies outside the years"),
        (log(occurred_at="0001-01-01T00:00:00Z"), "occurred_at: 0001-01-01T00:00:00+00:00 lies before 1970"),
        (
            log(retrieved=[{"document_id": "d", "folder_id": "f", "rank": 0}]),
            "retrieved.0.rank: Input should",
        ),
        (
            log(retrieved=[{"document_id": "d", "folder_id": "f", "rank": i} for i in range(1, 5)]),
            "retrieved: 4",
        ),
        (
            log(retrieved=[{"document_id": "d", "folder_id": "f", "rank": 1, "text": "x" * 101}]),
            "retrieved.0.text: 101 bytes, at most 100",
        ),
        (log(feedback={}), "feedback: one of rating and correct_document_id is needed"),
        (log(feedback={"rating": "like", "correct_folder_id": "f"}), "feedback: correct_folder_id needs correct_docu"),
        (log(answer="x" * 5000), "event: "),
    ],
)
def test_a_rejection_names_the_field_and_the_bound(content: object, expected: str) -> None:
    assert expected in reason(content)


@pytest.mark.parametrize("question", ["👨‍👩‍👧‍👦", "\u200b?", "\u202e\u05d0", "\ue000", "\u0301", "+"])
def test_a_question_of_which_anything_is_seen_is_taken(question: str) -> None:
    (record,) = decoded(log(question=question))
    assert isinstance(record, StateRecord)


def verdict(**fields: Any) -> dict[str, Any]:
    return log(type="feedback", feedback_id="b", verdict=fields)


@pytest.mark.parametrize("occurred_at", ["2026-01-01T12:00:00Z", "2026-01-01 12:00Z"])
def test_a_verdict_that_is_taken_back_is_stored_as_earlier_releases_can_read_it(occurred_at: str) -> None:
    # In the second spelling the contract decides.
    for fields in ({"rating": None}, {"rating": None, "correct_document_id": None}):
        (record,) = decoded(verdict(**fields) | {"occurred_at": occurred_at}, Topic.FEEDBACK)
        assert isinstance(record, StateRecord)
        assert record.event == FeedbackTombstone("l1", NOON, "f")
    (record,) = decoded(verdict(rating=None, correct_document_id="d") | {"occurred_at": occurred_at}, Topic.FEEDBACK)
    assert isinstance(record, StateRecord)
    assert isinstance(record.event, Feedback)
    assert b"null" not in encode(record.event)


@pytest.mark.parametrize("fields", [{}, {"ratng": None}, {"correct_document_id": None}, {"ratng": "like"}])
def test_nothing_is_taken_back_by_a_misspelt_field(fields: dict[str, Any]) -> None:
    expected = "one of rating and correct_document_id is needed"
    assert expected in reason(verdict(**fields), Topic.FEEDBACK)
    assert expected in reason(log(feedback=fields))


def test_a_rating_of_null_in_a_log_is_no_verdict() -> None:
    envelope = {"type": "chat_log_batch", "folder_id": "f", "logs": [log(feedback={"rating": None})]}
    for content in (log(feedback={"rating": None}), log(feedback={"rating": None}, answer="x" * 50), envelope):
        (record,) = decoded(content)
        assert isinstance(record, StateRecord)
        assert isinstance(record.event, ChatLog)
        assert record.event.feedback is None


def test_what_the_sdk_publishes_takes_a_verdict_back() -> None:
    retraction = events.Feedback(
        feedback_id="b", occurred_at=NOON, log_id="l1", folder_id="f", verdict=events.Verdict(rating=None)
    )
    (record,) = decoded(retraction.encode(), Topic.FEEDBACK)
    assert isinstance(record, StateRecord)
    assert isinstance(record.event, FeedbackTombstone)
    with pytest.raises(ValidationError):
        events.Verdict()


def test_nan_is_rejected_as_a_score() -> None:
    value = json.dumps(log(retrieved=[{"document_id": "d", "folder_id": "f", "rank": 1, "score": float("nan")}]))
    assert "retrieved.0.score" in reason(value.encode())


def test_a_message_without_a_value_is_rejected() -> None:
    (rejected,) = decode(Topic.CHAT_LOGS, 7, None, Rules(NOON, BOUNDS))
    assert isinstance(rejected, Rejected)


@pytest.mark.parametrize("name", ["../../x", "a b/c\\d", "🗂️" * 20, "x" * 256, "\u0000", "."])
def test_any_folder_id_is_accepted_unchanged(name: str) -> None:
    (record,) = decoded(log(folder_id=name))
    assert isinstance(record, StateRecord)
    assert isinstance(record.event, ChatLog)
    assert record.event.folder_id == name


def test_an_invalid_log_does_not_reject_its_envelope() -> None:
    envelope = {
        "type": "chat_log_batch",
        "folder_id": "f",
        "logs": [log(), log(question=1), "x", log(log_id="l2"), log(folder_id="g")],
    }
    results = decoded(envelope)
    assert [isinstance(result, StateRecord) for result in results] == [True, False, False, True, False]
    assert [result.position for result in results] == [0, 1, 2, 3, 4]
    wrong = results[4]
    assert isinstance(wrong, Rejected)
    assert wrong.reasons == ("folder_id: a log in an envelope must be of the envelope's folder",)
    assert json.loads(wrong.value)["folder_id"] == "g"


@pytest.mark.parametrize(
    ("topic", "content"),
    [
        (Topic.CHAT_LOGS, log(schema_version=2)),
        (Topic.CHAT_LOGS, {"schema_version": 2, "type": "chat_log_batch", "folder_id": "f", "logs": [log()]}),
        (Topic.CHAT_LOGS, {"schema_version": 2, "type": "chat_log_batch", "pages": "unknown"}),
        (Topic.DOCUMENTS, log(schema_version=2, type="document_upserted", document_id="d", text="words")),
        (Topic.DOCUMENTS, log(schema_version=2, type="document_deleted", document_id="d")),
        (Topic.DOCUMENTS, {"schema_version": 2, "type": "document_moved", "document_id": "d"}),
        (Topic.DOCUMENTS, {"schema_version": 2, "document_id": "d"}),
        (Topic.FEEDBACK, log(schema_version=2, type="feedback", feedback_id="b", verdict={"rating": "like"})),
        (
            Topic.ERASURES,
            log(schema_version=2, type="erasure_requested", erasure_id="e", subject="user", subject_id="u"),
        ),
        (Topic.FEEDBACK, log(schema_version=2, type="feedback", feedback_id="b", verdict={"stars": 5})),
    ],
)
def test_an_event_of_a_later_version_waits_whole_in_the_dead_letters(topic: Topic, content: dict[str, Any]) -> None:
    message = Message(7, int(NOON.timestamp() * 1000), as_json(content))
    (rejected,) = decode_block(topic, [message], BOUNDS)
    assert isinstance(rejected, Rejected)
    assert (rejected.kind, rejected.value) == ("unknown_version", message.value)
    assert "schema_version: version 2 is of a newer release" in rejected.reasons[0]


@pytest.mark.parametrize("topic", [Topic.CHAT_LOGS, Topic.DOCUMENTS, Topic.FEEDBACK, Topic.ERASURES])
def test_the_reasons_that_are_logged_do_not_quote_what_should_be_a_type(topic: Topic) -> None:
    content = as_json(log(type="what anna asked", document_id="d", text="words"))
    (rejected,) = decode_block(topic, [Message(7, int(NOON.timestamp() * 1000), content)], BOUNDS)
    assert isinstance(rejected, Rejected)
    assert "type" in str(rejected.reasons)
    assert "anna" not in str(rejected.reasons)


def test_of_an_envelope_only_the_logs_of_a_later_version_wait() -> None:
    logs = [log(), log(log_id="l2", schema_version=2), log(log_id="l3")]
    first, second, third = decoded({"type": "chat_log_batch", "folder_id": "f", "logs": logs})
    assert isinstance(first, StateRecord)
    assert isinstance(third, StateRecord)
    assert isinstance(second, Rejected)
    assert (second.kind, json.loads(second.value)) == ("unknown_version", logs[1])


def test_a_stored_event_of_a_later_version_stays_readable() -> None:
    # Earlier releases took them.
    stored = (
        b'[[7,0,{"type":"chat_log","log_id":"l","occurred_at":"2026-01-01T12:00:00Z","agent_id":"a","question":"q",'
        b'"folder_id":"f","schema_version":2},9]]'
    )
    (record,) = unpack(stored)
    assert isinstance(record.event, ChatLog)


def test_what_comes_to_another_partition_than_its_folders_is_rejected_whole_with_the_partitioner_named() -> None:
    document = log(type="document_upserted", document_id="d", text="words")
    feedback = log(type="feedback", feedback_id="b", verdict={"rating": "like"})
    envelope = {
        "type": "chat_log_batch",
        "folder_id": "f",
        "logs": [log(answer="kept"), log(question=1), log(log_id="m")],
    }
    home = partition_of("f", 4)
    for topic, content in (
        (Topic.CHAT_LOGS, log()),
        (Topic.CHAT_LOGS, envelope),
        (Topic.DOCUMENTS, document),
        (Topic.FEEDBACK, feedback),
    ):
        messages = [
            Message(at, int(NOON.timestamp() * 1000), as_json(event))
            for at, event in enumerate((content, log(folder_id="g") | {"type": "chat_log"}))
        ]
        results = decode_block(topic, messages, BOUNDS)
        assert reject_misplaced(results, messages, home, 4) == results
        (rejected,) = [result for result in reject_misplaced(results, messages, 1, 4) if result.offset == 0]
        assert isinstance(rejected, Rejected)
        assert (rejected.kind, rejected.value) == ("misplaced", messages[0].value)
        assert rejected.reasons == (
            f"folder_id: lies in partition {home}, and the record came to partition 1 of 4: producers need the murmur2 "
            "partitioner, with folder_id as the key (kafka.partitioner)",
        )


def test_an_empty_envelope_is_rejected() -> None:
    assert "logs" in reason({"type": "chat_log_batch", "folder_id": "f", "logs": []})


def test_document_events_are_discriminated_by_type() -> None:
    base = {"document_id": "d", "folder_id": "f", "occurred_at": "2026-01-01T12:00:00Z"}
    (upserted,) = decoded(base | {"type": "document_upserted", "text": "words"}, Topic.DOCUMENTS)
    (deleted,) = decoded(base | {"type": "document_deleted"}, Topic.DOCUMENTS)
    assert isinstance(upserted, StateRecord)
    assert isinstance(upserted.event, DocumentUpserted)
    assert isinstance(deleted, StateRecord)
    assert isinstance(deleted.event, DocumentDeleted)
    assert "type" in reason(base, Topic.DOCUMENTS)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(
    topic=st.sampled_from(DATA_TOPICS),
    value=st.binary(max_size=200) | st.dictionaries(st.sampled_from(["type", "logs", *log()]), _JSON).map(as_json),
    at=st.integers(0, 10).map(lambda hours: NOON + timedelta(hours=hours)),
)
@pytest.mark.slow
def test_any_bytes_decode_to_records_or_rejections(topic: Topic, value: bytes, at: datetime) -> None:
    results = decode(topic, 1, value, Rules(at, BOUNDS))
    assert results
    assert all(isinstance(result, StateRecord) or result.reasons for result in results)


class Message(NamedTuple):
    """As Kafka delivers it."""

    offset: int
    timestamp: int
    value: bytes | None


_NEAR = {
    "log_id": st.text(max_size=3) | st.just("x" * 257) | st.none(),
    "occurred_at": st.datetimes().map(str) | st.datetimes(timezones=st.timezones()).map(lambda at: at.isoformat()),
    "agent_id": st.text(max_size=3),
    "question": st.text(max_size=3),
    "folder_id": st.text(max_size=3),
    "schema_version": st.integers(-1, 2) | st.floats() | st.text(max_size=1),
    "user_id": st.none() | st.text(max_size=3),
    "answer": st.none() | st.text(max_size=3) | st.integers(),
    "type": st.sampled_from(["chat_log", "chat_log_batch", "feedback", ""]),
    "cited_document_ids": st.lists(st.text(max_size=2) | st.integers(), max_size=2),
    "retrieved": st.lists(
        st.fixed_dictionaries(
            {
                "document_id": st.text(max_size=2),
                "folder_id": st.text(max_size=2),
                "rank": st.integers(-1, 2) | st.floats(),
            },
            optional={"score": _JSON, "text": st.none() | st.text(max_size=2)},
        ),
        max_size=2,
    ),
    "feedback": st.none()
    | st.fixed_dictionaries(
        {},
        optional={
            "rating": st.sampled_from(["like", "dislike", "meh", None]),
            "ratng": st.none() | st.just("like"),
            "correct_document_id": st.none() | st.text(max_size=2),
            "correct_folder_id": st.none() | st.text(max_size=2),
        },
    ),
}


@pytest.mark.slow
@given(changes=st.fixed_dictionaries({}, optional=_NEAR))
@settings(max_examples=examples(150), deadline=None)
def test_the_fast_decoder_accepts_nothing_that_the_contract_rejects(changes: dict[str, Any]) -> None:
    value = as_json(log(**changes))
    (result,) = decode(Topic.CHAT_LOGS, 1, value, Rules(NOON, Bounds()))
    try:
        expected = events.ChatLog.model_validate_json(value)
    except ValidationError:
        assert isinstance(result, Rejected)
        return
    if isinstance(result, StateRecord):
        kept = events.ChatLog.model_validate_json(encode(result.event))
        assert kept == expected
    else:
        assert not any("Input should be" in reason for reason in result.reasons)


@given(fields=_NEAR["feedback"])
@settings(max_examples=examples(150), deadline=None)
def test_both_decoders_take_the_same_verdicts(fields: dict[str, Any] | None) -> None:
    value = as_json(log(type="feedback", feedback_id="b", verdict=fields))
    (result,) = decode(Topic.FEEDBACK, 1, value, Rules(NOON, Bounds()))
    try:
        expected = events.Feedback.model_validate_json(value)
    except ValidationError:
        assert isinstance(result, Rejected)
        return
    assert isinstance(result, StateRecord)
    if isinstance(result.event, FeedbackTombstone):
        assert expected.verdict.is_retraction
    else:
        assert events.Feedback.model_validate_json(encode(result.event)) == expected


@given(
    changes=st.lists(st.fixed_dictionaries({}, optional=_NEAR), min_size=1, max_size=6),
    minutes=st.lists(st.integers(-20, 20), min_size=6, max_size=6),
    garbage=st.none() | st.binary(max_size=3),
    topic=st.sampled_from(DATA_TOPICS),
)
@settings(max_examples=examples(80), deadline=None)
def test_a_block_decodes_like_its_messages(
    changes: list[dict[str, Any]], minutes: list[int], garbage: bytes | None, topic: Topic
) -> None:
    values: list[bytes | None] = [as_json(log(**change)) for change in changes]
    values += [garbage, as_json(log(question="x" * 41)), as_json(log()), as_json(log(answer="x" * 5000))]
    times = [int((NOON + timedelta(minutes=more)).timestamp() * 1000) if more else 0 for more in minutes * 2]
    messages = [Message(at, time, value) for at, (time, value) in enumerate(zip(times, values, strict=False))]
    one_by_one = [result for message in messages for result in decode_block(topic, [message], BOUNDS)]
    assert decode_block(topic, messages, BOUNDS) == one_by_one


@pytest.mark.parametrize("timestamp", [-1, 0, 1_795_000_000, 1_795_000_000 * 10**6, 1_795_000_000 * 10**9, 1 << 62])
def test_only_milliseconds_of_this_century_are_a_time(timestamp: int) -> None:
    assert written_at(timestamp) is None
    assert written_at(1_795_000_000_000) == datetime.fromtimestamp(1_795_000_000, UTC)


@pytest.mark.parametrize("topic", DATA_TOPICS)
def test_a_record_without_a_time_is_rejected_alone(topic: Topic) -> None:
    at = int(NOON.timestamp() * 1000)
    messages = [Message(0, 0, as_json(log())), Message(1, at, as_json(log())), Message(2, at, None)]
    first, *others = decode_block(topic, messages, BOUNDS)
    assert isinstance(first, Rejected)
    assert first.reasons[0].startswith("timestamp: neither this record nor one before it")
    assert others == decode_block(topic, messages[1:], BOUNDS)


def test_the_number_of_logs_in_an_envelope_is_bounded() -> None:
    value = b'{"type": "chat_log_batch", "folder_id": "f", "logs": [' + b"0," * 6000 + b"0]}"
    (result,) = decode(Topic.CHAT_LOGS, 7, value, Rules(NOON, Bounds()))
    assert isinstance(result, Rejected)
    assert result.reasons == ("logs: 6001, at most 5000",)


@pytest.mark.parametrize("topic", DATA_TOPICS)
@pytest.mark.parametrize("depth", [500, 1_000, 50_000])
def test_deep_nesting_is_rejected(topic: Topic, depth: int) -> None:
    for frame in ('{"type":"chat_log","x":%s}', '{"type":"chat_log_batch","folder_id":"f","logs":[{"x":%s}]}'):
        value = (frame % ("[" * depth + "]" * depth)).encode()
        message = SimpleNamespace(offset=0, value=value, timestamp=int(NOON.timestamp() * 1000))
        (result,) = decode_block(topic, [message], Bounds())
        assert isinstance(result, Rejected)


def test_the_number_of_reasons_is_bounded() -> None:
    passages = ",".join(["{}"] * 100_000)
    value = f'{{"type":"chat_log","retrieved":[{passages}]}}'.encode()
    message = SimpleNamespace(offset=0, value=value, timestamp=int(NOON.timestamp() * 1000))
    (result,) = decode_block(Topic.CHAT_LOGS, [message], Bounds())
    assert isinstance(result, Rejected)
    assert len(result.reasons) <= 20


UNKNOWN = (
    b'"unknown": ' + b"1" * 5_000,
    b'"unknown": 1e400',
    b'"unknown": {"a": [' + b"-" + b"9" * 5_000 + b"]}",
    b'"unknown": "\xff\xfe"',
    b'"unknown": "\\ud800"',
    b'"\xff": 1',
    b'"' + b"k" * 3_000 + b'": 1',
    b'"unknown": ' + b"[" * 900 + b"]" * 900,
)
PLAIN = (
    (Topic.CHAT_LOGS, log()),
    (Topic.CHAT_LOGS, {"type": "chat_log_batch", "folder_id": "f", "logs": [log(), log(log_id="l2")]}),
    (Topic.DOCUMENTS, log(type="document_upserted", document_id="d", text="words")),
    (Topic.FEEDBACK, log(type="feedback", feedback_id="b", verdict={"rating": "like"})),
    (Topic.ERASURES, log(type="erasure_requested", erasure_id="e", subject="user", subject_id="u")),
)


@pytest.mark.parametrize("unknown", UNKNOWN, ids=range(len(UNKNOWN)))
@pytest.mark.parametrize(("topic", "plain"), PLAIN, ids=[str(number) for number in range(len(PLAIN))])
def test_nothing_of_an_unknown_field_is_stored(topic: Topic, plain: dict[str, Any], unknown: bytes) -> None:
    """What the fast decoder does not look into can harm neither an export nor another reader of the state."""
    value = as_json(plain)
    for changed in (b"{" + unknown + b", " + value[1:], value.replace(b'{"log_id"', b"{" + unknown + b', "log_id"')):
        results = decoded(changed, topic)
        records = [result for result in results if isinstance(result, StateRecord)]
        expected = [replace(record, size=0) for record in decoded(plain, topic) if isinstance(record, StateRecord)]
        stored = [record for _, content in pack(topic, records) for record in unpack(content)]
        assert [replace(record, size=0) for record in stored] in (expected, [])
        assert len(records) == len(results) or not records
