"""A seeded, continuous stream of the events of agents, users and administrators, and a simulated trainer."""

import random
import threading
import time
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Literal

from tenacity import retry, retry_if_exception_type, stop_after_delay

from foldtune.errors import NoBrokerError, PublishError
from foldtune.events import (
    ChatLog,
    ChatLogBatch,
    DocumentDeleted,
    DocumentUpserted,
    ErasureRequested,
    Event,
    Feedback,
    FineTuneCancelled,
    FineTuneRequested,
    FineTuneStatus,
    Rating,
    RetrievedPassage,
    State,
    TrainingJob,
    Verdict,
    now,
)
from foldtune.kafka import Publisher, consumer
from foldtune.knobs import DataSelection, TrainingKnobs
from foldtune.settings import Settings
from foldtune.topics import Topic

FOLDERS = tuple(f"folder {number}/ü" for number in range(12))
MODELS = tuple(f"model-{number}" for number in range(5))
# These exceed their limit many times over; in unbounded folders a loss at any time is visible at the end.
BOUNDED_FOLDERS = FOLDERS[:3]
MAX_EXAMPLES = 300
POISON = (b"\xff\x00 %d", b"{ %d", b'{"type": "chat_log", "log_id": %d}', b"[%d]")
_TICK_SECONDS = 0.1
_REQUEST_EVERY = 15

_SHARES = {"log": 55, "envelope": 2, "update": 3, "feedback": 15, "document": 15, "deletion": 3, "erasure": 1}
Sent = tuple[Topic, Event, str]
# An id names a request only together with its model: each id is used for two models.
RequestKey = tuple[str, str]
UNKNOWN_FOLDER = "no such folder"


