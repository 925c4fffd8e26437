"""Who may call which route of the API: stated here once more, and not computed, for the tests of both fronts."""

from typing import Any

from foldtune.settings import Role

READERS = {Role.VIEWER, Role.REQUESTER, Role.APPROVER, Role.OPERATOR}
# Of each route the roles that may call it; None: no token is needed.
ALLOWED: dict[str, set[Role] | None] = {
    "GET /health": None,
    "GET /ready": None,
    "GET /openapi.json": set(Role),
    "GET /me": set(Role),
    "POST /requests": {Role.REQUESTER},
    "GET /requests": READERS,
    "GET /requests/{id}": READERS,
    "GET /models/{model}/requests/{id}": READERS,
    "GET /models/{model}/requests/{id}/request": READERS,
    "GET /models/{model}/requests/{id}/time": READERS,
    "GET /models/{model}/requests/{id}/events": READERS,
    "GET /models/{model}/requests/{id}/log": {Role.REQUESTER, Role.OPERATOR},
    "POST /models/{model}/requests/{id}/cancel": {Role.REQUESTER, Role.OPERATOR},
    "POST /models/{model}/requests/{id}/retry": {Role.REQUESTER},
    "GET /models": READERS,
    "GET /models/{model}": READERS,
    "GET /models/{model}/versions": READERS,
    "GET /models/{model}/versions/{version}": READERS,
    "GET /models/{model}/versions/{version}/card": READERS,
    "GET /models/{model}/versions/{version}/metrics": READERS,
    "GET /models/{model}/versions/{version}/files": READERS,
    "GET /models/{model}/versions/{version}/files/{path}": READERS,
    "GET /models/{model}/versions/{version}/lineage": READERS,
    "POST /models/{model}/versions/{version}/approve": {Role.APPROVER},
    "POST /models/{model}/versions/{version}/reject": {Role.APPROVER},
    "GET /models/{model}/versions/{version}/evaluation": {Role.PRIVACY},
    "GET /policies": READERS,
    "GET /policies/{model}": READERS,
    "PUT /policies/{model}": {Role.OPERATOR},
    "POST /policies/{model}/pause": {Role.OPERATOR},
    "POST /policies/{model}/resume": {Role.OPERATOR},
    "GET /policies/{model}/explain": READERS,
    "GET /folders": READERS,
    "GET /folders/{folder}": READERS,
    "GET /logs-per-day": READERS,
    "POST /previews": {Role.REQUESTER, Role.PRIVACY},
    "GET /previews/{id}/mined": {Role.PRIVACY},
    "GET /dead-letters": {Role.OPERATOR},
    "GET /dead-letters/{id}": {Role.OPERATOR},
    "GET /dead-letters/{id}/value": {Role.PRIVACY},
    "POST /dead-letters/replay": {Role.OPERATOR},
    "POST /erasures": {Role.PRIVACY},
    "POST /erasures/preview": {Role.PRIVACY},
    "GET /erasures/{id}": {Role.OPERATOR, Role.PRIVACY},
    "GET /audit": {Role.OPERATOR, Role.PRIVACY},
}
# Bodies that pass the checks of who may, and no other: nothing is changed by them.
BODIES: dict[str, Any] = {route: {"refused": True} for route in ALLOWED if route.startswith(("POST ", "PUT "))}


def method_and_path(route: str) -> tuple[str, str]:
    """A call of the route for model ``support``, request ``r-1`` and so on."""
    method, _, path = route.partition(" ")
    letter = "0:1" if "dead-letters" in path else "r-1"
    values = {"model": "support", "id": letter, "version": "000001", "path": "README.md", "folder": "f"}
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value)
    return method, path
