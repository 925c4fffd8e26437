"""What people look at before they serve a version, and what they say of it."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from console.api_client import path
from console.context import CurrentClient, CurrentViewer, see_other
from console.rendering import render
from console.sign_in import read_form

router = APIRouter()

_QUESTIONS = 20


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
    rows = [row for row in found["items"] if (row["gain"] < 0 if order == "lost" else row["gain"] > 0)]
    return render(request, "questions.html", rows=rows, order=order, total=found["total"])


@router.post("/console/models/{model}/versions/{version}/{decision}")
async def review(  # noqa: PLR0917  each is a part of the address
    request: Request,
    client: CurrentClient,
    viewer: CurrentViewer,
    model: str,
    version: str,
    decision: Literal["approve", "reject"],
) -> Response:
    """Approve or reject a version."""
    del viewer
    form = await read_form(request)
    comment = form.get("comment", "").strip()
    await client.post(path("models", model, "versions", version, decision), {"comment": comment} if comment else {})
    return see_other(f"/console/jobs{path(model, form.get('request_id', ''))}")
