"""The knobs of a fine-tune request, with their defaults and bounds.

A trainer accepts every knob of this page and nothing else; the command line is made from it.
"""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, model_validator

# Opaque to foldtune: any text names a folder, and none of it ever becomes a path or an object key as it stands.
FolderId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
AgentId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
MODEL_NAME = r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"
ModelName = Annotated[str, StringConstraints(pattern=MODEL_NAME)]

MAX_NAMED = 10_000


class Knobs(BaseModel):
    """Strict: a knob that is misspelt or of the wrong type is an error, never silently the default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataSelection(Knobs):
    """Which logs are trained on; an absent field selects all."""

    start: AwareDatetime | None = Field(None, description="Date range: first moment, inclusive")
    end: AwareDatetime | None = Field(None, description="Date range: last moment, exclusive")
    folders: Annotated[tuple[FolderId, ...], Field(min_length=1, max_length=MAX_NAMED)] | None = Field(
        None, description="Folders; all without it"
    )
    agents: Annotated[tuple[AgentId, ...], Field(min_length=1, max_length=MAX_NAMED)] | None = Field(
        None, description="Only the logs of these agents; all without it"
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
    """How a training set is built from the examples."""

    positives: Literal[1] = Field(1, description="Number of positive samples: exactly 1")
    easy_negatives: int = Field(2, ge=0, le=64, description="Number of easy negative samples a question")
    hard_negatives: int = Field(4, ge=0, le=64, description="Number of hard negative samples a question")
    exclusion_threshold: FiniteFloat = Field(
        0.5,
        ge=0,
        le=1,
        description="Negative sample exclusion threshold: a passage whose Jaccard similarity with the positive "
        "is at or above it is no negative; lower is stricter",
    )


class TrainingKnobs(Knobs):
    """How long and how deep the encoder is trained."""

    batch_size: int = Field(32, ge=2, le=4096, description="Questions a step")
    trainable_layers: Annotated[int, Field(ge=1, le=1024)] | Literal["all"] = Field(
        "all", description="Number of trainable layers, counted from the output; 'all' trains the embeddings too"
    )
    epochs: int = Field(3, ge=1, le=100, description="Number of epochs")


class WeightKnobs(Knobs):
    """How the loss weighs candidates and questions."""

    temperature: FiniteFloat = Field(
        0.05, ge=0.001, le=1, description="Training intensity: lower concentrates on the nearest candidates"
    )
    focus: FiniteFloat = Field(
        1.0, ge=0, le=5, description="Hard example focus: under 1 weighs hard questions up, over 1 easy ones"
    )
    minimum: FiniteFloat = Field(0.0, ge=0, le=1, description="Minimum training weight of a question; 0 is off")
