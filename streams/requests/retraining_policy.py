"""Automatic retraining: an ordinary request, once enough has been learnt that the model does not know yet."""

import hashlib
from datetime import datetime

from pydantic import AwareDatetime, Field

from foldtune.events import FineTuneRequested, Model, TrainingProgressed
from foldtune.knobs import DataSelection
from foldtune.settings import PolicyRule


class PolicyState(Model):
    """What the policy knows of one model."""

    trained_request_id: str | None = None
    # New examples by partition, as last reported.
    new_examples: dict[str, int] = Field(default_factory=dict)
    last_request_id: str | None = None
    last_request_at: AwareDatetime | None = None


def progressed(state: PolicyState, progress: TrainingProgressed) -> PolicyState:
    """Takes in one partition's report; one that counts from another training than the last says nothing."""
    if progress.trained_request_id != state.trained_request_id:
        return state
    counts = state.new_examples | {str(progress.partition): progress.new_examples}
    return state.model_copy(update={"new_examples": counts})


def trained(state: PolicyState, request_id: str) -> PolicyState:
    """After a completed training, counting begins anew."""
    return state.model_copy(update={"trained_request_id": request_id, "new_examples": {}})


def due(state: PolicyState, rule: PolicyRule, now: datetime) -> FineTuneRequested | None:
    """The request that it is time for, if any.

    Its id follows from what was trained and asked before, so that a repetition of this decision is the same request.
    """
    if sum(state.new_examples.values()) < rule.new_examples:
        return None
    if state.last_request_at is not None and now - state.last_request_at < rule.cooldown:
        return None
    basis = "\0".join((rule.model, state.trained_request_id or "", state.last_request_id or ""))
    return FineTuneRequested(
        request_id=f"auto-{hashlib.sha256(basis.encode()).hexdigest()[:20]}",
        model=rule.model,
        requested_at=now,
        requested_by="retraining policy",
        origin="policy",
        data=DataSelection(folders=rule.folders),
        dataset=rule.dataset,
        training=rule.training,
        weights=rule.weights,
    )


def asked(state: PolicyState, request: FineTuneRequested) -> PolicyState:
    """The request is out; the cooldown begins."""
    return state.model_copy(update={"last_request_id": request.request_id, "last_request_at": request.requested_at})
