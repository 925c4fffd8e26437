"""What people look at before they serve a version: what it was made from, and the questions behind its verdict."""

import asyncio
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError
from starlette.responses import Response

from console.api_client import ApiError, path
from console.context import CurrentClient, CurrentViewer, see_other
from console.pages.verdicts import Metrics, verdict
from console.rendering import render
from foldtune.events import FineTuneRequested

router = APIRouter()

_QUESTIONS = 20


class _Found(BaseModel):
    document_id: str | None = None
    score: FiniteFloat | None = None


class QuestionRow(BaseModel):
    """Of ``evaluation.parquet``, which is any table, as far as the API knows."""

    question: str
    gain: FiniteFloat
    rank_before: int | None = None
    rank_after: int | None = None
    before: list[_Found]
    after: list[_Found]


@router.get("/console/models/{model}/versions/{version}")
async def show_version(
    request: Request, client: CurrentClient, viewer: CurrentViewer, model: str, version: str
) -> Response:
    """A version from the logs to where it is deployed."""
    del viewer
    here = path("models", model, "versions", version)
    found = await client.get(here)
    compared = found.get("compared_with")
    other = await client.optional(path("models", model, "versions", compared)) if compared else None
    summary, metrics, lineage, files, asked = await asyncio.gather(
        client.get(path("models", model)),
        client.optional(f"{here}/metrics"),
        client.optional(f"{here}/lineage"),
        client.optional(f"{here}/files"),
        client.optional(path("models", model, "requests", found["request_id"], "request")),
    )
    return render(
        request,
        "version.html",
        model=summary,
        version=found,
        verdict=verdict(found, Metrics.of(metrics)),
        ancestors=lineage["items"] if lineage else [],
        files=files and files["items"],
        asked=asked and FineTuneRequested.model_validate(asked, strict=False),
        compared_approval=(other or {}).get("approval"),
    )


@router.get("/console/models/{model}/versions/{version}/files/{file:path}")
async def fetch_file(client: CurrentClient, viewer: CurrentViewer, model: str, version: str, file: str) -> Response:
    """Lead to a file of a version, where it can be fetched for a few minutes."""
    del viewer
    found = await client.get(path("models", model, "versions", version, "files", file))
    return see_other(found["url"])


@router.get("/console/models/{model}/versions/{version}/questions")
async def show_questions(  # noqa: PLR0917  each is a parameter
    request: Request,
    client: CurrentClient,
    viewer: CurrentViewer,
    model: str,
    version: str,
    order: Annotated[Literal["lost", "gained"], Query()] = "lost",
) -> Response:
    """Held-out questions with what was found before and after, side by side."""
    del viewer
    found = await client.get(path("models", model, "versions", version, "evaluation"), order=order, limit=_QUESTIONS)
    try:
        items = TypeAdapter(list[QuestionRow]).validate_python(found["items"])
    except ValidationError as error:
        raise ApiError(HTTPStatus.CONFLICT, {"errors": ["evaluation.parquet: its rows are not as expected"]}) from error
    rows = [row for row in items if (row.gain < 0 if order == "lost" else row.gain > 0)]
    return render(request, "questions.html", model=model, version=version, rows=rows, order=order)
