"""Who may call which route: the one table of both fronts. What is not in it is refused."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

from api.problems import ProblemError
from foldtune.excerpts import excerpt
from foldtune.settings import ApiSettings, Grant, Role

READERS = frozenset({Role.VIEWER, Role.REQUESTER, Role.APPROVER, Role.OPERATOR})
ANYBODY: frozenset[Role] = frozenset(Role)
_MAX_NAME = 256


class Scope(Enum):
    """How grants that are limited to models or folders apply to a route."""

    # To the model in the path.
    MODEL = auto()
    # The route itself applies them, to each item or to the body.
    ITEMS = auto()
    # Not at all: it takes a grant without limits.
    WHOLE = auto()


@dataclass(frozen=True)
class Rule:
    """The roles that may call a route, one of which is enough."""

    roles: frozenset[Role]
    scope: Scope


def _rule(scope: Scope, *roles: Role) -> Rule:
    return Rule(frozenset(roles), scope)


# By method and path. ``None`` for those that need no token: they say nothing of what is in the system.
RULES: Mapping[str, Rule | None] = {
    "GET /health": None,
    "GET /ready": None,
    "GET /openapi.json": Rule(ANYBODY, Scope.ITEMS),
    "GET /me": Rule(ANYBODY, Scope.ITEMS),
    "POST /requests": _rule(Scope.ITEMS, Role.REQUESTER),
    "GET /requests": Rule(READERS, Scope.ITEMS),
    "GET /requests/{id}": Rule(READERS, Scope.ITEMS),
    "GET /models/{model}/requests/{id}": Rule(READERS, Scope.MODEL),
    "GET /models/{model}/requests/{id}/request": Rule(READERS, Scope.MODEL),
    "GET /models/{model}/requests/{id}/time": Rule(READERS, Scope.MODEL),
    "GET /models/{model}/requests/{id}/events": Rule(READERS, Scope.MODEL),
    # What libraries write there nobody knows beforehand.
    "GET /models/{model}/requests/{id}/log": _rule(Scope.MODEL, Role.REQUESTER, Role.OPERATOR),
    "POST /models/{model}/requests/{id}/cancel": _rule(Scope.MODEL, Role.REQUESTER, Role.OPERATOR),
    "POST /models/{model}/requests/{id}/retry": _rule(Scope.MODEL, Role.REQUESTER),
    "GET /models": Rule(READERS, Scope.ITEMS),
    "GET /models/{model}": Rule(READERS, Scope.MODEL),
    "GET /models/{model}/versions": Rule(READERS, Scope.MODEL),
    "GET /models/{model}/versions/{version}": Rule(READERS, Scope.MODEL),
    "GET /models/{model}/versions/{version}/card": Rule(READERS, Scope.MODEL),
    "GET /models/{model}/versions/{version}/metrics": Rule(READERS, Scope.MODEL),
    "GET /models/{model}/versions/{version}/files": Rule(READERS, Scope.MODEL),
    "GET /models/{model}/versions/{version}/files/{path}": Rule(READERS, Scope.MODEL),
    "GET /models/{model}/versions/{version}/lineage": Rule(READERS, Scope.MODEL),
    "POST /models/{model}/versions/{version}/approve": _rule(Scope.MODEL, Role.APPROVER),
    "POST /models/{model}/versions/{version}/reject": _rule(Scope.MODEL, Role.APPROVER),
    # Users' questions.
    "GET /models/{model}/versions/{version}/evaluation": _rule(Scope.MODEL, Role.PRIVACY),
    "GET /policies": Rule(READERS, Scope.ITEMS),
    "GET /policies/{model}": Rule(READERS, Scope.MODEL),
    "PUT /policies/{model}": _rule(Scope.MODEL, Role.OPERATOR),
    "POST /policies/{model}/pause": _rule(Scope.MODEL, Role.OPERATOR),
    "POST /policies/{model}/resume": _rule(Scope.MODEL, Role.OPERATOR),
    "GET /policies/{model}/explain": Rule(READERS, Scope.MODEL),
    "GET /folders": Rule(READERS, Scope.ITEMS),
    "GET /folders/{folder}": Rule(READERS, Scope.ITEMS),
    "GET /logs-per-day": Rule(READERS, Scope.ITEMS),
    # To the role privacy it answers with users' questions, to others with counts.
    "POST /previews": _rule(Scope.ITEMS, Role.REQUESTER, Role.PRIVACY),
    "GET /previews/{id}/mined": _rule(Scope.ITEMS, Role.PRIVACY),
    "GET /dead-letters": _rule(Scope.ITEMS, Role.OPERATOR),
    "GET /dead-letters/{id}": _rule(Scope.ITEMS, Role.OPERATOR),
    "GET /dead-letters/{id}/value": _rule(Scope.ITEMS, Role.PRIVACY),
    "POST /dead-letters/replay": _rule(Scope.ITEMS, Role.OPERATOR),
    "POST /erasures": _rule(Scope.ITEMS, Role.PRIVACY),
    "POST /erasures/preview": _rule(Scope.ITEMS, Role.PRIVACY),
    "GET /erasures/{id}": _rule(Scope.ITEMS, Role.OPERATOR, Role.PRIVACY),
    "GET /audit": _rule(Scope.WHOLE, Role.OPERATOR, Role.PRIVACY),
}


@dataclass(frozen=True)
class Caller:
    """Whoever calls, by the name in their token, with what is granted to them."""

    name: str
    grants: tuple[Grant, ...] = ()


@dataclass(frozen=True)
class Access:
    """A caller's grants that count for one route."""

    caller: Caller
    grants: tuple[Grant, ...]

    def covers(self, *, model: str | None, folders: Collection[str] | None = ()) -> bool:
        """Whether a grant covers the model and all of the folders; ``None`` means every one that there is."""
        return any(_covers(grant, model, folders) for grant in self.grants)

    def require(self, *, model: str | None, folders: Collection[str] | None = ()) -> None:
        """Raises ``ProblemError`` (403) unless they are covered."""
        if not self.covers(model=model, folders=folders):
            what = "all models" if model is None else f"model {excerpt(model, 100)!r}"
            limits = "all folders" if folders is None else "each of these folders" if folders else ""
            reason = f"this caller's roles do not cover {what}{' and ' if limits else ''}{limits}"
            raise ProblemError(HTTPStatus.FORBIDDEN, reason)

    def of_role(self, role: Role) -> "Access":
        """The caller's grants of another role."""
        return _access(self.caller, {role})

    @property
    def models(self) -> frozenset[str] | None:
        """The models that grants cover, of whichever folders; ``None`` for every one that there is."""
        named = [grant.models for grant in self.grants]
        return None if None in named else frozenset(name for names in named for name in names or ())

    @property
    def folders(self) -> frozenset[str] | None:
        """The folders that grants cover, of whichever models; ``None`` for every one that there is."""
        named = [grant.folders for grant in self.grants]
        return None if None in named else frozenset(name for names in named for name in names or ())

    def covers_folder(self, folder_id: str) -> bool:
        """Whether a grant covers the folder, of whichever models."""
        return self.folders is None or folder_id in self.folders

    def require_folder(self, folder_id: str) -> None:
        """Raises ``ProblemError`` (403) unless the folder is covered."""
        if not self.covers_folder(folder_id):
            reason = f"this caller's roles do not cover folder {excerpt(folder_id, 100)!r}"
            raise ProblemError(HTTPStatus.FORBIDDEN, reason)


