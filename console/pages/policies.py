"""Automatic retraining: each rule's figures and bounds, what it has decided, and the form that sets it."""

from http import HTTPStatus
from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.api_client import ApiClient, ApiError, path
from console.context import CurrentClient, CurrentViewer, see_other
from console.pages.differences import Difference, differences
from console.pages.policy_form import DAYS, Fields, changed, check, count_of, fields_of, placed, rules_of
from console.rendering import following, render
from console.sign_in import read_fields
from foldtune.events import RetrainingPolicy
from foldtune.policy import MAX_RULES, Rule

router = APIRouter()

# Of a policy that somebody else has set, or taken away, since the form was opened.
_CHANGED = {HTTPStatus.PRECONDITION_FAILED, HTTPStatus.PRECONDITION_REQUIRED}
_ON_FORM = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.CONFLICT,
    HTTPStatus.SERVICE_UNAVAILABLE,
} | _CHANGED


@router.get("/console/policies")
async def list_policies(
    request: Request, client: CurrentClient, viewer: CurrentViewer, cursor: str | None = None, of: str = ""
) -> Response:
    """The policies by model, each with its newest figures; ``of`` leads to the policy of a model by its name."""
    del viewer
    if of.strip():
        return see_other(f"/console/policies{path(of.strip())}")
    found = await client.get("/policies", cursor=cursor)
    return render(request, "policies.html", policies=found["items"], next=following(found["next"]))


@router.get("/console/policies/{model}")
async def show_policy(request: Request, client: CurrentClient, viewer: CurrentViewer, model: str) -> Response:
    """Why a model is trained by itself, or is not."""
    del viewer
    try:
        explained = await client.get(path("policies", model, "explain"))
        policy = await client.get(path("policies", model))
    except ApiError as error:
        if error.status is not HTTPStatus.NOT_FOUND:
            raise
        return render(request, "no_policy.html", HTTPStatus.NOT_FOUND, model=model)
    return render(
        request,
        "policy.html",
        policy=policy,
        decision=explained["decision"],
        changes=explained["changes"],
        said=[
            (rule.name, differences(None, _told(rule)))
            for rule in RetrainingPolicy.model_validate(policy, strict=False).rules
        ],
    )


@router.get("/console/policies/{model}/edit")
async def form(request: Request, client: CurrentClient, viewer: CurrentViewer, model: str) -> Response:
    """The form, with the policy that there is."""
    del viewer
    known, etag = await _known(client, model)
    rules = known.rules if known else (Rule(),)
    fields = fields_of(rules) | ({"paused": ["on"]} if known and known.paused else {})
    return _form(request, model, fields, known, etag)


@router.post("/console/policies/{model}/edit")
async def submit(request: Request, client: CurrentClient, viewer: CurrentViewer, model: str) -> Response:
    """Set the policy, show what would change, or change the form; what was typed is kept."""
    del viewer
    fields: dict[str, list[str]] = await read_fields(request)
    action, etag = (fields.pop(name, [""])[-1] for name in ("do", "etag"))
    known, newest = await _known(client, model)
    if action not in {"set", "compare"}:
        return _form(request, model, changed(fields, action), known, etag)
    rules, errors = rules_of(fields)
    valid, invalid = check(rules)
    if errors or valid is None:
        # The API would say the same, and knows nothing of those that are no rules yet.
        return _form(request, model, fields, known, etag, errors=errors | invalid, status=HTTPStatus.BAD_REQUEST)
    paused, comment = bool(fields.get("paused")), (fields.get("comment") or [""])[-1].strip()
    told: dict[str, Any] = {"changes": _changes(known, valid, paused=paused)}
    if action == "compare":
        return _form(request, model, fields, known, etag, **told)
    body: dict[str, Any] = {"rules": rules, "paused": paused, **({"comment": comment} if comment else {})}
    try:
        await client.put(path("policies", model), body, etag or None)
    except ApiError as error:
        if error.status not in _ON_FORM:
            raise
        if is_late := error.status in _CHANGED:
            # Sent again, it replaces the one that is told of here.
            etag = newest or ""
        lines = [] if error.fields or is_late else error.lines
        return _form(
            request, model, fields, known, etag,
            errors=error.fields, lines=lines, late=is_late, status=error.status, **(told if is_late else {}),
        )  # fmt: skip
    return see_other(f"/console/policies{path(model)}")


@router.post("/console/policies/{model}/{action}")
async def pause_or_resume(
    client: CurrentClient, viewer: CurrentViewer, model: str, action: Literal["pause", "resume"]
) -> Response:
    """Pause a policy, or have it go on."""
    del viewer
    await client.post(path("policies", model, action))
    return see_other(f"/console/policies{path(model)}")


async def _known(client: ApiClient, model: str) -> tuple[RetrainingPolicy | None, str | None]:
    try:
        found, etag = await client.get_with_etag(path("policies", model))
    except ApiError as error:
        if error.status is not HTTPStatus.NOT_FOUND:
            raise
        return None, None
    return RetrainingPolicy.model_validate(found, strict=False), etag


def _changes(known: RetrainingPolicy | None, rules: tuple[Rule, ...], *, paused: bool) -> list[Difference]:
    old = known.rules if known else ()
    both = {rule.name for rule in old} & {rule.name for rule in rules}
    before = _side(old, both, paused=known.paused) if known else {}
    return differences(before, _side(rules, both, paused=paused))


def _side(rules: tuple[Rule, ...], both: set[str], *, paused: bool) -> dict[str, Any]:
    # Of a rule that there was before a default is told where it differs; of one that is new or gone it says nothing.
    fields = {
        f"rule {rule.name}": rule.model_dump(exclude_none=True, exclude={"name"}) if rule.name in both else _told(rule)
        for rule in rules
    }
    return {"paused": paused, "order": [rule.name for rule in rules], **fields}


def _told(rule: Rule) -> dict[str, Any]:
    """What a rule says: what is not at its default, the conditions that it has, and the pause between trainings."""
    conditions = {name: part.model_dump() for name in ("calendar", "quality") if (part := getattr(rule, name))}
    changed = rule.model_dump(exclude_none=True, exclude_defaults=True, exclude={"name"})
    return changed | conditions | {"cooldown": rule.cooldown}


def _form(  # noqa: PLR0917  each is a part of the page
    request: Request,
    model: str,
    fields: Fields,
    known: RetrainingPolicy | None,
    etag: str | None,
    status: HTTPStatus = HTTPStatus.OK,
    **values: Any,
) -> Response:
    defaults: dict[str, Any] = {"errors": {}, "lines": [], "late": False, "changes": None}
    merged = defaults | values
    merged["errors"] = placed(merged["errors"])
    return render(
        request,
        "policy_form.html",
        status,
        model=model,
        fields=fields,
        count=count_of(fields),
        max_rules=MAX_RULES,
        days=DAYS,
        known=known,
        etag=etag or "",
        **merged,
    )
