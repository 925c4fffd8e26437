"""``/folders``: what the training sets hold, as their workers have counted it."""

from datetime import date
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BeforeValidator, StringConstraints

from api.context import CurrentAccess, CurrentServices
from api.cursors import NamePlace, decode_cursor, encode_cursor
from api.parameters import Cursor, Limit
from api.problems import ProblemError
from api.schemas import AgentFigures, DayCount, DayFigures, DayLogs, FolderDetails, FolderItem, FolderList, LogsPerDay
from api.view.folders import DateRange, Day, Folder, examples_of
from foldtune.excerpts import excerpt
from foldtune.knobs import not_a_number
from foldtune.topics import Topic

router = APIRouter(tags=["folders"])

# Of a list's items.
_NEWEST_DAYS = 30
# Whose days one answer adds up.
_MAX_ADDED = 100

_Day = Annotated[date, BeforeValidator(not_a_number)]
Since = Annotated[_Day | None, Query(description="First day (UTC) to count")]
Until = Annotated[_Day | None, Query(description="Day (UTC) before which counting ends")]


@router.get("/folders", response_model=FolderList)
async def list_folders(  # noqa: PLR0917  each is a parameter of the query
    access: CurrentAccess,
    services: CurrentServices,
    search: Annotated[str, Query(max_length=256, description="Part of their ids, in any case")] = "",
    prefix: Annotated[str, Query(max_length=256, description="Beginning of their ids")] = "",
    since: Since = None,
    until: Until = None,
    newest_days: Annotated[int, Query(ge=0, le=_NEWEST_DAYS, description="Of each one's `days`")] = _NEWEST_DAYS,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> FolderList:
    """Folders by id, with what there is to train on."""
    place, days, part = decode_cursor(NamePlace, cursor), _range(since, until), search.casefold()
    view = services.view.folders
    names, after = view.names(
        limit,
        lambda name: part in name.casefold(),
        prefix=prefix,
        only=access.folders,
        after=place.name if place else None,
    )
    return FolderList(
        items=[_item(folder, newest_days) for name in names if (folder := view.get(name, days))],
        next=encode_cursor(None if after is None else NamePlace(after)),
        as_of=view.as_of(services.view.partitions(Topic.FOLDER_STATS)),
        pending=view.pending,
    )


@router.get("/folders/{folder:path}", response_model=FolderDetails)
async def get_folder(
    access: CurrentAccess,
    services: CurrentServices,
    folder_id: Annotated[str, Path(alias="folder", min_length=1, max_length=256)],
    since: Since = None,
    until: Until = None,
) -> FolderDetails:
    """A folder by day, label and agent, and what is left out. Examples to read: `POST /previews` of it."""
    access.require_folder(folder_id)
    folder = services.view.folders.get(folder_id, _range(since, until))
    if folder is None:
        reason = f"folder {excerpt(folder_id, 100)!r} has no logs and no documents (yet)"
        raise ProblemError(HTTPStatus.NOT_FOUND, reason)
    return FolderDetails(
        **_item(folder, 0).model_dump(exclude={"days"}),
        days=[_figures(day) for day in folder.days()],
        earlier=_figures(folder.earlier) if folder.earlier else None,
        agents=[
            AgentFigures(agent_id=agent.agent_id, examples=examples_of(agent.labels), labels=agent.labels)
            for agent in folder.agents
        ],
        other_agents=folder.other_agents,
    )


@router.get("/logs-per-day", response_model=LogsPerDay)
async def get_logs_per_day(
    access: CurrentAccess,
    services: CurrentServices,
    folders: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=256)]],
        Query(alias="folder", max_length=_MAX_ADDED, description="Only of these"),
    ] = [],  # noqa: B006  FastAPI copies it
) -> LogsPerDay:
    """How many logs each day has: of all folders, or of those that are named."""
    for folder_id in folders:
        access.require_folder(folder_id)
    days = services.view.folders.logs_by_day(set(folders) or access.folders)
    return LogsPerDay(items=[DayLogs(day=day, logs=logs) for day, logs in days])


def _range(since: date | None, until: date | None) -> DateRange:
    if since is not None and until is not None and since >= until:
        reason = f"should be before until ({until}), got {since}"
        raise ProblemError(HTTPStatus.BAD_REQUEST, f"since: {reason}", fields=(("since", reason),))
    return DateRange(since, until)


def _item(folder: Folder, newest_days: int) -> FolderItem:
    total = folder.total
    return FolderItem(
        folder_id=folder.folder_id,
        as_of=folder.as_of,
        documents=folder.documents,
        newest_log_at=folder.newest_log_at,
        days=[DayCount(day=day.day, logs=day.logs, examples=day.examples) for day in folder.days(newest_days)],
        complete=not folder.divided,
        left_out=folder.left_out,
        **_counts(total),
    )


def _figures(day: Day) -> DayFigures:
    return DayFigures(day=day.day, **_counts(day))


def _counts(day: Day) -> dict[str, Any]:
    return {
        "logs": day.logs,
        "examples": day.examples,
        "labels": day.labels,
        "cited": day.cited,
        "cited_first": day.cited_first,
        "liked": day.liked,
        "disliked": day.disliked,
    }
