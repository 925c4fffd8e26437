"""The knobs (hyperparameters) of a fine-tune request, with their defaults and bounds.

A trainer accepts these knobs and no others; the options of ``foldtune request`` are generated from them.
"""

import re
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    Strict,
    StringConstraints,
    model_validator,
)

# Opaque: any text is a valid id, and none is used as a path or an object key without ``key_segment``.
FolderId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
AgentId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
MODEL_NAME = r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"
ModelName = Annotated[str, StringConstraints(pattern=MODEL_NAME)]

OLDER_SHARE = 0.5
# Folders or agents that one request may name.
MAX_NAMED = 10_000

_NUMBER = re.compile(r"\s*[+-]?[0-9.]+\s*")


def not_a_number(value: object) -> object:
    """Refuse what pydantic takes as seconds since 1970: 20261127 is written for a day, and meant none of that year."""
    if isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        msg = f"should be written as in 2026-01-31 or 2026-01-31T12:00:00Z, not as the number {value}"
        raise ValueError(msg)
    return value


# As people write it. Not strict, since what a function has seen is not JSON to pydantic any more.
WrittenTime = Annotated[AwareDatetime, Strict(strict=False), BeforeValidator(not_a_number)]


class Knobs(BaseModel):
    """Strict: an unknown knob or a wrong type is an error, never silently the default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataSelection(Knobs):
    """The logs to train on; an absent field selects all."""

    start: WrittenTime | None = Field(None, description="Date range: start, inclusive")
    end: WrittenTime | None = Field(None, description="Date range: end, exclusive")
    folders: Annotated[tuple[FolderId, ...], Field(min_length=1, max_length=MAX_NAMED)] | None = Field(
        None, description="Only logs of these folders"
    )
    agents: Annotated[tuple[AgentId, ...], Field(min_length=1, max_length=MAX_NAMED)] | None = Field(
        None, description="Only logs of these agents"
    )

    @model_validator(mode="after")
    def _start_before_end(self) -> Self:
        if self.start is not None and self.end is not None and self.start >= self.end:
            msg = f"start must be before end, got {self.start.isoformat()} and {self.end.isoformat()}"
            raise ValueError(msg)
        return self

    def in_range(self, moment: datetime) -> bool:
        """Whether ``moment`` lies in ``[start, end)``."""
        return (self.start is None or self.start <= moment) and (self.end is None or moment < self.end)


class DatasetKnobs(Knobs):
    """Number and choice of the negatives for each question."""

    positives: Literal[1] = Field(1, description="Number of positive samples per question: exactly 1")
    easy_negatives: int = Field(2, ge=0, le=64, description="Number of easy (random) negative samples per question")
    hard_negatives: int = Field(4, ge=0, le=64, description="Number of hard negative samples per question")
    exclusion_threshold: FiniteFloat = Field(
        0.5,
        ge=0,
        le=1,
        description="Negative sample exclusion threshold: passages whose Jaccard similarity with the positive is at or "
        "above it are excluded, drawn or of the batch; lower is stricter",
    )


class TrainingKnobs(Knobs):
    """Batch size, depth and length of the training."""

    batch_size: int = Field(32, ge=2, le=4096, description="Questions per step")
    trainable_layers: Annotated[int, Field(ge=1, le=1024)] | Literal["all"] = Field(
        "all", description="Number of trainable layers, counted from the output; 'all' includes the embeddings"
    )
    epochs: int = Field(3, ge=1, le=100, description="Number of epochs")
    # Version 0.1 refuses what it does not know: at their defaults these are left out.
    start: Literal["base", "incumbent"] = Field(
        "base",
        exclude_if=lambda start: start == "base",
        description="What the training starts from: the base model, or the newest promoted version of the model",
    )
    older_share: FiniteFloat = Field(
        OLDER_SHARE,
        ge=0,
        le=1,
        exclude_if=lambda share: share == OLDER_SHARE,
        description="With training.start 'incumbent': at most this share of the examples is older than its snapshot",
    )
    max_tokens: Annotated[int, Field(ge=8, le=32768)] | None = Field(
        None,
        exclude_if=lambda tokens: tokens is None,
        description="Tokens of a text that training reads, at most the model's own maximum; by default as many as cost "
        "little more than 128",
    )

    def steps(self, examples: int) -> int:
        """The number of steps of a training on so many examples."""
        return self.epochs * -(-examples // self.batch_size)


class WeightKnobs(Knobs):
    """Weights of candidates and questions in the loss."""

    temperature: FiniteFloat = Field(
        0.05,
        ge=0.001,
        le=1,
        description="Training intensity: softmax temperature; lower concentrates on the nearest candidates",
    )
    focus: FiniteFloat = Field(
        1.0, ge=0, le=5, description="Hard example focus: below 1 weights hard questions up, above 1 easy ones"
    )
    minimum: FiniteFloat = Field(0.0, ge=0, le=1, description="Minimum training weight of a question; 0 is off")