class Traffic(threading.Thread):
    """Publishes until ``done`` is set; ``acknowledged`` holds ids of stored logs, ``requested`` the requests."""

    def __init__(self, settings: Settings, seed: int) -> None:
        super().__init__(name="traffic", daemon=True)
        self.acknowledged: set[str] = set()
        self.requested: dict[RequestKey, FineTuneRequested] = {}
        self.cancelled: set[RequestKey] = set()
        # What the broker has for sure, and what it was sent: it may have that too.
        self.poison: set[bytes] = set()
        self.maybe_poison: set[bytes] = set()
        self.done = threading.Event()
        # Held while nothing may be published to the data topics.
        self.lock = threading.Lock()
        self._settings = settings
        self._random = random.Random(seed)
        self._recent: list[Sent] = []
        self._number = 0
        self._request_number = 0

    def run(self) -> None:
        tick = 0
        with Publisher(self._settings.kafka) as publisher:
            # Enough for a training, so that a request for a known folder has no reason to be rejected.
            self._send(publisher, [(Topic.CHAT_LOGS, self._first_logs(folder), folder) for folder in FOLDERS])
            while not self.done.is_set():
                self._send(publisher, [self._event() for _ in range(self._random.randrange(30))])
                if tick % _REQUEST_EVERY == 0:
                    self._publish_request(publisher)
                tick += 1
                time.sleep(_TICK_SECONDS)

    def publish_duplicates(self) -> None:
        """Publish recent events and requests again, as a producer does that missed the acknowledgement."""
        known = list(self.requested.values())
        requests = self._random.sample(known, min(3, len(known)))
        with self.connect() as publisher:
            again = [(Topic.FINE_TUNE_REQUESTS, request, request.model) for request in requests]
            self._send(publisher, [*self._recent[-200:], *again])

    def publish_poison(self) -> None:
        """Publish undecodable values to three topics."""
        sent = set()
        with self.connect() as publisher, self.lock, suppress(PublishError):
            for topic in (Topic.CHAT_LOGS, Topic.DOCUMENTS, Topic.FEEDBACK):
                for template in POISON:
                    value = template % self._random.randrange(10**9)
                    self.maybe_poison.add(value)
                    publisher.send_raw(topic, value, key=self._random.choice(FOLDERS))
                    sent.add(value)
            publisher.flush()
            self.poison |= sent

    @retry(retry=retry_if_exception_type(NoBrokerError), stop=stop_after_delay(120))
    def connect(self) -> Publisher:
        """A publisher; waits up to two minutes for the broker."""
        return Publisher(self._settings.kafka)

    def _send(self, publisher: Publisher, events: list[Sent]) -> None:
        with self.lock:
            self._publish(publisher, events)

    def _publish(self, publisher: Publisher, events: list[Sent]) -> None:
        try:
            for topic, event, key in events:
                if topic is Topic.ERASURES:
                    publisher.broadcast(topic, event)
                else:
                    publisher.send(topic, event, key=key)
            publisher.flush()
        except PublishError:
            # Unacknowledged: the reference model counts what the broker has stored, and the rest is not expected.
            return
        for _, event, _ in events:
            match event:
                case ChatLog():
                    self.acknowledged.add(event.log_id)
                case ChatLogBatch():
                    self.acknowledged |= {log.log_id for log in event.logs}
        self._recent = [*self._recent, *events][-1000:]

    def _first_logs(self, folder: str) -> ChatLogBatch:
        numbers = range(self._number + 1, self._number + 61)
        self._number = numbers[-1]
        return ChatLogBatch(folder_id=folder, logs=tuple(self._log(folder, f"log-{number:07}") for number in numbers))

    def _event(self) -> Sent:  # noqa: PLR0911  one for each kind
        folder = self._random.choice(FOLDERS)
        match self._random.choices(tuple(_SHARES), tuple(_SHARES.values()))[0]:
            case "log":
                self._number += 1
                return Topic.CHAT_LOGS, self._log(folder, f"log-{self._number:07}"), folder
            case "envelope":
                numbers = range(self._number + 1, self._number + self._random.randint(2, 20))
                self._number = numbers[-1]
                logs = tuple(self._log(folder, f"log-{number:07}") for number in numbers)
                return Topic.CHAT_LOGS, ChatLogBatch(folder_id=folder, logs=logs), folder
            case "update":
                # A known log id with other content and time.
                known = f"log-{self._random.randint(max(1, self._number - 300), self._number + 1):07}"
                return Topic.CHAT_LOGS, self._log(folder, known), folder
            case "feedback":
                return Topic.FEEDBACK, self._feedback(folder), folder
            case "document":
                name = f"d{self._random.randrange(40)}"
                text = f"Text {self._random.randrange(10_000)} of {name}."
                title = self._random.choice(("", f"Title of {name}"))
                document = DocumentUpserted(
                    document_id=name, folder_id=folder, occurred_at=self._event_time(), title=title, text=text
                )
                return Topic.DOCUMENTS, document, folder
            case "deletion":
                name = f"d{self._random.randrange(40)}"
                return (
                    Topic.DOCUMENTS,
                    DocumentDeleted(document_id=name, folder_id=folder, occurred_at=self._event_time()),
                    folder,
                )
            case _:
                subjects: dict[Literal["user", "conversation", "log", "document"], str] = {
                    "user": f"u{self._random.randrange(200)}",
                    "conversation": f"c{self._random.randrange(200)}",
                    "log": f"log-{self._random.randint(1, self._number + 20):07}",
                    "document": f"d{self._random.randrange(400)}",
                }
                subject, name = self._random.choice(tuple(subjects.items()))
                erasure = ErasureRequested(
                    erasure_id=f"e{self._random.randrange(10**9)}",
                    occurred_at=self._event_time(),
                    subject=subject,
                    subject_id=name,
                    folder_id=folder if self._random.random() < 0.5 else None,
                )
                return Topic.ERASURES, erasure, ""

    def _log(self, folder: str, log_id: str) -> ChatLog:
        chance = self._random.random
        retrieved = tuple(
            RetrievedPassage(
                document_id=f"d{name}",
                folder_id=folder if chance() < 0.9 else self._random.choice(FOLDERS),
                rank=rank,
                score=chance() if chance() < 0.5 else None,
                text=f"Passage {self._random.randrange(1000)}, ä" if chance() < 0.3 else None,
            )
            for rank, name in enumerate(self._random.sample(range(40), 4), start=1)
        )
        shown = [passage.document_id for passage in retrieved]
        return ChatLog(
            log_id=log_id,
            occurred_at=self._event_time(),
            agent_id=self._random.choice(("agent", "agent b", "ägent")),
            conversation_id=f"c{self._random.randrange(200)}" if chance() < 0.5 else None,
            user_id=f"u{self._random.randrange(200)}" if chance() < 0.9 else None,
            question=f"Question {self._random.randrange(100_000)}?",
            answer="So it is. " * self._random.randrange(300),
            folder_id=folder,
            retrieved=retrieved,
            # Mostly one of those shown; several, in another order, or one that was not shown.
            cited_document_ids=tuple(self._random.sample([*shown, "d40"], self._random.choice((0, 1, 1, 1, 2, 3)))),
            feedback=self._verdict() if chance() < 0.1 else None,
        )

    def _feedback(self, folder: str) -> Feedback:
        number = self._random.randint(max(1, self._number - 500), self._number + 20)
        return Feedback(
            feedback_id=f"f{self._random.randrange(10**9)}",
            occurred_at=self._event_time(),
            log_id=f"log-{number:07}",
            folder_id=folder,
            verdict=self._verdict(),
        )

    def _verdict(self) -> Verdict:
        correct = f"d{self._random.randrange(40)}"
        return self._random.choice(
            (
                Verdict(rating=Rating.LIKE),
                Verdict(rating=Rating.DISLIKE),
                Verdict(correct_document_id=correct),
                Verdict(rating=Rating.LIKE, correct_document_id=correct),
            )
        )

    def _event_time(self) -> datetime:
        return now() - timedelta(seconds=self._random.random() * 20 * 24 * 3600)

    def _publish_request(self, publisher: Publisher) -> None:
        number, self._request_number = self._request_number, self._request_number + 1
        request_id, model = f"r-{number // 2}", MODELS[(number // 2 + number % 2) % len(MODELS)]
        folders = tuple(self._random.sample(FOLDERS, self._random.randint(1, 4)))
        if self._random.random() < 0.3:
            folders = (*folders, UNKNOWN_FOLDER)
        request = FineTuneRequested(
            request_id=request_id,
            model=model,
            requested_at=now(),
            data=DataSelection(folders=folders),
            training=TrainingKnobs(epochs=self._random.choice((1, 2, 3))),
        )
        key = (model, request_id)
        try:
            publisher.publish(Topic.FINE_TUNE_REQUESTS, request, key=model)
            self.requested[key] = request
            if self._random.random() < 0.2:
                # Before it is acknowledged: the broker may have it even if it does not say so.
                self.cancelled.add(key)
                cancel = FineTuneCancelled(request_id=request_id, model=model, requested_at=now())
                publisher.publish(Topic.FINE_TUNE_REQUESTS, cancel, key=model)
        except PublishError:
            return


class Trainer(threading.Thread):
    """Simulates launcher and trainer: runs every job once and reports its states.

    A ``second`` one is a trainer that comes back and knows nothing of the first: it reports every job again, from the
    beginning, and with another end.
    """

    def __init__(self, settings: Settings, *, second: bool = False) -> None:
        super().__init__(name="trainer", daemon=True)
        self.jobs: dict[RequestKey, TrainingJob] = {}
        # Address and digest that each job names; a request may have a second job, which no launcher starts.
        self.snapshots: set[tuple[str, str]] = set()
        self.reported: dict[RequestKey, State] = {}
        self.done = threading.Event()
        self._settings = settings
        self.second = second

    def run(self) -> None:
        kafka = self._settings.kafka
        while not self.done.is_set():
            with suppress(NoBrokerError), Publisher(kafka) as publisher, consumer(kafka, Topic.TRAINING_JOBS) as jobs:
                while not self.done.is_set():
                    for records in jobs.poll(timeout_ms=200).values():
                        for record in records:
                            self._train(TrainingJob.model_validate_json(record.value), publisher)

    def _train(self, job: TrainingJob, publisher: Publisher) -> None:
        request = job.request
        key = (request.model, request.request_id)
        self.snapshots.add((job.snapshot_uri, job.snapshot_sha256))
        if self.jobs.setdefault(key, job) is not job:
            return
        fails = (request.training.epochs == 3) != self.second
        self.reported[key] = State.FAILED if fails else State.COMPLETED
        for state in (State.SUBMITTED, State.RUNNING, self.reported[key]):
            report = FineTuneStatus(request_id=request.request_id, model=request.model, state=state, at=now())
            while not (self.second and self.done.is_set()):
                with suppress(PublishError):
                    publisher.publish(
                        Topic.TRAINING_REPORTS, report, key=request.request_id, partition_by=request.model
                    )
                    break
