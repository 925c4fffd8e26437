"""Two versions of a model side by side."""

import asyncio
import math
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.responses import Response

from console.api_client import ApiClient, ApiError, path
from console.context import CurrentClient, CurrentViewer
from console.pages.verdicts import Metrics
from console.pages.versions import QuestionRow
from console.rendering import number, render, time_element, words
from foldtune.events import FineTuneRequested

router = APIRouter()

_LISTED = 200
# Of each version: every page of questions is a file that is read, and an entry of the audit.
_PAGE, _PAGES = 200, 5
_SHOWN = 20
_ROWS = TypeAdapter(list[QuestionRow])
Chosen = Annotated[list[str], Query(max_length=_LISTED)]


class Side(NamedTuple):
    """A version with what is known of it; the request is no longer there after a while."""

    version: dict[str, Any]
    metrics: Metrics
    asked: FineTuneRequested | None


class Difference(NamedTuple):
    """A part of how two versions were made; texts as the page shows them."""

    name: str
    left: str
    right: str


class SharedQuestion(NamedTuple):
    """A held-out question of two versions, and the gain in nDCG of the right one over the left one."""

    left: QuestionRow
    right: QuestionRow
    gain: float


@router.get("/console/models/{model}/compare")
async def compare(
    request: Request,
    client: CurrentClient,
    viewer: CurrentViewer,
    model: str,
    version: Chosen = [],  # noqa: B006  FastAPI copies it
) -> Response:
    """What was measured of two versions, and what differs in how they were made; the older one stands at the left."""
    del viewer
    names, error = _choice(version)
    sides: list[Side] = []
    status = HTTPStatus.BAD_REQUEST if error else HTTPStatus.OK
    if error is None:
        try:
            sides = await asyncio.gather(*(_side(client, model, name) for name in names))
        except ApiError as problem:
            if problem.status not in {HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST}:
                raise
            error, status = str(problem), problem.status
    listed = await client.get(path("models", model, "versions"), limit=_LISTED)
    values: dict[str, Any] = {"model": model, "listed": listed["items"], "names": names, "error": error}
    if sides:
        left, right = sides
        made = list(_made(left, right))
        values |= {
            "left": left,
            "right": right,
            "folders": _both(left.metrics.largest_folders, right.metrics.largest_folders),
            "losses": _both(left.metrics.not_trained_on, right.metrics.not_trained_on),
            "differing": [each for each in made if each.left != each.right],
            "standings": {item["version"]: item["approval"] for item in listed["items"]},
            "same": [each for each in made if each.left == each.right],
        }
    return render(request, "compare.html", status, sides=sides, **values)


@router.get("/console/models/{model}/compare/questions")
async def compare_questions(
    request: Request,
    client: CurrentClient,
    viewer: CurrentViewer,
    model: str,
    version: Chosen = [],  # noqa: B006
) -> Response:
    """The held-out questions that both versions have, and on which they differ most."""
    del viewer
    names, error = _choice(version)
    if error is not None:
        raise ApiError(HTTPStatus.BAD_REQUEST, {"errors": [error]})
    (left, all_left), (right, all_right) = await asyncio.gather(*(_questions(client, model, name) for name in names))
    shared = shared_questions(left, right)
    return render(
        request,
        "compare_questions.html",
        model=model,
        names=names,
        shown=[each for each in shared if each.gain][:_SHOWN],
        better=sum(each.gain > 0 for each in shared),
        worse=sum(each.gain < 0 for each in shared),
        shared=len(shared),
        cut=len(left) < all_left or len(right) < all_right,
    )


def _choice(version: Sequence[str]) -> tuple[list[str], str | None]:
    """The chosen versions in the order of their publication, and what is wrong with the choice."""
    given = [name for name in version if name]
    names, errors = sorted(set(given)), words()["compare"]["errors"]
    if len(names) > 2:
        return names, str(errors["many"]).format(count=len(names))
    if len(names) == 2:
        return names, None
    return names, str(errors["same" if len(given) > 1 else "one" if given else "none"])


