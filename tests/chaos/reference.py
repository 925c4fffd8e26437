"""The reference model of the training sets: plain dictionaries and sorting over all records of the topics."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from foldtune.settings import Settings
from foldtune.topic_reader import read
from foldtune.topics import DATA_TOPICS, Topic
from tests.chaos.traffic import BOUNDED_FOLDERS, MAX_EXAMPLES

# The compared columns of a snapshot's row: log id, question, label, id of the positive document.
Row = tuple[str, str, str, str | None]


@dataclass
class FolderContent:
    """The rows of a folder, oldest log first, and the texts of its documents by id."""

    rows: list[Row] = field(default_factory=list)
    documents: dict[str, str] = field(default_factory=dict)


class History:
    """The latest version of every valid event of the data topics."""

    def __init__(self, settings: Settings) -> None:
        self.logs: set[str] = set()
        self._erased: dict[str, datetime] = {}
        self._latest: dict[tuple[str, str, str], tuple[datetime, dict[str, Any]]] = {}
        for topic in DATA_TOPICS:
            for record in read(settings.kafka, topic):
                self._add(topic, record.value)

    def expected(self) -> dict[str, FolderContent]:
        """The content of every folder."""
        contents: dict[str, FolderContent] = defaultdict(FolderContent)
        for (kind, folder, _), (_, event) in self._latest.items():
            if kind == "document" and event["type"] == "document_upserted":
                contents[folder].documents[event["document_id"]] = event["text"]
        for folder in {folder for kind, folder, _ in self._latest if kind == "log"}:
            feedback = self._newest("feedback", folder, 2 * MAX_EXAMPLES)
            rows = (
                self._row(log, feedback.get(log["log_id"]))
                for log in self._newest("log", folder, MAX_EXAMPLES).values()
            )
            contents[folder].rows = [row for row in rows if row]
        return contents

    def _newest(self, kind: str, folder: str, limit: int) -> dict[str, dict[str, Any]]:
        """The newest events by log id, oldest first; ``limit`` applies to bounded folders only."""
        events = [event for key, (_, event) in self._latest.items() if key[:2] == (kind, folder)]
        events.sort(key=lambda event: (event_time(event), event["log_id"]))
        return {event["log_id"]: event for event in (events[-limit:] if folder in BOUNDED_FOLDERS else events)}

    def _add(self, topic: Topic, value: bytes) -> None:
        try:
            content = json.loads(value)
            events = content["logs"] if content["type"] == "chat_log_batch" else [content]
            for event in events:
                self._add_event(topic, event, event_time(event))
        except (ValueError, KeyError, TypeError):
            return

    def _add_event(self, topic: Topic, event: dict[str, Any], occurred_at: datetime) -> None:
        if topic is Topic.ERASURES:
            user = event["subject_id"]
            self._erased[user] = max(occurred_at, self._erased.get(user, occurred_at))
            return
        kind, name = {
            Topic.CHAT_LOGS: ("log", "log_id"),
            Topic.FEEDBACK: ("feedback", "log_id"),
            Topic.DOCUMENTS: ("document", "document_id"),
        }[topic]
        if kind == "log":
            self.logs.add(event["log_id"])
        key = (kind, event["folder_id"], event[name])
        known = self._latest.get(key)
        # At equal times the higher offset wins.
        if known is None or occurred_at >= known[0]:
            self._latest[key] = (occurred_at, event)

    def _row(self, log: dict[str, Any], feedback: dict[str, Any] | None) -> Row | None:
        if event_time(log) <= self._erased.get(log["user_id"], datetime.min.replace(tzinfo=event_time(log).tzinfo)):
            return None
        verdict: dict[str, Any] = log.get("feedback") or {}
        if feedback and event_time(feedback) >= event_time(log) - timedelta(days=1):
            verdict = feedback["verdict"]
        cited = (log.get("cited_document_ids") or [None])[0]
        head = (log["log_id"], log["question"])
        if correct := verdict.get("correct_document_id"):
            return (*head, "corrected", correct)
        if cited is None:
            return None
        if verdict.get("rating") == "dislike":
            return (*head, "disliked", None)
        return (*head, "liked" if verdict.get("rating") == "like" else "cited", cited)


def event_time(event: dict[str, Any]) -> datetime:
    """When the event occurred."""
    return datetime.fromisoformat(event["occurred_at"])
