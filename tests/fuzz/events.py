"""Random events at and over every bound, and what is to become of each."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from foldtune import events
from foldtune.bounds import Bounds, Rules, violations
from foldtune.kafka import partition_of
from foldtune.knobs import MAX_NAMED, ModelName
from foldtune.topics import DATA_TOPICS, KEYED_BY_FOLDER, Topic

PARTITIONS = 4
# One of each partition.
MODELS = {partition_of(name, PARTITIONS): name for name in "jihgfedcba"}
CODECS = (None, "gzip", "snappy", "lz4", "zstd")
PAST, FUTURE = "2025-01-01T00:00:00Z", "2150-01-01T00:00:00Z"
_BOUNDS = Bounds()
_RULES = Rules(datetime(2026, 1, 1, tzinfo=UTC), _BOUNDS)
_MAX_REQUEST = 256 * 1024
# Tokens that json.dumps does not write.
_DIGITS = b"1" * 5_000
_RAW = {"@nan": "NaN", "@inf": "-Infinity", "@huge": "1e400", "@digits": _DIGITS.decode(), "@surrogate": '"\\ud800"'}
_RAW |= {"@deep": "[" * 10_000 + "]" * 10_000, "@unclosed": "[" * 10_000}
_NUMBERS = (None, True, -1, 0, 1.5, 2**31, 2**63 - 1, 2**63)
_TEXTS = ("", " ", "\0", "\x1b[2J", "../../etc", "hf://org/name", "🗂" * 256, "é" * 257)
_LONG = tuple("x" * length for length in (4_096, 4_097, 70_000))
_TIMES = (FUTURE, "1969-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59")
_NESTED: tuple[Any, ...] = ([], {}, [None], ["x"] * (MAX_NAMED + 1), {"k" * 50_000: 1})
_PLAIN: tuple[Any, ...] = (*_NUMBERS, *_TEXTS, *_LONG, *_TIMES, *_NESTED)
_ODD = (*_RAW, *_PLAIN)


class _Ids(BaseModel):
    request_id: events.RequestId
    model: ModelName
    type: object = ""
    schema_version: object = 1


@dataclass(frozen=True)
class Case:
    """One record, and what must become of it.

    ``answer`` is the topic and the ids of what must be published for it: the end of a request or job, or a part.
    """

    topic: Topic
    partition: int
    value: bytes | None
    # Dead letters; ``None``: one, or it is stored.
    letters: int | None
    key: bytes | None = None
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    timestamp: int | None = None
    codec: str | None = None
    answer: tuple[str, ...] | None = None
    # Events of the data topics that are stored.
    stored: int = 0


_COMMANDS: TypeAdapter[Any] = TypeAdapter(
    Annotated[events.SnapshotCommand | events.TrainingFinished, Field(discriminator="type")]
)
# Requests are judged by ``_fate``.
CONTRACTS: dict[Topic, TypeAdapter[Any]] = {
    Topic.FINE_TUNE_REQUESTS: TypeAdapter(events.FineTuneRequested),
    Topic.CHAT_LOGS: TypeAdapter(events.ChatLog),
    Topic.DOCUMENTS: TypeAdapter(
        Annotated[events.DocumentUpserted | events.DocumentDeleted, Field(discriminator="type")]
    ),
    Topic.FEEDBACK: TypeAdapter(events.Feedback),
    Topic.ERASURES: TypeAdapter(events.ErasureRequested),
    Topic.SNAPSHOT_COMMANDS: _COMMANDS,
    Topic.SNAPSHOT_PARTS: TypeAdapter(events.SnapshotPart),
    Topic.TRAINING_REPORTS: TypeAdapter(events.FineTuneStatus),
    Topic.TRAINING_PROGRESS: TypeAdapter(events.TrainingProgressed),
    Topic.TRAINING_JOBS: TypeAdapter(events.TrainingJob),
}


def _valid_event(topic: Topic, value: bytes) -> Any:
    """By the contract, not by the decoders of the worker; ``None`` of an invalid one."""
    if topic in DATA_TOPICS:
        # Pydantic takes no longer number, even of a field that it does not know; the state's decoder skips that field.
        value = value.replace(_DIGITS, _DIGITS[:4_000])
    try:
        event = CONTRACTS[topic].validate_json(value)
    except ValidationError:
        return None
    if topic in DATA_TOPICS:
        return None if any(violations(event, _RULES)) else event
    known = not hasattr(event, "partition") or topic is Topic.SNAPSHOT_COMMANDS or event.partition < PARTITIONS
    return event if known else None


class Generator:
    """Events of all topics, of one seed."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._number = 0

    def case(self, topic: Topic) -> Case:
        """A random record of a topic, valid or not."""
        name = self._name()
        good = self._valid(topic, name)
        if topic is Topic.CHAT_LOGS and self._random.random() < 0.1:
            return self._envelope(name)
        chance = self._random.random()
        # A valid job would be run.
        if chance < 0.3 and topic is not Topic.TRAINING_JOBS:
            value: bytes | None = self._text(good)
        elif chance < 0.9:
            value = self._text(self._mutated(good))
        else:
            value = self._bytes(self._text(good))
        return self._case(topic, name, value)

    def good_cases(self, partition: int) -> list[Case]:
        """A valid event for each of the worker's consumers, which costs it little."""
        name = self._name()
        ids = {"request_id": name, "model": MODELS[partition]}
        log = self._valid(Topic.CHAT_LOGS, name) | {"folder_id": MODELS[partition]}
        cancelled = {"type": "fine_tune_cancelled", "requested_at": PAST, **ids}
        return [
            Case(Topic.CHAT_LOGS, partition, self._text(log), 0, stored=1),
            Case(Topic.FINE_TUNE_REQUESTS, partition, self._text(cancelled), 0),
            Case(Topic.SNAPSHOT_COMMANDS, partition, self._text({"type": "training_finished", **ids}), 0),
        ]

    def job_without_snapshot(self) -> Case:
        """A valid job, which its trainer cannot carry out."""
        name = self._name()
        job = self._valid(Topic.TRAINING_JOBS, name)
        job["snapshot_uri"] = f"s3://foldtune/snapshots/{name}/manifest.json"
        answer = (Topic.TRAINING_REPORTS.label, job["request"]["model"], name)
        return Case(Topic.TRAINING_JOBS, 0, self._text(job), 0, answer=answer)

    def _case(self, topic: Topic, name: str, value: bytes | None) -> Case:
        partition, answer, stored = self._random.randrange(PARTITIONS), None, 0
        letters: int | None = 0
        if topic is Topic.FINE_TUNE_REQUESTS:
            letters, ids, ends = self._fate(value)
            # By its model: elsewhere it would be passed on, as another record.
            partition = partition_of(ids.model, PARTITIONS) if ids else partition
            answer = (Topic.FINE_TUNE_STATUS.label, ids.model, ids.request_id) if ids and ends else None
        elif value is None:
            # Without a value a record of a control topic means nothing.
            letters = int(topic in {*DATA_TOPICS, Topic.SNAPSHOT_COMMANDS, Topic.TRAINING_JOBS})
        else:
            large = topic in DATA_TOPICS and len(value) > _BOUNDS.event_bytes
            event = None if large else _valid_event(topic, value)
            letters = int(event is None)
            if event and topic in KEYED_BY_FOLDER:
                partition = self._partition(event.folder_id)
                letters = int(partition != partition_of(event.folder_id, PARTITIONS))
            stored = int(topic in DATA_TOPICS and not letters)
            if topic in DATA_TOPICS and event is None and not large and b'unknown": ' in value:
                # The worker's fast decoder does not look into fields that it does not know.
                letters = None
            if isinstance(event, events.SnapshotCommand):
                answer = (Topic.SNAPSHOT_PARTS.label, event.request.request_id, str(partition))
        fields = self._envelope_fields(name)
        return Case(topic, partition, value, letters, answer=answer, stored=stored, **fields)

    def _partition(self, folder_id: str) -> int:
        """Mostly that of the folder, as by the murmur2 partitioner; sometimes any."""
        any_partition = self._random.randrange(PARTITIONS)
        return any_partition if self._random.random() < 0.1 else partition_of(folder_id, PARTITIONS)

    @staticmethod
    def _fate(value: bytes | None) -> tuple[int, _Ids | None, bool]:
        """Of a record of ``fine-tune-requests``: dead letters, its ids, and whether these must get an end."""
        if value is None:
            return 0, None, False
        try:
            ids = _Ids.model_validate_json(value)
        except ValidationError:
            return 1, None, False
        if ids.type != "fine_tune_cancelled":
            # Of a newer release: it waits in the dead letters, and has no end.
            newer = isinstance(ids.schema_version, int) and ids.schema_version > events.SCHEMA_VERSION
            return int(newer), ids, not newer
        try:
            events.FineTuneCancelled.model_validate_json(value)
        except ValidationError:
            return 1, ids, False
        return 0, ids, False

    def _envelope(self, name: str) -> Case:
        """A batch of logs, of which some are invalid: each of these is a dead letter."""
        logs = [self._valid(Topic.CHAT_LOGS, f"{name}-{number}") for number in range(self._random.randint(1, 20))]
        logs = [self._mutated(log, unknown=_PLAIN) if self._random.random() < 0.3 else log for log in logs]
        value = self._text({"type": "chat_log_batch", "folder_id": "f", "logs": logs})
        if len(value) > _BOUNDS.event_bytes or not self._readable(value):
            # One dead letter for all.
            return self._case(Topic.CHAT_LOGS, name, value)
        texts = [self._text(log) for log in logs]
        read = [_valid_event(Topic.CHAT_LOGS, text) for text in texts]
        good = sum(log is not None and log.folder_id == "f" for log in read)
        partition = self._partition("f")
        fields = self._envelope_fields(name)
        if good and partition != partition_of("f", PARTITIONS):
            # One dead letter for all.
            return Case(Topic.CHAT_LOGS, partition, value, 1, **fields)
        return Case(Topic.CHAT_LOGS, partition, value, len(logs) - good, stored=good, **fields)

    @staticmethod
    def _readable(value: bytes) -> bool:
        try:
            json.loads(value)
        except (ValueError, RecursionError):
            return False
        return True

    def _envelope_fields(self, name: str) -> dict[str, Any]:
        """Key, headers, timestamp and codec, as odd as a producer may choose them."""
        keys = (None, b"", b"\xff", name.encode(), b"k" * 300)
        headers: list[list[tuple[str, bytes]]] = [[], [("", b"")], [("foldtune-letter", b"\xff")]]
        headers.append([("h", b"x" * 9_000)])
        large = self._random.random() < 0.02
        return {
            "key": b"k" * 100_000 if large else self._random.choice(keys),
            "headers": self._random.choice(headers),
            "timestamp": self._random.choice((None, None, 0, 1_735_689_600_000)),
            "codec": self._random.choice(CODECS),
        }

    def _mutated(self, event: dict[str, Any], unknown: Sequence[Any] = _ODD) -> dict[str, Any]:
        """The event with some fields replaced, removed or added, at any depth."""
        changed: dict[str, Any] = json.loads(json.dumps(event))
        for _ in range(self._random.choice((1, 1, 1, 2, 5))):
            place: Any = changed
            while isinstance(place, dict) and place and self._random.random() < 0.4:
                inner = place[self._random.choice(sorted(place))]
                if not isinstance(inner, dict) or not inner:
                    break
                place = inner
            name = self._random.choice([*sorted(place), "unknown"])
            if self._random.random() < 0.15:
                place.pop(name, None)
            else:
                place[name] = deepcopy(self._random.choice(unknown if name == "unknown" else _ODD))
        return changed

    def _bytes(self, text: bytes) -> bytes | None:
        """What is no event at all, or only with a different encoding; the largest only fits in compressed."""
        noise = bytes(self._random.randrange(256) for _ in range(200))
        broken = (text[: len(text) // 2], text + text, text.replace(b': "', b': "\xff', 1), b"\xef\xbb\xbf" + text)
        large = (b"[" * 100_000, b"x" * 600_000, b"v" * 1_900_000)
        unknown = (b'{"unknown": "\xff\xfe", ' + text[1:], b'{"\xffunknown": 1, ' + text[1:])
        spelled = (b"  " + text + b"\n", text.decode(errors="replace").encode("utf-16"))
        return self._random.choice((None, b"", b"null", b"[]", noise, *broken, *large, *unknown, *spelled))

    @staticmethod
    def _text(event: dict[str, Any]) -> bytes:
        text = json.dumps(event)
        for name, token in _RAW.items():
            text = text.replace(json.dumps(name), token)
        return text.encode()

    def _name(self) -> str:
        self._number += 1
        return f"n{self._number}"

    def _valid(self, topic: Topic, name: str) -> dict[str, Any]:
        choice = self._random.choice
        ids = {"request_id": name, "model": choice(tuple(MODELS.values()))}
        passage = {"document_id": "d", "folder_id": "f", "rank": 1, "score": 0.5, "text": "t"}
        reasons = ["r" * 2_000] * choice((0, 100))
        agents = {"folders": ["f"], "agents": ["x" * 256] * choice((1, 500))}
        data = choice((agents, {"folders": [f"{number}" for number in range(MAX_NAMED)]}, {}))
        request = {"requested_at": events.now().isoformat(), "data": data, "seed": choice((0, 2**63 - 1)), **ids}
        requested = {"type": "fine_tune_requested", "requested_by": "fuzz", "training": {"epochs": 1}, **request}
        earlier = {"request_id": f"n{self._number - 5}", "model": ids["model"]}
        cancelled = {"type": "fine_tune_cancelled", "requested_at": PAST, **earlier}
        issued_at = choice((events.now().isoformat(), PAST))
        command = {"type": "snapshot_command", "request": request, "partition": 0, "issued_at": issued_at}
        event: dict[Topic, dict[str, Any]] = {
            Topic.CHAT_LOGS: {
                "type": "chat_log",
                "log_id": name,
                "agent_id": "agent",
                "question": "q" * choice((1, 100, 4_096)),
                "retrieved": [passage] * choice((1, 100)),
                "feedback": {"rating": "like"},
            },
            Topic.DOCUMENTS: {"type": "document_upserted", "document_id": name, "text": "t" * choice((1, 999, 65_536))},
            Topic.FEEDBACK: {"type": "feedback", "feedback_id": name, "log_id": "n1", "verdict": {"rating": "dislike"}},
            Topic.ERASURES: {
                "type": "erasure_requested",
                "erasure_id": name,
                "subject": choice(("user", "log", "conversation", "agent", "document", "folder")),
                "subject_id": f"nobody-{name}",
            },
            Topic.FINE_TUNE_REQUESTS: choice((*[requested] * 9, cancelled)),
            Topic.SNAPSHOT_COMMANDS: choice(({"type": "training_finished", **ids}, command)),
            Topic.SNAPSHOT_PARTS: {
                "type": "snapshot_part",
                "partition": 1,
                "error": "e" * 5_000,
                "left_out": {"no label": 1},
                "positives": 30,
                "agents": ["x"] * choice((0, 2_000)),
                **ids,
            },
            Topic.TRAINING_REPORTS: {
                "state": choice(("running", "failed")),
                "at": PAST,
                "reasons": reasons,
                "warnings": reasons,
                **ids,
            },
            Topic.TRAINING_PROGRESS: {
                "type": "training_progressed",
                "model": "c",
                "partition": 1,
                "new_examples": 1,
                "trained_request_id": name,
            },
            Topic.TRAINING_JOBS: {
                "type": "training_job",
                "request": {"requested_at": PAST, **ids},
                "base_model": {"uri": "hf://org/name"},
                "snapshot_uri": "not on S3",
                "snapshot_sha256": "0" * 64,
                "output_uri": "s3://foldtune/models/x",
                "version": "1",
                "published_at": PAST,
                "max_seconds": 60,
            },
        }
        common = {"folder_id": "f", "occurred_at": PAST} if topic in DATA_TOPICS else {}
        return event[topic] | common


def http_call(random: Random) -> tuple[bytes, bool]:
    """The bytes of one call of the HTTP API, and whether it is a valid request."""
    good, values = (
        b'{"model":"d"}',
        (b'"seed":%s' % (b"1" * 5_000), b'"seed":NaN', b'"x":1', b'"%s":1' % (b"k" * 5_000)),
    )
    fields: tuple[bytes, ...] = (*values, b'"request_id":"\\ud800"', b'"data":{"folders":[%s"x"]}' % (b'"x",' * 20_000))
    bodies = (good, *(good[:-1] + b"," + value + b"}" for value in fields), b"", b"{", b"[]", b"\xff", b"[" * 100_000)
    body = random.choice((good, *bodies, b"x" * (256 * 1024 + 1)))
    long = (b"/" + b"x" * 9_000, b"/requests?a=" + b"%ff" * 900)
    target = random.choice((*[b"/requests"] * 4, b"/requests/%ff%00", *long))
    method = random.choice((*[b"POST"] * 4, b"GET", b"DELETE", b"\xff"))
    users = (b"X-Forwarded-User: \xff\xfe\r\n", b"X-Forwarded-User: " + b"u" * 5_000 + b"\r\n")
    headers = random.choice((b"", *users, b"H: " + b"h" * 9_000 + b"\r\n"))
    host, kind = random.choice((b"127.0.0.1",) * 9 + (b"x",)), random.choice((b"application/json",) * 9 + (b"a/b",))
    if random.random() < 0.2:
        body, method, target, headers, host, kind = good, b"POST", b"/requests", b"", b"127.0.0.1", b"application/json"
    head = b"%s %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\n%sContent-Length: %d\r\n" % (
        *(method, target, host, kind, headers),
        len(body),
    )
    valid = body == good and method == b"POST" and target.startswith(b"/requests") and target != b"/requests/%ff%00"
    valid = valid and host != b"x" and kind != b"a/b"
    return head + b"Connection: close\r\n\r\n" + body, valid and not headers.startswith(b"H")
