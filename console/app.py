"""The console's application: pages, checks and errors put together, beside the HTTP API."""

from http import HTTPStatus
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from console import assets, sign_in
from console.api_client import ApiError
from console.context import SIGN_IN, Console, see_other
from console.oidc import Provider, Registration
from console.pages import (
    audit,
    compare,
    dead_letters,
    fine_tune,
    folders,
    jobs,
    models,
    policies,
    privacy,
    reviews,
    versions,
)
from console.rendering import render
from console.sessions import Sessions, read_key
from foldtune.errors import InvalidSettingsError
from foldtune.settings import Settings


def sessions_of(settings: Settings) -> Sessions:
    """The sessions that the settings say.

    Raises:
        InvalidSettingsError: there is a sign-in, and no key by which all replicas could read its sessions.
    """
    if settings.api.has_sign_in and settings.console.session_key_file is None:
        raise InvalidSettingsError("the console needs console.session_key_file, as people sign in")
    return Sessions(read_key(settings.console.session_key_file), settings.console.session_lifetime)


def create_console(settings: Settings, api: ASGIApp, sessions: Sessions) -> FastAPI:
    """The pages, as whose data the API's answers are."""
    app = FastAPI(title="foldtune console", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.console = Console(settings, api, sessions, provider_of(settings))
    pages = (models, versions, compare, reviews, fine_tune, jobs, folders, policies, dead_letters, privacy, audit)
    for router in (assets.router, sign_in.router, *(page.router for page in pages)):
        _answer_head(router)
        app.include_router(router)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _no_page)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _defect)
    app.add_middleware(SameOriginMiddleware)
    return app


def _answer_head(router: APIRouter) -> None:
    """Pages and files answer HEAD as they answer GET; a stream has no end at which they could."""
    for route in router.routes:
        if isinstance(route, APIRoute) and not route.path.endswith("/events"):
            methods = set(route.methods or ())
            route.methods = methods | ({"HEAD"} if "GET" in methods else set())


def provider_of(settings: Settings) -> Provider | None:
    """The provider, if the console is registered at one; raises ``InvalidSettingsError``."""
    console, issuer = settings.console, settings.api.issuer
    if console.client_id is None:
        return None
    if issuer is None or console.url is None:
        raise InvalidSettingsError("console.client_id is without effect, as api.issuer is not set")
    secret = console.client_secret_file
    registered = Registration(
        console.client_id,
        secret.read_text().strip() if secret else None,
        f"{console.url}/console/signed-in",
        console.scopes,
    )
    return Provider(issuer, registered, settings.api.leeway)


class WithConsole:
    """The console at ``/console``, and the API at all other paths."""

    def __init__(self, api: ASGIApp, console: ASGIApp) -> None:
        self._api = api
        self._console = console

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._api(scope, receive, send)
        else:
            is_page = scope["path"] in {"/", "/console"} or scope["path"].startswith("/console/")
            await (self._console if is_page else self._api)(scope, receive, send)


class SameOriginMiddleware:
    """Refuses changes that a page of somebody else asks for: the cookie alone says nothing of who has asked."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in {"GET", "HEAD"}:
            headers = Headers(scope=scope)
            site, origin, host = (headers.get(name) for name in ("sec-fetch-site", "origin", "host"))
            own = site == "same-origin" or (site is None and origin in {f"http://{host}", f"https://{host}"})
            if not own:
                await Response("not from this page\n", HTTPStatus.FORBIDDEN)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101  FastAPI's handlers are not typed by the error
    if error.status is HTTPStatus.UNAUTHORIZED:
        address = f"{SIGN_IN}?to={quote(_page_of(request))}"
        if "hx-request" not in request.headers:
            return see_other(address)
        return Response(status_code=HTTPStatus.NO_CONTENT, headers={"hx-redirect": address})
    return render(request, "refused.html", error.status, status=error.status, lines=error.lines)


def _page_of(request: Request) -> str:
    """Where to go on after a sign-in: of a part, the page that it is for."""
    if "hx-request" in request.headers:
        _, _, address = request.headers.get("hx-current-url", "").partition("://")
        return f"/{address.partition('/')[2]}"
    address = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return address if request.method in {"GET", "HEAD"} else "/console/"


async def _no_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    status = HTTPStatus(error.status_code)
    answer = render(request, "refused.html", status, status=status, lines=[])
    answer.headers.update(error.headers or {})
    return answer


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    lines = [f"{'.'.join(str(part) for part in line['loc'][1:])}: {line['msg']}" for line in error.errors()]
    status = HTTPStatus.BAD_REQUEST
    return render(request, "refused.html", status, status=status, lines=lines)


async def _defect(request: Request, _: Exception) -> Response:
    """The log has the error, under this page's ``x-request-id``."""
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return render(request, "refused.html", status, status=status, lines=[])
