"""Automatic retraining: each rule's figures and bounds, and what it has decided."""

from typing import Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.api_client import path
from console.context import CurrentClient, CurrentViewer, see_other
from console.rendering import following, render

router = APIRouter()


@router.get("/console/policies")
async def list_policies(
    request: Request, client: CurrentClient, viewer: CurrentViewer, cursor: str | None = None
) -> Response:
    """The policies by model, each with its newest decision."""
    del viewer
    found = await client.get("/policies", cursor=cursor)
    return render(request, "policies.html", policies=found["items"], next=following(found["next"]))


@router.get("/console/policies/{model}")
async def show_policy(request: Request, client: CurrentClient, viewer: CurrentViewer, model: str) -> Response:
    """Why a model is trained, or is not."""
    del viewer
    explained = await client.get(path("policies", model, "explain"))
    policy = await client.get(path("policies", model))
    return render(request, "policy.html", policy=policy, decision=explained["decision"], changes=explained["changes"])


@router.post("/console/policies/{model}/{action}")
async def pause_or_resume(
    client: CurrentClient, viewer: CurrentViewer, model: str, action: Literal["pause", "resume"]
) -> Response:
    """Pause a policy, or have it go on."""
    del viewer
    await client.post(path("policies", model, action))
    return see_other(f"/console/policies{path(model)}")
