"""Of ``metrics.json``, which is any text, as far as the API knows: what pages show of it."""

from typing import Annotated, Any

from annotated_types import Len
from pydantic import BaseModel, FiniteFloat, ValidationError

from console.api_client import ApiClient, path

# More are no table that anybody reads.
MAX_FOLDERS = 200
Interval = tuple[FiniteFloat, FiniteFloat]


class Scores(BaseModel):
    """Of some questions."""

    ndcg_at_10: FiniteFloat


class FolderScores(BaseModel):
    """Of a folder's held-out questions; releases up to 0.1 do not say the interval of the gain."""

    questions: int
    before: Scores
    after: Scores
    ndcg_gain_interval: Interval | None = None


class Loss(BaseModel):
    """Of questions that the training was not made for."""

    before: Scores
    after: Scores
    interval: Interval


class Metrics(BaseModel):
    """What was measured of a version."""

    folders: dict[str, FolderScores] = {}
    not_trained_on: Annotated[dict[str, Loss], Len(max_length=20)] = {}

    @property
    def largest_folders(self) -> dict[str, FolderScores]:
        """Those with most questions first."""
        found = sorted(self.folders.items(), key=lambda item: (-item[1].questions, item[0]))
        return dict(found[:MAX_FOLDERS])


async def read_metrics(client: ApiClient, model: str, version: str) -> Metrics:
    """Those of a version; without any where there is no such file, or another one."""
    found: Any = await client.optional(path("models", model, "versions", version, "metrics"))
    try:
        return Metrics.model_validate(found or {})
    except ValidationError:
        return Metrics()
