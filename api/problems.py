"""What is wrong with a call, as a problem document (RFC 9457)."""

from http import HTTPStatus

from pydantic import ValidationError

from foldtune.errors import FoldtuneError
from foldtune.excerpts import bounded
from foldtune.reasons import field_of, invalid_fields, reasons_of

CONTENT_TYPE = "application/problem+json"
# Of every answer: none is a page, and none is kept by a shared cache.
SECURITY_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
UNAVAILABLE = "not available at the moment; retry later"


class ProblemError(FoldtuneError):
    """The call is refused:"""

    def __init__(
        self,
        status: HTTPStatus,
        *errors: str,
        fields: tuple[tuple[str, str], ...] = (),
        headers: dict[str, str] | None = None,
        **members: object,
    ) -> None:
        """``errors`` are lines for people, ``fields`` names and reasons; ``members`` are added to the document."""
        super().__init__(*errors)
        self.status = status
        self.errors = errors
        self.headers = headers or {}
        self._fields = fields
        self._members = members

    def document(self) -> dict[str, object]:
        """The problem document; ``errors`` has one line for each thing that is wrong."""
        document: dict[str, object] = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": "; ".join(self.errors),
            "errors": list(self.errors),
        }
        if self._fields:
            document["fields"] = [{"name": name, "reason": reason} for name, reason in self._fields]
        return document | self._members


def invalid(error: ValidationError, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> ProblemError:
    """The problem of a body or parameter: each field with its bound."""
    fields = tuple((field_of(location), reason) for location, reason, _ in invalid_fields(error))
    return ProblemError(status, *bounded(reasons_of(error)), fields=fields)


def unavailable() -> ProblemError:
    """Brokers or the object store do not answer."""
    return ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, UNAVAILABLE, headers={"retry-after": "5"})
