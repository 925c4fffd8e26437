"""What the pages work with: the API as whoever is signed in, their cookies, and what they may."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp

from console.api_client import ApiClient
from console.oidc import Provider
from console.sessions import Sessions
from foldtune.settings import Settings

SIGN_IN = "/console/sign-in"
CookieName = Literal["session", "attempt"]


@dataclass(frozen=True)
class Console:
    """What all pages share."""

    settings: Settings
    api: ASGIApp
    sessions: Sessions
    provider: Provider | None

    def client(self, session: str | None, forwarded_user: str | None = None) -> ApiClient:
        """The API, as whoever has the session, or whom a proxy has named."""
        return ApiClient(self.api, session, forwarded_user)

    def cookie(self, request: Request, name: CookieName) -> str | None:
        """A cookie of ours; none of ours has another character than ASCII's, which no header takes."""
        found = request.cookies.get(self._named(name))
        return found if found and found.isascii() and found.isprintable() else None

    def set_cookie(self, answer: Response, name: CookieName, value: str) -> None:
        """For this host alone, for no script, and for no other site's forms."""
        answer.set_cookie(self._named(name), value, path="/", secure=self._secure, httponly=True, samesite="lax")

    def delete_cookie(self, answer: Response, name: CookieName) -> None:
        """Have the browser forget a cookie."""
        answer.delete_cookie(self._named(name), path="/", secure=self._secure, httponly=True, samesite="lax")

    def _named(self, name: CookieName) -> str:
        # Browsers take this prefix from a secure page of this very host only.
        return f"__Host-foldtune-{name}" if self._secure else f"foldtune-{name}"

    @property
    def _secure(self) -> bool:
        return (self.settings.console.url or "").startswith("https:")


@dataclass(frozen=True)
class Viewer:
    """Whoever looks at a page."""

    name: str
    roles: tuple[str, ...]
    # The API's routes that they may call, with the models; None is every one.
    routes: dict[str, list[str] | None]

    def may(self, route: str, model: str | None = None) -> bool:
        """Whether they may call a route, for a model or any."""
        if route not in self.routes:
            return False
        models = self.routes[route]
        return model is None or models is None or model in models


async def console(request: Request) -> Console:
    """The console of the application."""
    found: Console = request.app.state.console
    return found


CurrentConsole = Annotated[Console, Depends(console)]


async def session(request: Request, console: CurrentConsole) -> str | None:
    """The session in the cookie."""
    return console.cookie(request, "session")


CurrentSession = Annotated[str | None, Depends(session)]


async def client(request: Request, console: CurrentConsole, session: CurrentSession) -> ApiClient:
    """The API, as whoever is signed in."""
    return console.client(session, request.headers.get("x-forwarded-user"))


CurrentClient = Annotated[ApiClient, Depends(client)]


async def viewer(request: Request, client: CurrentClient) -> Viewer:
    """Whoever is signed in; raises ``ApiError`` (401) if nobody is."""
    me: dict[str, Any] = await client.get("/me")
    request.state.viewer = Viewer(me["name"], tuple(me["roles"]), me["routes"])
    found: Viewer = request.state.viewer
    return found


CurrentViewer = Annotated[Viewer, Depends(viewer)]


def see_other(address: str) -> RedirectResponse:
    """Lead elsewhere, after a form too."""
    return RedirectResponse(address, HTTPStatus.SEE_OTHER)
