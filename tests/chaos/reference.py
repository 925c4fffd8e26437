"""The reference model of the training sets: plain dictionaries and sorting over all records of the topics."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from foldtune.settings import Settings
from foldtune.topic_reader import read
from foldtune.topics import DATA_TOPICS, Topic
from tests.chaos.losses import Losses
from tests.chaos.traffic import BOUNDED_FOLDERS, MAX_EXAMPLES

# Beside the folders.
LEFT_OUT = "(left out)"
_STRENGTHS = {"corrected": 1.0, "liked": 1.0, "cited": 0.6, "disliked": 0.0}
Json = dict[str, Any]


@dataclass
class FolderContent:
    """All fields of a folder's examples, oldest log first, and of its documents by id."""

    rows: list[Json] = field(default_factory=list)
    documents: dict[str, Any] = field(default_factory=dict)


class History:
    """The latest version of every valid event of the data topics."""

    def __init__(self, settings: Settings, losses: Losses) -> None:
        self.logs: set[str] = set()
        # By partition: an erasure is published to each, and a broker may take some of these records only.
        self._erased: dict[tuple[int, str, str, str | None], datetime] = {}
        self._future = settings.bounds.future
        self._partitions: dict[str, int] = {}
        self._latest: dict[tuple[str, str, str], tuple[datetime, Json]] = {}
        for taken in losses.read:
            self._add(taken.topic, taken.partition, taken.value)
        for topic in DATA_TOPICS:
            for record in read(settings.kafka, topic):
                self._add(topic, record.partition, record.value)

    def expected(self) -> dict[str, FolderContent]:
        """The content of every folder, and below ``LEFT_OUT`` how many logs teach nothing, by reason."""
        contents: dict[str, FolderContent] = defaultdict(FolderContent)
        left_out: Counter[str] = Counter()
        deleted: dict[str, set[str]] = defaultdict(set)
        for (kind, folder, name), (moment, event) in sorted(self._latest.items(), key=lambda item: item[0]):
            if kind != "document":
                continue
            if event["type"] == "document_deleted" or self._covers(folder, kind, name, moment):
                deleted[folder].add(name)
            else:
                contents[folder].documents[name] = {"title": event.get("title", ""), "text": event["text"]}
        for folder in {folder for kind, folder, _ in self._latest if kind == "log"}:
            verdicts = self._newest("feedback", folder, 2 * MAX_EXAMPLES)
            for log in self._newest("log", folder, MAX_EXAMPLES).values():
                subjects = (("log", "log_id"), ("user", "user_id"), ("conversation", "conversation_id"))
                if any(self._covers(folder, subject, log.get(key), event_time(log)) for subject, key in subjects):
                    continue
                row = self._row(log, self._verdict(log, verdicts.get(log["log_id"])))
                if row is None:
                    left_out["no label"] += 1
                elif (row := _without_deleted(row, deleted[folder])) is None:
                    left_out["document deleted"] += 1
                else:
                    contents[folder].rows.append(row)
        contents[LEFT_OUT].documents = dict(left_out)
        return contents

    def _covers(
        self, folder: str, subject: str, name: str | None, moment: datetime, passage_folder: str | None = None
    ) -> bool:
        """Whether an erasure covers what occurred in a folder at a moment: of logs, by clocks that may be ahead."""
        if name is None:
            return False
        ahead = timedelta(0) if subject == "document" and passage_folder is None else self._future
        partition = self._partitions[folder]
        times = [self._erased.get((partition, subject, name, other)) for other in (None, passage_folder or folder)]
        return any(until is not None and moment - ahead <= until for until in times)

    def _newest(self, kind: str, folder: str, limit: int) -> dict[str, Json]:
        """The newest events by log id, oldest first; ``limit`` applies to bounded folders only."""
        events = [event for key, (_, event) in self._latest.items() if key[:2] == (kind, folder)]
        events.sort(key=lambda event: (event_time(event), event["log_id"]))
        return {event["log_id"]: event for event in (events[-limit:] if folder in BOUNDED_FOLDERS else events)}

    def _add(self, topic: Topic, partition: int, value: bytes | None) -> None:
        try:
            content = json.loads(value or b"")
            events = content["logs"] if content["type"] == "chat_log_batch" else [content]
            for event in events:
                self._add_event(topic, partition, event, event_time(event))
        except (ValueError, KeyError, TypeError):
            return

    def _add_event(self, topic: Topic, partition: int, event: Json, occurred_at: datetime) -> None:
        if topic is Topic.ERASURES:
            subject = (partition, event["subject"], event["subject_id"], event.get("folder_id"))
            self._erased[subject] = max(occurred_at, self._erased.get(subject, occurred_at))
            return
        kind, name = {
            Topic.CHAT_LOGS: ("log", "log_id"),
            Topic.FEEDBACK: ("feedback", "log_id"),
            Topic.DOCUMENTS: ("document", "document_id"),
        }[topic]
        self._partitions[event["folder_id"]] = partition
        if kind == "log":
            self.logs.add(event["log_id"])
        key = (kind, event["folder_id"], event[name])
        known = self._latest.get(key)
        # At equal times the higher offset wins.
        if known is None or occurred_at >= known[0]:
            self._latest[key] = (occurred_at, event)

    def _verdict(self, log: Json, feedback: Json | None) -> Json:
        """The verdict that counts: the newest feedback, unless it is a day older than the log, else the log's own."""
        own: Json = log.get("feedback") or {}
        if feedback is None or event_time(feedback) < event_time(log) - timedelta(days=1):
            return own
        erased = self._covers(log["folder_id"], "log", feedback["log_id"], event_time(feedback))
        return own if erased else dict(feedback["verdict"])

    def _row(self, log: Json, verdict: Json) -> Json | None:
        cited, correct, rating = self._cited(log), verdict.get("correct_document_id"), verdict.get("rating")
        positive = None
        if correct:
            label, positive, spared = "corrected", correct, {correct, *(cited if rating == "like" else ())}
        elif not cited:
            return None
        elif rating == "dislike":
            label, spared = "disliked", set()
        else:
            label, spared = ("liked" if rating == "like" else "cited"), set(cited)
            ranks = {passage["document_id"]: passage["rank"] for passage in log["retrieved"]}
            own = [name for name in cited if self._passage(log, name)["folder_id"] == log["folder_id"]] or cited
            positive = min(own, key=lambda name: ranks.get(name, 1 << 31))
        shown = [passage["document_id"] for passage in sorted(log["retrieved"], key=lambda passage: passage["rank"])]
        negatives = cited if label == "disliked" else [name for name in shown if name not in spared]
        return {
            "log_id": log["log_id"],
            "occurred_at": event_time(log).isoformat(),
            "folder_id": log["folder_id"],
            "agent_id": log["agent_id"],
            "conversation_id": log.get("conversation_id"),
            "question": log["question"],
            "positive": self._passage(log, positive) if positive else None,
            "label": label,
            "strength": _STRENGTHS[label],
            "negatives": [self._passage(log, name) for name in negatives],
        }

    def _cited(self, log: Json) -> list[str]:
        return list(log.get("cited_document_ids") or ())

    def _passage(self, log: Json, name: str) -> Json:
        """A passage as the log has it, without the text of an erased document."""
        for passage in log["retrieved"]:
            if passage["document_id"] == name:
                of = passage["folder_id"]
                erased = self._covers(log["folder_id"], "document", name, event_time(log), of)
                return {"folder_id": of, "document_id": name, "text": None if erased else passage.get("text")}
        return {"folder_id": log["folder_id"], "document_id": name, "text": None}


def _without_deleted(row: Json, deleted: set[str]) -> Json | None:
    def remains(passage: Json) -> bool:
        return passage["folder_id"] != row["folder_id"] or passage["document_id"] not in deleted

    row["negatives"] = list(filter(remains, row["negatives"]))
    return row if (remains(row["positive"]) if row["positive"] else row["negatives"]) else None


def event_time(event: Json) -> datetime:
    """When the event occurred."""
    return datetime.fromisoformat(event["occurred_at"]).astimezone(UTC)
