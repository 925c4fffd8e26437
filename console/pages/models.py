"""Models, and the versions of one."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.api_client import path
from console.context import CurrentClient, CurrentViewer, see_other
from console.rendering import following, render
from foldtune.events import FineTuneStatus

router = APIRouter()


@router.get("/")
@router.get("/console")
async def lead_to_pages() -> Response:
    """The first page has one address."""
    return see_other("/console/")


@router.get("/console/")
async def list_models(
    request: Request, client: CurrentClient, viewer: CurrentViewer, cursor: str | None = None
) -> Response:
    """All models, with what is served of each."""
    del viewer
    found = await client.get("/models", cursor=cursor)
    return render(request, "models.html", models=found["items"], next=following(found["next"]))


@router.get("/console/models/{model}")
async def show_model(
    request: Request, client: CurrentClient, viewer: CurrentViewer, model: str, cursor: str | None = None
) -> Response:
    """The versions of a model over time, and its newest requests."""
    del viewer
    summary = await client.get(path("models", model))
    versions = await client.get(path("models", model, "versions"), cursor=cursor)
    requests = await client.get("/requests", model=model, limit=10)
    return render(
        request,
        "model.html",
        model=summary,
        versions=versions["items"],
        next=following(versions["next"]),
        requests=[FineTuneStatus.model_validate(item, strict=False) for item in requests["items"]],
    )
