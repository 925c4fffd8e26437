"""Request ids that belong to the retraining policy and to the schedule: nobody else may take one before them."""

import re
from datetime import datetime

from foldtune.events import FineTuneRequested

POLICY_PREFIX, SCHEDULE_PREFIX = "auto-", "schedule-"
RESERVED_PREFIXES = (POLICY_PREFIX, SCHEDULE_PREFIX)
RESERVED = f"request_id: ids that begin with {' or '.join(RESERVED_PREFIXES)} are those of policy and schedule"
# The policy's: a digest.
POLICY_ID = re.compile(POLICY_PREFIX + "[0-9a-f]{20}")

_SCHEDULED_FIELDS = ("request_id", "requested_by", "origin", "base_model", "data")


def is_reserved(request_id: str) -> bool:
    """Whether only the policy or the schedule may request under this id."""
    return request_id.startswith(RESERVED_PREFIXES)


def scheduled_request(model: str, fired_at: datetime) -> FineTuneRequested:
    """The one request of a model for one firing of the schedule."""
    return FineTuneRequested(
        request_id=f"{SCHEDULE_PREFIX}{model}-{fired_at:%Y%m%dT%H%M%S}",
        model=model,
        requested_at=fired_at,
        requested_by="schedule",
        origin="policy",
    )


def is_scheduled(request: FineTuneRequested) -> bool:
    """Whether the schedule writes such a request.

    Knobs and seed are not compared: an event names all defaults, and those of the function may be of another release.
    """
    own = scheduled_request(request.model, request.requested_at)
    return all(getattr(request, field) == getattr(own, field) for field in _SCHEDULED_FIELDS)