def authorize(route: str, caller: Caller, path_model: str | None = None) -> Access:
    """What of the caller's grants counts for a route of ``RULES``.

    Raises:
        ProblemError: 403, the caller has none of the route's roles, or only for other models or folders.
    """
    rule = RULES.get(route)
    if rule is None:
        raise ProblemError(HTTPStatus.FORBIDDEN, f"no role may call {route}")
    access = _access(caller, rule.roles)
    if not access.grants:
        raise ProblemError(HTTPStatus.FORBIDDEN, f"needs one of the roles {', '.join(sorted(rule.roles))}")
    if rule.scope is Scope.MODEL:
        # Without one every model is meant, which a limited grant does not cover.
        access.require(model=path_model)
    elif rule.scope is Scope.WHOLE:
        access.require(model=None, folders=None)
    return access


def routes_of(caller: Caller) -> dict[str, frozenset[str] | None]:
    """The routes that need a role which the caller has, each with the models that it takes; ``None`` is every one."""
    routes: dict[str, frozenset[str] | None] = {}
    for route, rule in RULES.items():
        if rule is None:
            continue
        access = _access(caller, rule.roles)
        # A limit to folders is no limit to models, but keeps from what is of all folders.
        if access.grants and (rule.scope is not Scope.WHOLE or access.covers(model=None, folders=None)):
            routes[route] = access.models
    return routes


def caller_of(claims: Mapping[str, Any], settings: ApiSettings) -> Caller:
    """The caller that a verified token names; without values that are known, one without grants."""
    name = str(claims.get("sub") or claims.get("client_id") or "unknown")
    values = settings.role_values(claims)
    if settings.grants:
        granted: tuple[Grant, ...] = tuple(grant for grant in settings.grants if grant.value in values)
    else:
        roles = tuple(role for role in Role if role in values)
        granted = (Grant(roles=roles),) if roles else ()
    return Caller(shortened(name), granted)


def shortened(name: str) -> str:
    """A caller's name as events take it: bytes that are not UTF-8 come as surrogates, which JSON does not know."""
    return name[:_MAX_NAME].encode(errors="replace").decode() or "unknown"


def _access(caller: Caller, roles: Collection[Role]) -> Access:
    """The caller's grants of one of the roles."""
    return Access(caller, tuple(grant for grant in caller.grants if set(roles) & set(grant.roles)))


def _covers(grant: Grant, model: str | None, folders: Collection[str] | None) -> bool:
    if grant.models is not None and model not in grant.models:
        return False
    if grant.folders is None:
        return True
    return folders is not None and set(folders) <= set(grant.folders)
