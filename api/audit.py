"""The entry of ``audit`` for what a caller is about to do."""

import json
import uuid
from collections.abc import Collection
from typing import Any

import structlog

from api.access import Caller
from foldtune.events import AuditEntry, now
from foldtune.knobs import MAX_NAMED

# Of each side of a change: a request may name ten thousand folders.
_MAX_SIDE_BYTES = 64 * 1024
_MAX_TARGET = 1024


def audit_entry(
    caller: Caller,
    action: str,
    target: str,
    *,
    model: str | None = None,
    folders: Collection[str] | None = None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> AuditEntry:
    """The entry of what a caller does now."""
    trace_id = structlog.contextvars.get_contextvars().get("trace_id")
    return AuditEntry(
        audit_id=uuid.uuid4().hex,
        at=now(),
        who=caller.name,
        action=action,
        target=target[:_MAX_TARGET],
        model=model,
        # A policy may name more, in all of its rules.
        folders=None if folders is None else tuple(folders)[:MAX_NAMED],
        before=_bounded(before),
        after=_bounded(after),
        trace_id=trace_id,
    )


def _bounded(side: dict[str, Any] | None) -> dict[str, Any] | None:
    if side is None or (size := len(json.dumps(side).encode())) <= _MAX_SIDE_BYTES:
        return side
    return {"left_out": f"{size} bytes, at most {_MAX_SIDE_BYTES}"}
