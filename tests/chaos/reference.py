"""What must come out, said a second time: plain dictionaries and sorting over the topics as the brokers keep them."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from foldtune.settings import Settings
from foldtune.topic_reader import read
from foldtune.topics import DATA_TOPICS, Topic
from tests.chaos.traffic import BOUNDED_FOLDERS, MAX_EXAMPLES

# A row of a snapshot, as far as it is compared: log, question, label, document that is right.
Row = tuple[str, str, str, str | None]


@dataclass
class Expected:
    """A folder's rows, oldest log first, and its documents' texts by id."""

    rows: list[Row] = field(default_factory=list)
    documents: dict[str, str] = field(default_factory=dict)


class History:
    """All sound events of the data topics, in the order of their topic."""

    def __init__(self, settings: Settings) -> None:
        self.logs: set[str] = set()
        self._erased: dict[str, datetime] = {}
        self._latest: dict[tuple[str, str, str], tuple[datetime, dict[str, Any]]] = {}
        for topic in DATA_TOPICS:
            for record in read(settings.kafka, topic):
                self._take(topic, record.value)

    def expected(self) -> dict[str, Expected]:
        """What every folder comes to."""
        found: dict[str, Expected] = defaultdict(Expected)
        for (kind, folder, _), (_, event) in self._latest.items():
            if kind == "document" and event["type"] == "document_upserted":
                found[folder].documents[event["document_id"]] = event["text"]
        for folder in {folder for kind, folder, _ in self._latest if kind == "log"}:
            verdicts = self._newest("verdict", folder, 2 * MAX_EXAMPLES)
            rows = (
                self._row(log, verdicts.get(log["log_id"]))
                for log in self._newest("log", folder, MAX_EXAMPLES).values()
            )
            found[folder].rows = [row for row in rows if row]
        return found

    def _newest(self, kind: str, folder: str, most: int) -> dict[str, dict[str, Any]]:
        """Events by log, oldest first; in a folder without bounds, all."""
        events = [event for (of, where, _), (_, event) in self._latest.items() if (of, where) == (kind, folder)]
        events.sort(key=lambda event: (at(event), event["log_id"]))
        return {event["log_id"]: event for event in (events[-most:] if folder in BOUNDED_FOLDERS else events)}

    def _take(self, topic: Topic, value: bytes) -> None:
        try:
            event = json.loads(value)
            events = event["logs"] if event["type"] == "chat_log_batch" else [event]
            for one in events:
                self._take_one(topic, one, at(one))
        except (ValueError, KeyError, TypeError):
            return

    def _take_one(self, topic: Topic, event: dict[str, Any], moment: datetime) -> None:
        if topic is Topic.ERASURES:
            user = event["subject_id"]
            self._erased[user] = max(moment, self._erased.get(user, moment))
            return
        kind, name = {
            Topic.CHAT_LOGS: ("log", "log_id"),
            Topic.FEEDBACK: ("verdict", "log_id"),
            Topic.DOCUMENTS: ("document", "document_id"),
        }[topic]
        if kind == "log":
            self.logs.add(event["log_id"])
        key = (kind, event["folder_id"], event[name])
        known = self._latest.get(key)
        # Of two at the same moment the one further on in its topic.
        if known is None or moment >= known[0]:
            self._latest[key] = (moment, event)

    def _row(self, log: dict[str, Any], said: dict[str, Any] | None) -> Row | None:
        if at(log) <= self._erased.get(log["user_id"], datetime.min.replace(tzinfo=at(log).tzinfo)):
            return None
        verdict: dict[str, Any] = log.get("feedback") or {}
        if said and at(said) >= at(log) - timedelta(days=1):
            verdict = said["verdict"]
        cited = (log.get("cited_document_ids") or [None])[0]
        head = (log["log_id"], log["question"])
        if right := verdict.get("correct_document_id"):
            return (*head, "corrected", right)
        if cited is None:
            return None
        if verdict.get("rating") == "dislike":
            return (*head, "disliked", None)
        return (*head, "liked" if verdict.get("rating") == "like" else "cited", cited)


def at(event: dict[str, Any]) -> datetime:
    """When it occurred."""
    return datetime.fromisoformat(event["occurred_at"])
