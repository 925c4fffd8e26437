"""``/policies``: automatic retraining, by model, and why it has or has not asked for a training."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from api.access import Access
from api.audit import audit_entry
from api.bodies import read_body
from api.context import CurrentAccess, CurrentServices, Services
from api.cursors import NamePlace, decode_cursor, encode_cursor
from api.etags import is_named
from api.parameters import Cursor, IfNoneMatch, Limit, PathModel
from api.problems import ProblemError
from api.schemas import PolicyBody, PolicyExplanation, PolicyList, json_body
from api.view.policies import MAX_CHANGES, PolicyEntry
from foldtune.events import RetrainingPolicy, now
from foldtune.policy import MAX_POLICY_BYTES
from foldtune.topics import Topic

router = APIRouter(prefix="/policies", tags=["policies"])

# Left for the name of whoever pauses it: workers would not take a larger one, and go on with the policy before.
_MAX_NAME_BYTES = 2048


@router.get("", response_model=PolicyList)
async def list_policies(
    access: CurrentAccess, services: CurrentServices, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """The policies by model, each with what it has decided last."""
    decisions, place = services.view.decisions, decode_cursor(NamePlace, cursor)
    entries, after = services.view.policies.page(
        limit, lambda entry: _is_covered(access, entry), place.name if place else None
    )
    items = b",".join(
        b'{"policy":%s,"decision":%s}' % (entry.policy.encode(), decisions.newest(entry.policy.model) or b"null")
        for entry in entries
    )
    following = encode_cursor(None if after is None else NamePlace(after))
    return _json(b'{"items":[%s],"next":%s}' % (items, b"null" if following is None else b'"%s"' % following.encode()))


@router.get("/{model}", response_model=RetrainingPolicy)
async def get_policy(
    access: CurrentAccess, services: CurrentServices, model: PathModel, if_none_match: IfNoneMatch = None
) -> Response:
    """The policy of a model, with the entity tag by which it can be replaced."""
    entry = _found(services, model)
    access.require(model=model, folders=_folders(entry.policy))
    if if_none_match is not None and is_named(entry.etag, if_none_match):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=_headers(entry))
    return _answer(entry)


@router.put("/{model}", response_model=RetrainingPolicy, openapi_extra=json_body(PolicyBody))
async def set_policy(
    request: Request,
    access: CurrentAccess,
    services: CurrentServices,
    model: PathModel,
    if_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Replace a model's policy as a whole. `If-Match` names the one that is replaced; it is left out for the first."""
    body = await read_body(request, PolicyBody)
    policy = RetrainingPolicy(
        model=model,
        at=now(),
        by=access.caller.name,
        comment=body.comment,
        origin="person",
        rules=body.rules,
        paused=body.paused,
    )
    _require_size(policy, MAX_POLICY_BYTES - _MAX_NAME_BYTES)
    access.require(model=model, folders=_folders(policy))
    async with services.view.policies.changing:
        known = services.view.policies.get(model)
        _require_match(known, if_match)
        return _answer(await _publish(access, services, "policy.set", policy, known))


@router.post("/{model}/pause", response_model=RetrainingPolicy)
async def pause(access: CurrentAccess, services: CurrentServices, model: PathModel) -> Response:
    """Request no training of a model until its policy is resumed."""
    return await _set_paused(access, services, model, paused=True)


@router.post("/{model}/resume", response_model=RetrainingPolicy)
async def resume(access: CurrentAccess, services: CurrentServices, model: PathModel) -> Response:
    """Undo a pause."""
    return await _set_paused(access, services, model, paused=False)


