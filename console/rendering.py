"""Templates, and how they write times, numbers and words."""

import tomllib
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from console import assets
from foldtune.events import State

_FOLDER = Path(__file__).parent
# No inline script or style, nothing of other hosts, no frame around it, and forms to this host alone.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    # Without any, a browser would not say which page a form is of.
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "x-frame-options": "DENY",
}


# In the menu: whoever may call the route sees the page.
_PAGES = (
    ("GET /models", "/console/", "models"),
    ("POST /requests", "/console/fine-tune", "fine_tune"),
    ("GET /requests", "/console/jobs", "jobs"),
    ("GET /folders", "/console/folders", "folders"),
    ("GET /policies", "/console/policies", "policies"),
    ("GET /dead-letters", "/console/dead-letters", "dead_letters"),
    ("POST /erasures", "/console/privacy", "privacy"),
    ("GET /audit", "/console/audit", "audit"),
)
_METRICS = (
    ("ndcg_at_10", "nDCG@10"),
    ("mrr_at_10", "MRR@10"),
    ("recall_at_1", "Recall@1"),
    ("recall_at_5", "Recall@5"),
    ("recall_at_10", "Recall@10"),
    ("recall_at_50", "Recall@50"),
    ("recall_at_100", "Recall@100"),
)


@cache
def words() -> dict[str, Any]:
    """All words of the interface."""
    return tomllib.loads((_FOLDER / "words.toml").read_text())


def render(request: Request, template: str, code: HTTPStatus = HTTPStatus.OK, **values: Any) -> HTMLResponse:
    """A page, or a part of one."""
    found = _environment().get_template(template)
    shared = {"viewer": getattr(request.state, "viewer", None), "part": "hx-request" in request.headers}
    text = found.render(request=request, **shared, **values)
    # JSON may have halves of characters, which no page can.
    return HTMLResponse(text.encode(errors="replace"), code.value, headers=HEADERS)


class _Environment(Environment):
    """In brackets stands a key: what others have named like a method of dicts is not that method."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        """The item, or that there is none."""
        if not isinstance(obj, dict):
            return super().getitem(obj, argument)
        try:
            return obj[argument]
        except KeyError:
            return self.undefined(obj=obj, name=argument)


@cache
def _environment() -> Environment:
    environment = _Environment(
        loader=PackageLoader("console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # The words and the code are those of the start, too.
        auto_reload=False,
    )
    environment.globals |= {
        "w": words(),
        "asset": assets.address,
        "pages": tuple((route, address, words()["site"][name]) for route, address, name in _PAGES),
        "known_states": tuple(state.value for state in State),
        "metrics": _METRICS,
    }
    environment.filters |= {
        "time": time_element,
        "duration": duration,
        "number": number,
        "dollars": dollars,
        "score": score,
        "change": change,
        "signed": signed,
        "percent": lambda share: f"{share:.0%}".replace("%", " %"),
        "path": lambda text: quote(str(text), safe=""),
    }
    return environment


def following(cursor: str | None, **query: str | list[str]) -> str | None:
    """The address of the next page of a list, below the page's own."""
    if cursor is None:
        return None
    given = {name: value for name, value in query.items() if value}
    return f"?{urlencode(given | {'cursor': cursor}, doseq=True)}"


def _unit(name: str) -> str:
    return str(words()["units"][name])


def time_element(moment: str | datetime | None) -> str:
    """A time in UTC, which the page's script writes in the viewer's zone."""
    if moment is None:
        return _unit("none")
    at = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    try:
        at = at.astimezone(UTC)
    except OverflowError:
        # In the first or last hours that there are, of another zone.
        return at.isoformat()
    exact = at.isoformat(timespec="seconds").replace("+00:00", "Z")
    return Markup('<time datetime="{}" title="{}">{} UTC</time>').format(exact, exact, f"{at:%Y-%m-%d %H:%M}")


def duration(seconds: float | None) -> str:
    """As people say it: the two largest units."""
    if seconds is None:
        return _unit("none")
    left = max(0, round(seconds))
    parts: list[str] = []
    units = words()["units"]["durations"]
    for unit, size in zip(units, (86400, 3600, 60, 1), strict=True):
        count, left = divmod(left, size)
        if count or (parts and len(parts) < 2):
            parts.append(f"{count} {unit}")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if not part.startswith("0 ")) or f"0 {units[-1]}"


def number(value: float | None) -> str:
    """With the thousands apart."""
    return _unit("none") if value is None else f"{value:,}"


def dollars(value: float | None) -> str:
    """An amount, or that no price is known."""
    return _unit("no_price") if value is None else f"${value:,.2f}"


def score(value: float | None) -> str:
    """A metric between 0 and 1, without its zero."""
    return _unit("none") if value is None else f"{value:.3f}".removeprefix("0")


def signed(value: float) -> str:
    """A difference with its sign; one that rounds to nothing has neither."""
    digits = f"{abs(value):.3f}".removeprefix("0")
    return digits if digits == ".000" else f"{_unit('plus' if value > 0 else 'minus')}{digits}"


def change(value: float | None) -> str:
    """A difference in the colour that goes with its sign."""
    if value is None:
        return _unit("none")
    text = signed(value)
    kind = "same" if text == ".000" else "better" if value > 0 else "worse"
    return Markup('<span class="{}">{}</span>').format(kind, text)
