"""``/dead-letters``: records that were rejected. Their bytes may be users' words, and need a role of their own."""

import asyncio
import base64
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from aiokafka.errors import KafkaError
from fastapi import APIRouter, Path, Query, Request

from api.access import Access
from api.audit import audit_entry
from api.bodies import read_body
from api.context import CurrentAccess, CurrentServices, Services
from api.cursors import decode_cursor, encode_cursor
from api.parameters import Cursor, Limit
from api.problems import ProblemError, unavailable
from api.schemas import (
    CauseCount,
    DeadLetterItem,
    DeadLetterList,
    DeadLetterValue,
    RefusedReplay,
    ReplayBody,
    ReplayResult,
    json_body,
)
from api.view.dead_letters import LetterKey, cause_of
from api.view.follower import read_record
from foldtune.errors import TRANSIENT_ERRORS
from foldtune.knobs import WrittenTime
from foldtune.topics import Topic
from streams.publishing.dead_letter_replay import (
    DeadLetter,
    decode_headers,
    input_partitions,
    refusal_reason,
    replay,
)

router = APIRouter(tags=["dead letters"])

_CAUSES = 20

LetterId = Annotated[str, Path(alias="id", pattern=r"^[0-9]{1,10}:[0-9]{1,18}$")]


@router.get("/dead-letters", response_model=DeadLetterList)
async def list_dead_letters(  # noqa: PLR0917  each is a parameter of the query
    access: CurrentAccess,
    services: CurrentServices,
    topic: Annotated[str | None, Query(max_length=249, description="Where it came from, without prefix")] = None,
    cause: Annotated[str | None, Query(max_length=1024, description="One of `causes`")] = None,
    since: Annotated[WrittenTime | None, Query(description="Earliest time of their rejection")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> DeadLetterList:
    """The records that were rejected, the newest first, each with the field and the bound that it exceeded."""
    name = f"{services.settings.kafka.topic_prefix}{topic}"

    def keep(letter: DeadLetter) -> bool:
        return (
            (topic is None or (letter.origin is not None and letter.origin.topic == name))
            and (cause is None or cause_of(letter).reason == cause)
            and (since is None or letter.at >= since)
            and _is_covered(access, letter)
        )

    table, prefix = services.view.dead_letters, services.settings.kafka.topic_prefix
    letters, after = table.page(limit, keep, decode_cursor(LetterKey, cursor))
    causes = [
        CauseCount(topic=found.topic and found.topic.removeprefix(prefix), cause=found.reason, count=count)
        for found, count in table.causes.most_common(_CAUSES)
    ]
    return DeadLetterList(
        items=[_item(letter) for letter in letters],
        causes=causes if access.covers(model=None, folders=None) else None,
        next=encode_cursor(after),
    )


@router.get("/dead-letters/{id}", response_model=DeadLetterItem)
async def get_dead_letter(access: CurrentAccess, services: CurrentServices, letter_id: LetterId) -> DeadLetterItem:
    """A record that was rejected, without its bytes."""
    return _item(_found(access, services, letter_id))


@router.get("/dead-letters/{id}/value", response_model=DeadLetterValue)
async def get_value(access: CurrentAccess, services: CurrentServices, letter_id: LetterId) -> DeadLetterValue:
    """The record's key, headers and bytes. Each read is audited."""
    letter = _found(access, services, letter_id)
    await services.audit.write(audit_entry(access.caller, "dead_letter.read", letter_id, folders=_folders(letter)))
    try:
        record = await read_record(services.settings.kafka, Topic.DEAD_LETTERS, letter.partition, letter.offset)
    except (KafkaError, TimeoutError) as error:
        raise unavailable() from error
    if record is None:
        raise _not_found(letter_id)
    value: bytes = record.value or b""
    return DeadLetterValue(
        id=letter_id,
        key=None if record.key is None else record.key.decode(errors="backslashreplace"),
        headers=decode_headers(record),
        text=value.decode(errors="backslashreplace"),
        base64=base64.b64encode(value).decode(),
    )


@router.post("/dead-letters/replay", response_model=ReplayResult, openapi_extra=json_body(ReplayBody))
async def replay_dead_letters(request: Request, access: CurrentAccess, services: CurrentServices) -> ReplayResult:
    """Publish records again, unchanged, where they came from. One that fails again is a new dead letter."""
    body = await read_body(request, ReplayBody)
    letters = [_found(access, services, letter_id) for letter_id in dict.fromkeys(body.ids)]
    kafka = services.settings.kafka
    try:
        partitions = await asyncio.to_thread(input_partitions, kafka)
        reasons = {letter.id: refusal_reason(letter, kafka, partitions) for letter in letters}
        replayable = [letter for letter in letters if reasons[letter.id] is None]
        for letter in replayable:
            entry = audit_entry(access.caller, "dead_letter.replay", letter.id, folders=_folders(letter))
            await services.audit.write(entry)
        count = await asyncio.to_thread(replay, kafka, replayable, partitions) if replayable else 0
    except TRANSIENT_ERRORS as error:
        raise unavailable() from error
    refused = [RefusedReplay(id=letter_id, reason=reason) for letter_id, reason in reasons.items() if reason]
    return ReplayResult(replayed=count, refused=refused)


def _found(access: Access, services: Services, letter_id: str) -> DeadLetter:
    letter = services.view.dead_letters.get(letter_id)
    if letter is None:
        raise _not_found(letter_id)
    access.require(model=None, folders=_folders(letter))
    return letter


def _is_covered(access: Access, letter: DeadLetter) -> bool:
    return access.covers(model=None, folders=_folders(letter))


def _folders(letter: DeadLetter) -> tuple[str, ...] | None:
    return None if letter.folder_id is None else (letter.folder_id,)


def _not_found(letter_id: str) -> ProblemError:
    return ProblemError(HTTPStatus.NOT_FOUND, f"dead letter {letter_id!r} not found (any more)")


def _item(letter: DeadLetter) -> DeadLetterItem:
    origin: dict[str, Any] = letter.origin._asdict() if letter.origin else {}
    at: datetime = letter.at
    return DeadLetterItem(
        id=letter.id,
        **origin,
        at=at,
        error=letter.error,
        folder_id=letter.folder_id,
        bytes=letter.size,
        failures=letter.failures,
        replayed=letter.replayed,
    )