async def _side(client: ApiClient, model: str, version: str) -> Side:
    here = path("models", model, "versions", version)
    found = await client.get(here)
    metrics, asked = await asyncio.gather(
        client.optional(f"{here}/metrics"),
        client.optional(path("models", model, "requests", found["request_id"], "request")),
    )
    return Side(found, Metrics.of(metrics), asked and FineTuneRequested.model_validate(asked, strict=False))


def _both(left: dict[str, Any], right: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By name, those of the left one first."""
    return {name: (left.get(name), right.get(name)) for name in {**left, **right}}


def _made(left: Side, right: Side) -> Iterator[Difference]:
    """What the trainings were asked for, as far as it is known of both, and what came of it."""
    names = words()["compare"]["made"]
    if left.asked and right.asked:
        for (name, one), (_, other) in zip(_asked(left.asked), _asked(right.asked), strict=True):
            yield Difference(names.get(name) or words()["knobs"].get(name, {}).get("name", name), one, other)
    for (name, one), (_, other) in zip(_measured(left), _measured(right), strict=True):
        yield Difference(names[name], one, other)


def _asked(request: FineTuneRequested) -> Iterator[tuple[str, str]]:
    everything = words()["job"]["all"]
    data = request.data
    yield "from", time_element(data.start) if data.start else everything
    yield "until", time_element(data.end) if data.end else everything
    yield "folders", ", ".join(sorted(data.folders)) if data.folders else everything
    yield "agents", ", ".join(sorted(data.agents)) if data.agents else everything
    for section in ("dataset", "training", "weights"):
        for field, value in getattr(request, section):
            yield f"{section}.{field}", str(value)
    yield "seed", str(request.seed)


def _measured(side: Side) -> Iterator[tuple[str, str]]:
    version, job, trained_on = side.version, words()["job"], side.metrics.data.get("trained_on")
    base = version["base_model"]
    yield "base_model", f"{base['uri']} {base.get('revision') or ''}".strip()
    yield "started_from", version.get("parent_version") or job["the_base"]
    yield "compared_with", version.get("compared_with") or job["the_base"]
    yield "snapshot_at", time_element(version.get("snapshot_at"))
    yield "trained_on", number(trained_on if isinstance(trained_on, int) else None)
    yield "questions", f"{version['metrics_after']['questions']:,}"
    yield "documents", f"{version['metrics_after']['documents']:,}"
    yield "machine", (version.get("work") or {}).get("machine") or words()["units"]["none"]


class _Page(BaseModel):
    items: list[dict[str, Any]]
    total: int
    next: str | None


async def _questions(client: ApiClient, model: str, version: str) -> tuple[list[QuestionRow], int]:
    """The first of a version's held-out questions, and how many there are."""
    rows: list[QuestionRow] = []
    cursor: str | None = None
    for _ in range(_PAGES):
        address = path("models", model, "versions", version, "evaluation")
        page = _Page.model_validate(await client.get(address, limit=_PAGE, cursor=cursor))
        try:
            rows += _ROWS.validate_python(page.items)
        except ValidationError as error:
            reason = f"evaluation.parquet of {version}: its rows are not as expected"
            raise ApiError(HTTPStatus.CONFLICT, {"errors": [reason]}) from error
        cursor = page.next
        if cursor is None:
            break
    return rows, page.total


def shared_questions(left: Sequence[QuestionRow], right: Sequence[QuestionRow]) -> list[SharedQuestion]:
    """The questions of both, those on which they differ most first."""
    of_left = {row.question: row for row in left}
    shared = [
        SharedQuestion(
            of_left[row.question], row, _discount(row.rank_after) - _discount(of_left[row.question].rank_after)
        )
        for row in right
        if row.question in of_left
    ]
    return sorted(shared, key=lambda each: -abs(each.gain))


def _discount(rank: int | None) -> float:
    """What nDCG counts for a right passage at a rank."""
    return 1 / math.log2(rank + 1) if rank and rank > 0 else 0.0
