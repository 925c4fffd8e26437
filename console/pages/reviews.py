"""What people say of a version before it is served. A rejection is final, so it is asked for twice."""

from http import HTTPStatus

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.api_client import ApiClient, path
from console.context import CurrentClient, CurrentViewer, see_other
from console.rendering import render
from console.sign_in import read_form

router = APIRouter()


@router.post("/console/models/{model}/versions/{version}/approve")
async def approve(request: Request, client: CurrentClient, viewer: CurrentViewer, model: str, version: str) -> Response:
    """Approve a version."""
    del viewer
    form = await read_form(request)
    await _review(client, model, version, "approve", form)
    return _back(model, form)


@router.get("/console/models/{model}/versions/{version}/reject")
async def ask(  # noqa: PLR0917  each is a part of the address
    request: Request, client: CurrentClient, viewer: CurrentViewer, model: str, version: str, request_id: str = ""
) -> Response:
    """What a rejection touches, before it is asked for."""
    del viewer
    return await _question(request, client, model, version, {"request_id": request_id})


@router.post("/console/models/{model}/versions/{version}/reject")
async def reject(request: Request, client: CurrentClient, viewer: CurrentViewer, model: str, version: str) -> Response:
    """Reject a version whose name was typed once more."""
    del viewer
    form = await read_form(request)
    if form.get("confirmed", "").strip() != version:
        return await _question(request, client, model, version, form, HTTPStatus.BAD_REQUEST)
    await _review(client, model, version, "reject", form)
    return _back(model, form)


async def _question(  # noqa: PLR0917  each is a part of the page
    request: Request,
    client: ApiClient,
    model: str,
    version: str,
    form: dict[str, str],
    status: HTTPStatus = HTTPStatus.OK,
) -> Response:
    found = await client.get(path("models", model, "versions", version))
    summary = await client.get(path("models", model))
    return render(
        request,
        "reject.html",
        status,
        version=found,
        is_served=summary.get("deployable") == version,
        form=form,
        differs=status is HTTPStatus.BAD_REQUEST,
    )


async def _review(client: ApiClient, model: str, version: str, decision: str, form: dict[str, str]) -> None:
    comment = form.get("comment", "").strip()
    await client.post(path("models", model, "versions", version, decision), {"comment": comment} if comment else {})


def _back(model: str, form: dict[str, str]) -> Response:
    request_id = form.get("request_id")
    return see_other(f"/console/jobs{path(model, request_id)}" if request_id else f"/console/models{path(model)}")
