"""Counts what the topics hold, from their records alone: an independent check of what workers say of their sets.

Written down once more from the documented rules, without the code of the workers: slow, and for few records.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

_Json = dict[str, Any]
_Versions = dict[str, dict[str, list[_Json]]]


@dataclass
class Counts:
    """Of one folder, or of several."""

    labels: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    examples: int = 0
    documents: int = 0
    # Question, folder and id of the right document.
    pairs: set[tuple[str, str, str]] = field(default_factory=set)
    # By day and name, and by agent and label.
    days: Counter[tuple[str, str]] = field(default_factory=Counter)
    agents: Counter[tuple[str, str]] = field(default_factory=Counter)
    newest_log_at: datetime | None = None


@dataclass(frozen=True)
class Selection:
    """What is counted; without anything, all."""

    agents: Collection[str] | None = None
    start: datetime | None = None
    end: datetime | None = None


ALL = Selection()


class Recount:
    """The records of the data topics, by folder and id, each with its versions from the oldest to the newest."""

    def __init__(self, records: Iterable[Any], max_age: timedelta, retrieved_min_score: float) -> None:
        self._max_age, self._min_score = max_age, retrieved_min_score
        self._logs: _Versions = defaultdict(lambda: defaultdict(list))
        self._feedback: _Versions = defaultdict(lambda: defaultdict(list))
        self._documents: _Versions = defaultdict(lambda: defaultdict(list))
        self._too_old: Counter[str] = Counter()
        erasures: dict[str, _Json] = {}
        events = [(record, json.loads(record.value)) for record in records]
        for record, event in sorted(events, key=lambda item: (_time(item[1]["occurred_at"]), item[0].offset)):
            folder = event.get("folder_id", "")
            match event["type"]:
                case "chat_log":
                    self._logs[folder][event["log_id"]].append(event)
                    written = datetime.fromtimestamp(record.timestamp / 1000, UTC)
                    self._too_old[folder] += _time(event["occurred_at"]) < written - max_age
                case "feedback":
                    self._feedback[folder][event["log_id"]].append(event)
                case "document_upserted" | "document_deleted":
                    self._documents[folder][event["document_id"]].append(event)
                case "erasure_requested":
                    erasures[event["erasure_id"]] = event
        for erasure in erasures.values():
            self._erase(erasure)

    @property
    def folders(self) -> set[str]:
        """All that have anything."""
        return set(self._logs) | set(self._documents)

    def counts(self, folders: Collection[str], as_of: datetime, selection: Selection = ALL) -> Counts:
        """Of the folders together, at a time."""
        counts = Counts()
        for folder in folders:
            documents = [versions[-1]["type"] for versions in self._documents.get(folder, {}).values()]
            counts.documents += documents.count("document_upserted")
            counts.left_out["older than sets.max_age"] += self._too_old[folder]
            for versions in self._logs.get(folder, {}).values():
                if _time(versions[-1]["occurred_at"]) >= as_of - self._max_age:
                    agents = {version["agent_id"] for version in versions if not version.get("erased")}
                    if len(agents) > 1:
                        counts.ignored["logs replaced by another agent's with the same log_id"] += len(agents) - 1
                    if not versions[-1].get("erased"):
                        self._count(versions[-1], folder, as_of, selection, counts)
        return counts

    def _count(self, log: _Json, folder: str, as_of: datetime, selection: Selection, counts: Counts) -> None:
        at, agent, cited = _time(log["occurred_at"]), log["agent_id"], log.get("cited_document_ids", [])
        if (selection.start and at < selection.start) or (selection.end and at >= selection.end):
            counts.left_out["outside the date range"] += 1
            return
        if selection.agents is not None and agent not in selection.agents:
            counts.left_out["another agent"] += 1
            return
        verdict, is_ignored = self._verdict(log, folder, as_of)
        counts.ignored["verdicts dated more than a day before their log"] += is_ignored
        counts.newest_log_at = max(at, counts.newest_log_at or at)
        day = at.date().isoformat()
        first = {passage["document_id"] for passage in log.get("retrieved", []) if passage["rank"] == 1}
        counts.days[day, "logs"] += 1
        counts.days[day, "cited"] += bool(cited)
        counts.days[day, "cited_first"] += bool(first & set(cited))
        if rating := verdict.get("rating"):
            counts.days[day, f"{rating}d"] += 1
        label, positive = self._label(log, verdict)
        if label is None:
            counts.left_out["no label"] += 1
            return
        taught = [positive] if positive else [_place(log, document) for document in cited]
        if all(self._is_deleted(folder, *place) for place in taught):
            counts.left_out["document deleted"] += 1
            return
        counts.labels[label] += 1
        counts.days[day, label] += 1
        counts.agents[agent, label] += 1
        if positive:
            counts.examples += 1
            counts.pairs.add((log["question"], *positive))

    def _verdict(self, log: _Json, folder: str, as_of: datetime) -> tuple[_Json, bool]:
        """The newest verdict on a log, and whether the newest feedback does not count."""
        own = log.get("feedback") or {}
        oldest = as_of - self._max_age - timedelta(days=1)
        given = self._feedback.get(folder, {}).get(log["log_id"], [])
        found = [feedback for feedback in given if _time(feedback["occurred_at"]) >= oldest]
        if not found:
            return own, False
        newest, at = found[-1], _time(log["occurred_at"])
        if newest["verdict"].get("rating") or newest["verdict"].get("correct_document_id"):
            is_ignored = _time(newest["occurred_at"]) < at - timedelta(days=1)
            return (own if is_ignored else newest["verdict"]), is_ignored
        # Taken back.
        return ({} if _time(newest["occurred_at"]) >= at else own), False

    def _label(self, log: _Json, verdict: _Json) -> tuple[str | None, tuple[str, str] | None]:
        cited, retrieved = log.get("cited_document_ids", []), log.get("retrieved", [])
        if right := verdict.get("correct_document_id"):
            return "corrected", _place(log, right, verdict.get("correct_folder_id"))
        if verdict.get("rating") == "dislike":
            return ("disliked" if cited else None), None
        if cited:
            ranks = {passage["document_id"]: passage["rank"] for passage in retrieved}
            places = [_place(log, document) for document in cited]
            near = [place for place in places if place[0] == log["folder_id"]] or places
            best = min(near, key=lambda place: ranks.get(place[1], 1_000_000))
            return ("liked" if verdict.get("rating") == "like" else "cited"), best
        top = min(retrieved, key=lambda passage: passage["rank"], default=None)
        if top is not None and (top.get("score") or 0) >= self._min_score:
            return "retrieved", (top["folder_id"], top["document_id"])
        return None, None

    def _is_deleted(self, folder: str, of_folder: str, document: str) -> bool:
        versions = self._documents.get(folder, {}).get(document)
        return of_folder == folder and versions is not None and versions[-1]["type"] == "document_deleted"

    def _erase(self, erasure: _Json) -> None:
        until, kind, subject = _time(erasure["occurred_at"]), erasure["subject"], erasure["subject_id"]

        def erased(versions: _Versions) -> Iterator[_Json]:
            for folder, by_id in versions.items():
                if erasure.get("folder_id") in {None, folder}:
                    yield from (event for event in by_id.get(subject, []) if _time(event["occurred_at"]) <= until)

        if kind == "document":
            for event in erased(self._documents):
                event["type"] = "document_deleted"
        elif kind == "log":
            for event in (*erased(self._logs), *erased(self._feedback)):
                event |= {"erased": True, "verdict": {}}
        else:
            raise NotImplementedError(kind)


def _place(log: _Json, document: str, folder: str | None = None) -> tuple[str, str]:
    """The folder and id of a document that a log or verdict names: where it was retrieved, else in the log's folder."""
    for passage in log.get("retrieved", []):
        if passage["document_id"] == document and folder in {None, passage["folder_id"]}:
            return passage["folder_id"], document
    return folder or log["folder_id"], document


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
