"""``/audit``."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.context import CurrentServices
from api.cursors import decode_cursor, encode_cursor
from api.parameters import Cursor, Limit
from api.schemas import AuditList
from api.view.audit import AuditKey
from foldtune.events import Id
from foldtune.knobs import ModelName

router = APIRouter()


@router.get("/audit", response_model=AuditList, response_model_exclude_none=False)
async def list_audit(  # noqa: PLR0917  each is a parameter of the query
    services: CurrentServices,
    who: Annotated[Id | None, Query(description="Name of a caller")] = None,
    action: Annotated[str | None, Query(max_length=64, description="Such as `request.create`")] = None,
    model: Annotated[ModelName | None, Query()] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> AuditList:
    """Who changed what, and who read users' texts: of the newest ten thousand entries."""
    entries, after = services.view.audit.page(
        limit,
        lambda entry: (
            (who is None or entry.who == who)
            and (action is None or entry.action == action)
            and (model is None or entry.model == model)
        ),
        decode_cursor(AuditKey, cursor),
    )
    return AuditList(items=entries, next=encode_cursor(after))