@router.get("/{model}/explain", response_model=PolicyExplanation)
async def explain(
    access: CurrentAccess,
    services: CurrentServices,
    model: PathModel,
    limit: Annotated[int, Query(ge=1, le=MAX_CHANGES)] = 10,
) -> Response:
    """Which rule waits for what: each figure, its bound, since when it is met, what is in the way, and until when."""
    decisions, known = services.view.decisions, services.view.policies.get(model)
    # Figures name the folder that they are of.
    access.require(model=model, folders=_folders(known.policy) if known else None)
    newest = decisions.newest(model)
    if newest is None:
        _found(services, model)
    # Earlier ones may be of a policy of other folders.
    told = decisions.changes(model, limit) if access.covers(model=model, folders=None) else []
    changes = b",".join(told)
    return _json(b'{"decision":%s,"changes":[%s]}' % (newest or b"null", changes))


async def _set_paused(access: Access, services: Services, model: str, *, paused: bool) -> Response:
    async with services.view.policies.changing:
        known = _found(services, model)
        if known.policy.paused == paused:
            return _answer(known)
        changes = {"paused": paused, "at": now(), "by": access.caller.name, "comment": None}
        policy = known.policy.model_copy(update=changes)
        return _answer(await _publish(access, services, f"policy.{'pause' if paused else 'resume'}", policy, known))


async def _publish(
    access: Access, services: Services, action: str, policy: RetrainingPolicy, known: PolicyEntry | None
) -> PolicyEntry:
    """Publish a policy in the place of the one that is known, which may be about other folders."""
    if known:
        access.require(model=policy.model, folders=_folders(known.policy))
    _require_size(policy, MAX_POLICY_BYTES)
    before = _side(known.policy) if known else None
    entry = audit_entry(
        access.caller,
        action,
        policy.model,
        model=policy.model,
        folders=_folders(policy),
        before=before,
        after=_side(policy),
    )
    await services.audit.write(entry)
    place = await services.publisher.publish(Topic.POLICIES, policy, policy.model)
    return services.view.policies.put(policy, place)


def _require_size(policy: RetrainingPolicy, bound: int) -> None:
    if (size := len(policy.encode())) > bound:
        raise ProblemError(HTTPStatus.BAD_REQUEST, f"body: as an event it has {size} bytes, at most {bound}")


def _require_match(known: PolicyEntry | None, if_match: str | None) -> None:
    if known is None:
        if if_match is not None:
            raise ProblemError(HTTPStatus.PRECONDITION_FAILED, "if-match: the model has no policy (any more)")
    elif if_match is None:
        reason = "if-match: should be the etag of the policy that is replaced"
        raise ProblemError(HTTPStatus.PRECONDITION_REQUIRED, reason)
    elif not is_named(known.etag, if_match):
        reason = f"if-match: the policy is {known.etag} now, set at {known.policy.at.isoformat()}"
        raise ProblemError(HTTPStatus.PRECONDITION_FAILED, reason, headers=_headers(known))


def _folders(policy: RetrainingPolicy) -> tuple[str, ...] | None:
    """The folders of its rules; ``None`` for all that there are."""
    named = [rule.data.folders for rule in policy.rules]
    if None in named:
        return None
    return tuple(dict.fromkeys(folder for folders in named for folder in folders or ()))


def _is_covered(access: Access, entry: PolicyEntry) -> bool:
    return access.covers(model=entry.policy.model, folders=_folders(entry.policy))


def _side(policy: RetrainingPolicy) -> dict[str, Any]:
    return policy.model_dump(mode="json", exclude_none=True, exclude_defaults=True, exclude={"model"})


def _found(services: Services, model: str) -> PolicyEntry:
    entry = services.view.policies.get(model)
    if entry is None:
        raise ProblemError(HTTPStatus.NOT_FOUND, f"model {model!r} has no policy (yet)")
    return entry


def _headers(entry: PolicyEntry) -> dict[str, str]:
    return {"etag": entry.etag, "cache-control": "private, no-cache"}


def _answer(entry: PolicyEntry) -> Response:
    return _json(entry.policy.encode(), _headers(entry))


def _json(content: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(content, media_type="application/json", headers=headers)
