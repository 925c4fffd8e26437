"""Automatic retraining: an ordinary request, once a model was not trained on enough new examples."""

import hashlib
from datetime import datetime

from pydantic import AwareDatetime, Field

from foldtune.events import FineTuneRequested, Model, TrainingProgressed
from foldtune.knobs import DataSelection
from foldtune.request_ids import POLICY_ID, POLICY_PREFIX
from foldtune.settings import PolicyRule


class PolicyState(Model):
    """What the policy's decision on one model depends on."""

    trained_request_id: str | None = None
    # The latest report of each partition.
    new_examples: dict[str, int] = Field(default_factory=dict)
    last_request_id: str | None = None
    last_request_at: AwareDatetime | None = None


def with_progress(state: PolicyState, progress: TrainingProgressed) -> PolicyState:
    """Stores one partition's report; ignores one that counts from another training than the last."""
    if progress.trained_request_id != state.trained_request_id:
        return state
    counts = state.new_examples | {str(progress.partition): progress.new_examples}
    return state.model_copy(update={"new_examples": counts})


def with_training(state: PolicyState, request_id: str) -> PolicyState:
    """Resets the counts after a completed training."""
    return state.model_copy(update={"trained_request_id": request_id, "new_examples": {}})


def due_request(state: PolicyState, rule: PolicyRule, now: datetime) -> FineTuneRequested | None:
    """The request to publish now, if any.

    Its id is derived from the last training and the last request, so that a repeated decision is the same request.
    """
    if sum(state.new_examples.values()) < rule.new_examples:
        return None
    if state.last_request_at is not None and now - state.last_request_at < rule.cooldown:
        return None
    basis = "\0".join((rule.model, state.trained_request_id or "", state.last_request_id or ""))
    return FineTuneRequested(
        request_id=f"{POLICY_PREFIX}{hashlib.sha256(basis.encode()).hexdigest()[:20]}",
        model=rule.model,
        requested_at=now,
        requested_by="retraining policy",
        origin="policy",
        data=DataSelection(folders=rule.folders),
        dataset=rule.dataset,
        training=rule.training,
        weights=rule.weights,
    )


def with_request(state: PolicyState, request: FineTuneRequested) -> PolicyState:
    """Starts the cooldown after a request was published."""
    return state.model_copy(update={"last_request_id": request.request_id, "last_request_at": request.requested_at})


def is_own(
    state: PolicyState, rule: PolicyRule | None, request: FineTuneRequested, *, written_ms: int, state_begun_ms: int
) -> bool:
    """Whether the policy made this request, as far as its state tells, which begins at ``state_begun_ms``.

    After the policy's last request nobody writes another. What was written before it, or before the state was begun
    (by workers with another app id), cannot be told from what the policy wrote then.
    """
    if request.origin != "policy" or request.base_model or not POLICY_ID.fullmatch(request.request_id):
        return False
    if state.last_request_at is None:
        return rule is not None and 0 < written_ms < state_begun_ms
    before = 0 < written_ms < state.last_request_at.timestamp() * 1000
    return before or request.request_id == state.last_request_id
