"""Who may call which route: the whole table, each role, and limits to models and folders."""

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.access import RULES, Access, Caller, Scope, authorize, caller_of
from api.app import RouteRulesError, check_rules, create_app
from api.context import Services
from api.problems import ProblemError
from api.view.system import SystemView
from foldtune.events import State
from foldtune.settings import ApiSettings, ClaimGrant, Grant, Role
from tests.api_routes import ALLOWED, BODIES, method_and_path

from .conftest import EVERY_ROLE, MemoryPublisher, bearer, client_of, status_record

REQUESTER = Role.REQUESTER


def call(client: TestClient, route: str, token: str | None) -> int:
    method, path = method_and_path(route)
    headers = {} if token is None else bearer(token)
    return client.request(method, path, headers=headers, json=BODIES.get(route)).status_code


def test_the_table_has_a_row_for_each_route() -> None:
    assert set(ALLOWED) == set(RULES)


@pytest.mark.parametrize("route", ALLOWED)
def test_a_route_takes_the_roles_of_the_table_and_no_others(services: Services, route: str) -> None:
    services.view.requests.apply(status_record(1, State.FAILED))
    client, roles = client_of(services), ALLOWED[route]
    for token in (None, "nobodys-token"):
        assert (call(client, route, token) == 401) == (roles is not None)
    for role in EVERY_ROLE:
        code = call(client, route, role)
        assert (code == 403) == (roles is not None and role not in roles), (role, code)
        assert code not in {401, 500}


def test_a_route_without_a_row_keeps_the_api_from_starting(services: Services) -> None:
    app = create_app(services)
    app.add_api_route("/secrets", lambda: "all of them")
    with pytest.raises(RouteRulesError, match="GET /secrets"):
        check_rules(app)
    app = create_app(services)
    app.mount("/files", FastAPI())
    with pytest.raises(RouteRulesError, match="Mount"):
        check_rules(app)


def test_a_route_without_a_row_is_refused_even_if_it_is_served(services: Services) -> None:
    app = create_app(services)
    app.add_api_route("/secrets", lambda: "all of them")
    assert TestClient(app, base_url="http://localhost", headers=bearer("anybody")).get("/secrets").status_code == 403


def test_a_grant_for_one_model_shows_and_changes_no_other(
    services: Services, view: SystemView, publisher: MemoryPublisher
) -> None:
    view.requests.apply(status_record(1))
    view.requests.apply(status_record(2, model="sales", request_id="r-2"))
    client = client_of(services, "of-support")
    assert [item["model"] for item in client.get("/requests").json()["items"]] == ["support"]
    assert client.get("/requests/r-2").status_code == 404
    assert client.get("/models/sales/requests/r-2").status_code == 403
    assert client.post("/models/sales/requests/r-2/cancel").status_code == 403
    assert client.post("/requests", json={"model": "sales"}).status_code == 403
    assert client.get("/audit").status_code == 403
    assert not publisher.events
    assert client.get("/models/support/requests/r-1").status_code == 200
    assert client.post("/requests", json={"model": "support"}).status_code == 202


@pytest.mark.parametrize(
    ("data", "code"), [({"folders": ["handbook"]}, 202), ({"folders": ["handbook", "pricing"]}, 403), ({}, 403)]
)
def test_a_grant_for_folders_trains_on_these_alone(client: TestClient, data: dict[str, Any], code: int) -> None:
    body = {"model": "support", "data": data}
    assert client.post("/requests", json=body, headers=bearer("of-handbook")).status_code == code


@pytest.mark.parametrize(
    ("claims", "roles"),
    [
        ({"roles": ["viewer", "unknown"]}, {"viewer"}),
        ({"roles": "viewer requester"}, {"viewer", "requester"}),
        ({"roles": "[viewer requester]"}, {"viewer", "requester"}),
        ({"roles": []}, set()),
        ({}, set()),
        ({"roles": {"viewer": True}}, set()),
        ({"roles": [1, None, ["viewer"]]}, set()),
        ({"scope": "operator"}, set()),
    ],
)
def test_roles_are_those_that_the_claim_names(claims: dict[str, Any], roles: set[str]) -> None:
    caller = caller_of({"sub": "u", **claims}, ApiSettings())
    assert {role for grant in caller.grants for role in grant.roles} == roles


def test_a_claim_may_lie_in_an_object_or_have_a_dot_in_its_name() -> None:
    nested, dotted = ApiSettings(roles_claim="realm_access.roles"), ApiSettings(roles_claim="https://x.example/roles")
    assert caller_of({"realm_access": {"roles": ["viewer"]}}, nested).grants
    assert not caller_of({"realm_access": "viewer"}, nested).grants
    assert caller_of({"https://x.example/roles": ["viewer"]}, dotted).grants


def test_with_grants_only_they_count() -> None:
    grants = (ClaimGrant(value="search-team", roles=(Role.REQUESTER,), models=("support",)),)
    settings = ApiSettings(grants=grants)
    assert caller_of({"sub": "u", "roles": ["search-team"]}, settings).grants == grants
    assert caller_of({"sub": "u", "roles": ["operator"]}, settings).grants == ()


def test_roles_of_different_grants_are_not_mixed() -> None:
    """To request for ``a`` and to read ``b`` is not to request for ``b``."""
    caller = Caller("u", (Grant(roles=(REQUESTER,), models=("a",)), Grant(roles=(Role.VIEWER,), models=("b",))))
    access = authorize("POST /requests", caller)
    assert (access.covers(model="a"), access.covers(model="b")) == (True, False)


def test_limits_of_a_grant() -> None:
    access = Access(Caller("u"), (Grant(roles=(REQUESTER,), models=("a",), folders=("f",)),))
    assert access.covers(model="a")
    assert access.covers(model="a", folders=["f"])
    for model, folders in (("b", ()), (None, ()), ("a", ["f", "g"]), ("a", None)):
        assert not access.covers(model=model, folders=folders)


def test_routes_about_everything_need_a_grant_without_limits() -> None:
    for grant in (Grant(roles=tuple(Role), models=("a",)), Grant(roles=tuple(Role), folders=("f",))):
        for route, rule in RULES.items():
            if rule and rule.scope is Scope.WHOLE:
                with pytest.raises(ProblemError):
                    authorize(route, Caller("u", (grant,)))


def test_the_page_shows_who_may_call_what() -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    for route, roles in ALLOWED.items():
        who = "no token" if roles is None else "any role" if roles == set(Role) else ", ".join(sorted(roles))
        assert f"| `{route}` | {who} |" in page, route
