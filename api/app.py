"""The FastAPI application: routes, checks and errors put together."""

from http import HTTPStatus
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from api.access import RULES
from api.context import Services, access
from api.http import BrowserMiddleware, CallMiddleware
from api.problems import CONTENT_TYPE, ProblemError, invalid
from api.routes import audit, dead_letters, erasures, folders, models, operations, policies, previews, requests, reviews
from api.schemas import Problem, component_schemas
from foldtune.errors import FoldtuneError
from foldtune.excerpts import excerpt

ROUTERS = tuple(
    module.router
    for module in (operations, requests, previews, models, reviews, policies, folders, dead_letters, erasures, audit)
)
_PROBLEM = {"model": Problem, "content": {CONTENT_TYPE: {}}}


class RouteRulesError(FoldtuneError):
    """Routes and the table of who may call them (api.access.RULES) differ:"""


def create_app(services: Services, host: str = "localhost") -> FastAPI:
    """The application; ``host`` is the name that it listens on.

    Raises:
        RouteRulesError: a route is not in the table of who may call it.
    """
    app = FastAPI(
        title="foldtune",
        version="1",
        # Its pages load scripts from elsewhere; /openapi.json is a route with a role, like all others.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
        redirect_slashes=False,
        dependencies=[Depends(access)],
        responses={"4XX": {"description": "Refused", **_PROBLEM}, "5XX": {"description": "Failed", **_PROBLEM}},
    )
    app.state.services = services
    for router in ROUTERS:
        app.include_router(router)
    check_rules(app)
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid_parameters)
    app.add_exception_handler(HTTPException, _no_route)
    app.openapi = lambda: openapi(app)  # type: ignore[method-assign]
    settings = services.settings.api
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT"],
            allow_headers=["authorization", "content-type", "if-match", "if-none-match", "last-event-id"],
            expose_headers=["etag", "x-request-id"],
        )
    names = ("localhost", host, *settings.hosts)
    app.add_middleware(BrowserMiddleware, names=names, origins=settings.cors_origins)
    app.add_middleware(CallMiddleware)
    return app


def check_rules(app: FastAPI) -> None:
    """Refuse to start with a route that nobody has decided about; raises ``RouteRulesError``."""
    found: set[str] = set()
    for route in iter_route_contexts(app.routes):
        if not isinstance(route.original_route, APIRoute):
            raise RouteRulesError(f"{route.original_route!r} is none of FastAPI's own")
        found |= {f"{method} {route.path_format}" for method in route.methods or ()}
    if found != set(RULES):
        raise RouteRulesError(", ".join(sorted(found ^ set(RULES))))


def openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the schemas of the bodies that the routes read themselves."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description="Requests, statuses, models, folders. Errors are problem documents (RFC 9457).",
            routes=app.routes,
            separate_input_output_schemas=False,
        )
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(component_schemas())
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
        for path, operations_of in document["paths"].items():
            for method, operation in operations_of.items():
                if (rule := RULES[f"{method.upper()} {path}"]) is not None:
                    operation["security"] = [{"bearer": []}]
                    operation["x-roles"] = sorted(rule.roles)
        app.openapi_schema = document
    return app.openapi_schema


def _answer(problem: ProblemError) -> JSONResponse:
    return JSONResponse(
        problem.document(), status_code=problem.status, headers=problem.headers, media_type=CONTENT_TYPE
    )


async def _problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ProblemError)  # noqa: S101  FastAPI's handlers are not typed by the error
    return _answer(error)


async def _invalid_parameters(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    # Without where it stands (query, path): their names are distinct.
    lines: list[Any] = [{**details, "loc": tuple(details["loc"])[1:]} for details in error.errors()]
    return _answer(invalid(ValidationError.from_exception_data("parameters", lines)))


async def _no_route(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    reason = f"no such route: {excerpt(request.method, 20)} {excerpt(request.url.path, 200)}"
    return _answer(ProblemError(HTTPStatus(error.status_code), reason, headers=dict(error.headers or {})))
