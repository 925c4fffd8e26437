"""Records that were rejected."""

from http import HTTPStatus

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.api_client import ApiError, path
from console.context import CurrentClient, CurrentViewer
from console.rendering import following, render
from console.sign_in import read_fields

router = APIRouter()


@router.get("/console/dead-letters")
async def list_dead_letters(  # noqa: PLR0917  each is a parameter of the query
    request: Request,
    client: CurrentClient,
    viewer: CurrentViewer,
    topic: str = "",
    cause: str = "",
    cursor: str | None = None,
) -> Response:
    """What was rejected, by cause; some of them can be chosen for a replay."""
    del viewer
    return await _list(request, client, {"topic": topic.strip(), "cause": cause}, cursor)


@router.get("/console/dead-letters/{letter_id}/value")
async def show_value(request: Request, client: CurrentClient, viewer: CurrentViewer, letter_id: str) -> Response:
    """The bytes of a record: the API audits each read."""
    del viewer
    found = await client.get(path("dead-letters", letter_id, "value"))
    return render(request, "dead_letter_value.html", letter=found)


@router.post("/console/dead-letters/replay")
async def replay(request: Request, client: CurrentClient, viewer: CurrentViewer) -> Response:
    """Publish records again, where they came from."""
    del viewer
    fields = await read_fields(request)
    chosen = fields.get("ids", [])
    shown = {name: fields.get(name, [""])[-1] for name in ("topic", "cause")}
    try:
        done = await client.post("/dead-letters/replay", {"ids": chosen})
    except ApiError as error:
        if error.status is not HTTPStatus.BAD_REQUEST or chosen:
            raise
        return await _list(request, client, shown, None, status=error.status)
    return await _list(request, client, shown, None, done)


async def _list(  # noqa: PLR0917  each is a part of the page
    request: Request,
    client: CurrentClient,
    shown: dict[str, str],
    cursor: str | None,
    done: object = None,
    status: HTTPStatus = HTTPStatus.OK,
) -> Response:
    found = await client.get("/dead-letters", cursor=cursor, **{name: value or None for name, value in shown.items()})
    return render(
        request,
        "dead_letters.html",
        status,
        letters=found["items"],
        causes=found["causes"],
        next=following(found["next"], **shown),
        shown=shown,
        done=done,
        none_chosen=status is HTTPStatus.BAD_REQUEST,
    )
