"""What people have said about versions of models: the one rule for every reader of ``model-reviews``."""

from collections.abc import Collection
from enum import StrEnum

from foldtune.events import ModelReviewed

_ALL = "*"


class Standing(StrEnum):
    """What people have said about a version, as far as its model's settings ask for it."""

    ALLOWED = "allowed"
    WAITING = "waiting"
    REJECTED = "rejected"


class ReviewTable:
    """The review that decides on each version, whatever comes in what order: a rejection is final."""

    def __init__(self) -> None:
        self._deciding: dict[tuple[str, str], ModelReviewed] = {}

    def add(self, review: ModelReviewed) -> None:
        """Take a review."""
        known = self.of(review.model, review.version)
        if known is None or known.approved:
            self._deciding[review.model, review.version] = review

    def of(self, model: str, version: str) -> ModelReviewed | None:
        """The review that decides on a version."""
        return self._deciding.get((model, version))

    def rejected(self, model: str) -> tuple[str, ...]:
        """The rejected versions of a model, sorted."""
        return tuple(
            sorted(version for (of, version), review in self._deciding.items() if of == model and not review.approved)
        )

    def standing(self, model: str, version: str, required: Collection[str]) -> Standing:
        """Whether a version may be deployed; ``required`` are the models that need approvals (``approval.models``)."""
        if review := self.of(model, version):
            return Standing.ALLOWED if review.approved else Standing.REJECTED
        return Standing.WAITING if needs_approval(model, required) else Standing.ALLOWED


def needs_approval(model: str, required: Collection[str]) -> bool:
    """Whether a model's versions need approvals; ``required`` as above."""
    return model in required or _ALL in required
