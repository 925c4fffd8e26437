"""What is told to webhooks of a record of ``fine-tune-status`` or ``policy-decisions``."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from foldtune.events import EventType, FineTuneStatus, PolicyDecided, State
from foldtune.settings import NoticeType

# Blocks of the policy that say that its budget is used up.
_BUDGETS = frozenset({"monthly_trainings", "monthly_dollars"})
_OF_STATES = {
    State.COMPLETED: NoticeType.COMPLETED,
    State.FAILED: NoticeType.FAILED,
    State.REJECTED: NoticeType.REJECTED,
}


@dataclass(frozen=True)
class Notice:
    """One thing to tell, by whatever way it is told again: ``id`` is that of the thing, not of the message."""

    id: str
    type: NoticeType
    model: str
    body: bytes


def notices(value: bytes, *, change: bool) -> Iterator[Notice]:
    """Of a record's value. ``change`` is false for the copies of a policy's newest decision, which say nothing new.

    Raises:
        ValidationError: it is neither a status nor a decision.
    """
    # By its type, as a name may be any word: the topics have events of one type each.
    if EventType.model_validate_json(value).type != "policy_decided":
        yield from _of_status(FineTuneStatus.model_validate_json(value))
    elif change:
        yield from _of_decision(PolicyDecided.model_validate_json(value))


def _of_status(status: FineTuneStatus) -> Iterator[Notice]:
    kind = _OF_STATES.get(status.state)
    if kind is NoticeType.COMPLETED and not status.promoted:
        kind = NoticeType.NOT_PROMOTED
    if kind is None:
        return
    data = {
        "model": status.model,
        "request_id": status.request_id,
        "state": status.state,
        "promoted": status.promoted,
        "model_uri": status.model_uri,
        "reasons": status.reasons,
        "warnings": status.warnings,
    }
    # A request has one end.
    yield _notice(kind, status.model, status.at, data, status.request_id)


def _of_decision(decision: PolicyDecided) -> Iterator[Notice]:
    for figures in decision.rules:
        data: dict[str, Any] = {"model": decision.model, "rule": figures.rule, "decision": decision.decision}
        for condition in figures.conditions:
            if condition.condition == "quality" and condition.met:
                said: dict[str, Any] = {
                    "figure": condition.figure,
                    "bound": condition.bound,
                    "reasons": [condition.text],
                }
                # Each later decision says so again, as long as it lasts.
                episode = str(condition.since)
                yield _notice(NoticeType.QUALITY_FELL, decision.model, decision.at, data | said, figures.rule, episode)
        for block in figures.blocks:
            # Without an end it cannot be counted, which is another matter.
            if block.block in _BUDGETS and block.until:
                said = {"budget": block.block, "until": _iso(block.until), "reasons": [block.text]}
                month = str(block.until)
                parts = figures.rule, block.block, month
                yield _notice(NoticeType.BUDGET_REACHED, decision.model, decision.at, data | said, *parts)


def _notice(kind: NoticeType, model: str, at: datetime, data: dict[str, Any], *identity: str) -> Notice:
    """By the form of the Standard Webhooks specification: type, timestamp, data."""
    digest = hashlib.sha256(json.dumps([kind, model, *identity]).encode()).hexdigest()
    body = {"type": kind, "timestamp": _iso(at), "data": data}
    return Notice(f"foldtune-{digest[:32]}", kind, model, json.dumps(body).encode())


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
