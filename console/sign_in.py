"""Who is signed in, by the session in a cookie; signing in at a provider or with a token, and signing out."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, quote

import structlog
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response

from console.api_client import ApiError
from console.context import SIGN_IN, Console, CurrentConsole, see_other
from console.oidc import Attempt, ProviderUnavailableError, SignInError
from console.rendering import render
from foldtune.settings import ApiSettings, Role

_log = structlog.get_logger(__name__)

router = APIRouter()

_ATTEMPT_LIFETIME = timedelta(minutes=15)
_MAX_FORM_BYTES = 64 * 1024
_MAX_FIELDS = 20_000
# What a browser keeps of a cookie.
_MAX_COOKIE = 4000


@router.get(SIGN_IN)
async def sign_in_page(request: Request, console: CurrentConsole, to: str = "") -> Response:
    """How to sign in."""
    if not console.settings.api.has_sign_in:
        return see_other(_inside(to))
    return render(request, "sign_in.html", to=_inside(to), provider=console.provider is not None)


@router.get(f"{SIGN_IN}/provider")
async def at_provider(request: Request, console: CurrentConsole, to: str = "") -> Response:
    """Lead to the provider, which leads back to ``/console/signed-in``."""
    if console.provider is None:
        return see_other(SIGN_IN)
    attempt = Attempt.random()
    try:
        address = await console.provider.address(attempt)
    except ProviderUnavailableError as error:
        return _failed(request, error)
    answer = RedirectResponse(address, HTTPStatus.SEE_OTHER)
    content = {**asdict(attempt), "to": _inside(to)}
    signed = console.sessions.sign("sign-in", content, _ATTEMPT_LIFETIME)
    if len(signed) > _MAX_COOKIE:
        # Rather on another page than not signed in: of a filled-in form the address may be long.
        signed = console.sessions.sign("sign-in", content | {"to": _inside("")}, _ATTEMPT_LIFETIME)
    console.set_cookie(answer, "attempt", signed)
    return answer


@router.get("/console/signed-in")
async def signed_in(
    request: Request,
    console: CurrentConsole,
    state: str = "",
    code: str = "",
    error: str = "",
) -> Response:
    """Where the provider leads back to."""
    try:
        begun, claims = await _claims(request, console, state, code, error)
        session = console.sessions.sign("session", {"claims": relevant(claims, console.settings.api)})
        _check_size(session)
    except SignInError as failure:
        return _failed(request, failure)
    answer = see_other(begun["to"])
    console.set_cookie(answer, "session", session)
    console.delete_cookie(answer, "attempt")
    return answer


async def _claims(
    request: Request, console: Console, state: str, code: str, error: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    begun = console.sessions.read("sign-in", console.cookie(request, "attempt") or "")
    if console.provider is None or begun is None:
        raise SignInError("it was begun in another browser, or too long ago")
    attempt = Attempt(begun["state"], begun["nonce"], begun["verifier"])
    if state != attempt.state:
        raise SignInError("the answer is to another sign-in")
    if error or not code:
        raise SignInError(f"the provider says {error[:100] or 'nothing'}")
    return begun, await console.provider.claims(attempt, code)


def _check_size(session: str) -> None:
    if len(session) > _MAX_COOKIE:
        raise SignInError(f"more than {_MAX_COOKIE} bytes of roles")


@router.post(SIGN_IN)
async def with_token(request: Request, console: CurrentConsole) -> Response:
    """Sign in with a token of the tokens' file."""
    form = await read_form(request)
    token, to = form.get("token", "").strip(), _inside(form.get("to", ""))
    session = console.sessions.sign("session", {"token_sha256": hashlib.sha256(token.encode()).hexdigest()})
    try:
        await console.client(session).get("/me")
    except ApiError as error:
        return render(
            request, "sign_in.html", error.status, to=to, provider=console.provider is not None, error=error.lines[0]
        )
    answer = see_other(to)
    console.set_cookie(answer, "session", session)
    return answer


@router.post("/console/sign-out")
async def sign_out(console: CurrentConsole) -> Response:
    """Forget the session; at the provider one stays signed in."""
    answer = see_other(SIGN_IN)
    console.delete_cookie(answer, "session")
    return answer


async def read_form(request: Request) -> dict[str, str]:
    """The last value of each field of a form."""
    return {name: values[-1] for name, values in (await read_fields(request)).items()}


async def read_fields(request: Request) -> dict[str, list[str]]:
    """All values of each field of a form."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_FORM_BYTES:
                raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"errors": [f"at most {_MAX_FORM_BYTES:,} bytes"]})
    except ClientDisconnect as error:
        raise ApiError(HTTPStatus.BAD_REQUEST, {"errors": ["the form ends early"]}) from error
    return parse_fields(body.decode(errors="replace"))


def parse_fields(text: str) -> dict[str, list[str]]:
    """All values of each field of a form or query; raises ``ApiError``."""
    try:
        return parse_qs(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise ApiError(HTTPStatus.BAD_REQUEST, {"errors": [f"at most {_MAX_FIELDS:,} fields"]}) from error


def relevant(claims: Mapping[str, Any], settings: ApiSettings) -> dict[str, Any]:
    """Of the claims, what the API decides by: some providers list hundreds of groups."""
    known = {grant.value for grant in settings.grants} or {role.value for role in Role}
    return {"sub": claims["sub"], settings.roles_claim: sorted(settings.role_values(claims) & known)}


def _inside(to: str) -> str:
    """A path of the console, whatever a link says; one that leads elsewhere is not followed."""
    return to if to.startswith("/console/") and "\\" not in to and not to.startswith("//") else "/console/"


def _failed(request: Request, error: SignInError) -> Response:
    _log.warning("sign-in failed", error=str(error))
    status = HTTPStatus.SERVICE_UNAVAILABLE if isinstance(error, ProviderUnavailableError) else HTTPStatus.FORBIDDEN
    return render(request, "sign_in_failed.html", status, error=str(error), again=f"{SIGN_IN}?to={quote('/console/')}")
