"""What people look at before they serve a version."""

from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError
from starlette.responses import Response

from console.api_client import ApiError, path
from console.context import CurrentClient, CurrentViewer
from console.rendering import render

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
    return render(request, "questions.html", rows=rows, order=order, total=found["total"])
