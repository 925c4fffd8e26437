"""Health, readiness, and the API's own description."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from api.access import routes_of
from api.context import CurrentAccess, CurrentServices
from api.schemas import Me

router = APIRouter()


@router.get("/health", response_class=PlainTextResponse)
async def health(services: CurrentServices) -> Response:
    """Whether this process should go on."""
    return _probe(services.view.unhealthy)


@router.get("/ready", response_class=PlainTextResponse)
async def ready(services: CurrentServices) -> Response:
    """Whether its answers are current."""
    return _probe(services.view.unhealthy or services.view.not_ready)


@router.get("/openapi.json")
async def openapi(request: Request) -> dict[str, Any]:
    """This description."""
    document: dict[str, Any] = request.app.openapi()
    return document


@router.get("/me", response_model=Me)
async def me(access: CurrentAccess) -> Me:
    """Who calls, and what they may."""
    caller = access.caller
    roles = sorted({role.value for grant in caller.grants for role in grant.roles})
    routes = {route: None if models is None else sorted(models) for route, models in routes_of(caller).items()}
    return Me(name=caller.name, roles=roles, routes=routes)


def _probe(problem: str | None) -> Response:
    return PlainTextResponse(f"{problem or 'ok'}\n", status_code=503 if problem else 200)
