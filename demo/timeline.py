"""What happens during ``foldtune demo --loop``, as the topics tell it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from demo.console import ProgressBar
from demo.request_progress import POLL_MILLISECONDS, TIMEOUT_SECONDS, NoModelError
from demo.running_system import RunningSystem
from foldtune.events import FineTuneRequested, FineTuneStatus, ModelReady, PolicyDecided
from foldtune.kafka import consumer
from foldtune.topics import Topic

Entry = dict[str, Any]


class Timeline:
    """Events with the seconds since the start: those of the topics by the broker's time, and the demo's own."""

    def __init__(self, system: RunningSystem, records: Any) -> None:
        """``records`` is a consumer of the four topics."""
        self._system = system
        self._records = records
        self._started = time.time()
        self._seen: set[tuple[str, str]] = set()
        self._entries: list[Entry] = []
        self._models: dict[str, ModelReady] = {}

    @classmethod
    @contextmanager
    def follow(cls, system: RunningSystem) -> Iterator[Self]:
        """A timeline that begins now."""
        topics = (Topic.POLICY_DECISIONS, Topic.FINE_TUNE_REQUESTS, Topic.FINE_TUNE_STATUS, Topic.MODEL_READY)
        with consumer(system.settings.kafka, *topics) as records:
            yield cls(system, records)

    @property
    def entries(self) -> list[Entry]:
        """All events so far, in order."""
        return sorted(self._entries, key=lambda entry: float(entry["seconds"]))

    def add(self, event: str, **fields: Any) -> None:
        """An event of the demo itself, now."""
        self._append(time.time(), {"event": event} | fields)

    def wait_for(self, find: Callable[[list[Entry]], Entry | None], what: str, bar: ProgressBar) -> Entry:
        """Read the topics until ``find`` returns one of the events.

        Raises:
            NoModelError: it did not happen in time.
            ProcessExitedError: a server or process of the system has exited.
        """
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while (found := find(self.entries)) is None:
            if time.monotonic() > deadline:
                raise NoModelError(f"{what}: not within {TIMEOUT_SECONDS // 60} minutes")
            self._system.check_running()
            for records in self._records.poll(timeout_ms=POLL_MILLISECONDS).values():
                for record in records:
                    self._take(record, bar)
        return found

    def wait_for_model(self, request_id: str, bar: ProgressBar) -> ModelReady:
        """The announcement of a request's model; raises like ``wait_for``."""

        def announced(entries: list[Entry]) -> Entry | None:
            ready = (entry for entry in entries if entry["event"] == "model_ready")
            return next((entry for entry in ready if entry["request_id"] == request_id), None)

        self.wait_for(announced, f"the announcement of {request_id}", bar)
        return self._models[request_id]

    def _take(self, record: Any, bar: ProgressBar) -> None:
        entry = entry_of(record.topic, record.key, record.value)
        if entry is None:
            return
        if entry["event"] == "status":
            if progress := FineTuneStatus.model_validate_json(record.value).progress:
                bar.update(progress.step, progress.steps, f"{entry['state']} · loss {progress.loss:.3f}")
            # Progress repeats a state.
            state = (entry["request_id"], entry["state"])
            if state in self._seen:
                return
            self._seen.add(state)
        if entry["event"] == "model_ready":
            self._models[entry["request_id"]] = ModelReady.model_validate_json(record.value)
        self._append(record.timestamp / 1000, entry)
        bar.note(describe(entry))

    def _append(self, at: float, entry: Entry) -> None:
        self._entries.append({"seconds": round(max(0.0, at - self._started), 3)} | entry)


def entry_of(topic: str, key: bytes, value: bytes) -> Entry | None:
    """What a record says; ``None`` for one that only repeats another."""
    if topic == Topic.POLICY_DECISIONS.label:
        # Under the model's name alone is the newest decision again, and its figures each minute.
        return _decided(PolicyDecided.model_validate_json(value)) if b"/" in key else None
    if topic == Topic.FINE_TUNE_STATUS.label:
        # Under the request's id alone it is for earlier releases of the SDK.
        return _status(FineTuneStatus.model_validate_json(value)) if b"/" in key else None
    if topic == Topic.FINE_TUNE_REQUESTS.label:
        request = FineTuneRequested.model_validate_json(value)
        return {
            "event": "requested",
            "request_id": request.request_id,
            "by": request.requested_by,
            "start": request.training.start,
        }
    ready = ModelReady.model_validate_json(value)
    return {
        "event": "model_ready",
        "request_id": ready.request_id,
        "version": ready.version,
        "parent_version": ready.parent_version,
        "ndcg@10": [ready.metrics_before.ndcg_at_10, ready.metrics_after.ndcg_at_10],
    }


def describe(entry: Entry) -> str:
    """An event in a few words."""
    words = (entry["event"], entry.get("decision") or entry.get("state") or entry.get("version"), entry.get("rule"))
    return " ".join(word.replace("_", " ") for word in words if word)


def _decided(decided: PolicyDecided) -> Entry:
    met = [each for rule in decided.rules for each in rule.conditions if each.met]
    blocks = [each for rule in decided.rules for each in rule.blocks if any(item.met for item in rule.conditions)]
    return {
        "event": "decided",
        "decision": decided.decision,
        "rule": decided.rule,
        "request_id": decided.request_id,
        "met": {each.condition: each.text for each in met},
        "blocked_by": {each.block: each.text for each in blocks},
    }


def _status(status: FineTuneStatus) -> Entry:
    outcome = {"promoted": status.promoted} if status.promoted is not None else {}
    reasons = {"reasons": list(status.reasons)} if status.state.terminal and status.reasons else {}
    return {"event": "status", "request_id": status.request_id, "state": status.state.value} | outcome | reasons
