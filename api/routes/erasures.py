"""``/erasures``: asked for, and confirmed by every partition."""

import asyncio
import multiprocessing
import uuid
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Request

from api.access import Access
from api.audit import audit_entry
from api.bodies import read_body
from api.context import CurrentAccess, CurrentServices
from api.problems import ProblemError, unavailable
from api.schemas import (
    AffectedFolder,
    ErasureAsked,
    ErasureBody,
    ErasureConfirmation,
    ErasurePreview,
    ErasureProgress,
    json_body,
)
from foldtune.bounds import Rules, violations
from foldtune.errors import TRANSIENT_ERRORS
from foldtune.events import ErasureRequested, Id, now
from foldtune.settings import Settings
from foldtune.topics import Topic

router = APIRouter(tags=["erasures"])

# Below the time of a call. It reads the data topics from their beginning.
_PREVIEW_SECONDS = 25.0
_one_preview = asyncio.Semaphore(1)


@router.post("/erasures/preview", response_model=ErasurePreview, openapi_extra=json_body(ErasureBody))
async def preview(request: Request, access: CurrentAccess, services: CurrentServices) -> ErasurePreview:
    """What an erasure would affect in the topics, by folder: a dry run. Large topics take longer than a call may."""
    erasure = _erasure(await read_body(request, ErasureBody), access, services.settings)
    if _one_preview.locked():
        raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, "another preview is counted", headers={"retry-after": "10"})
    async with _one_preview:
        # In a process of its own, which would take the time of other calls, and can be ended.
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            async with asyncio.timeout(_PREVIEW_SECONDS):
                running = asyncio.get_running_loop().run_in_executor(pool, _count, erasure, services.settings)
                return ErasurePreview(folders=await running)
        except TimeoutError as error:
            reason = f"not counted within {_PREVIEW_SECONDS:.0f} s: use `foldtune erase --dry-run`"
            raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, reason) from error
        except (BrokenExecutor, *TRANSIENT_ERRORS) as error:
            # Of the former the process was killed, perhaps for want of memory.
            raise unavailable() from error
        finally:
            for process in (pool._processes or {}).values():
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)


@router.post(
    "/erasures",
    status_code=HTTPStatus.ACCEPTED,
    response_model=ErasureAsked,
    openapi_extra=json_body(ErasureBody),
)
async def ask(request: Request, access: CurrentAccess, services: CurrentServices) -> ErasureAsked:
    """Erase a subject from the training sets. It cannot be undone."""
    erasure = _erasure(await read_body(request, ErasureBody), access, services.settings)
    folders = None if erasure.folder_id is None else (erasure.folder_id,)
    # Without the subject's id: it is of a person, and the entry stays.
    entry = audit_entry(
        access.caller, "erasure.ask", erasure.erasure_id, folders=folders, after={"subject": erasure.subject}
    )
    await services.audit.write(entry)
    await services.publisher.broadcast(Topic.ERASURES, erasure, services.view.partitions(Topic.ERASURES))
    return ErasureAsked(erasure_id=erasure.erasure_id)


@router.get("/erasures/{id}", response_model=ErasureProgress)
async def progress(services: CurrentServices, erasure_id: Annotated[Id, Path(alias="id")]) -> ErasureProgress:
    """Which partitions have confirmed an erasure. One that nobody has confirmed is not told from an unknown one."""
    confirmed = services.view.erasures.get(erasure_id)
    partitions = services.view.partitions(Topic.ERASURES)
    done = bool(confirmed) and all(len(found) >= partitions for found in confirmed.values())
    events = [event for found in confirmed.values() for event in found.values()]
    return ErasureProgress(
        erasure_id=erasure_id,
        partitions=partitions,
        done=done,
        compacted_by=max(event.compacted_by for event in events) if done else None,
        confirmations=[
            ErasureConfirmation(app_id=event.app_id, partition=event.partition, at=event.at, records=event.records)
            for event in sorted(events, key=lambda event: (event.app_id, event.partition))
        ],
    )


def _erasure(body: ErasureBody, access: Access, settings: Settings) -> ErasureRequested:
    if body.subject == "folder" and body.folder_id is not None:
        raise _invalid("folder_id", "goes with the other subjects; a folder is named by subject_id")
    if body.subject == "document" and (body.folder_id is None) != body.all_folders:
        raise _invalid("folder_id", "of a document: its folder, or all_folders, as two folders may have one id")
    folder = body.subject_id if body.subject == "folder" else body.folder_id
    access.require(model=None, folders=None if folder is None else (folder,))
    erasure = ErasureRequested(
        # Random: it stays in the confirmations, where guesses at the subject could be tested against a digest.
        erasure_id=str(uuid.uuid4()),
        occurred_at=body.before or now(),
        subject=body.subject,
        subject_id=body.subject_id,
        folder_id=body.folder_id,
    )
    # Workers would have it as a dead letter, and nothing would ever be erased.
    if reason := next(violations(erasure, Rules(now(), settings.bounds)), None):
        raise _invalid("before", reason.removeprefix("occurred_at: "))
    return erasure


def _invalid(field: str, reason: str) -> ProblemError:
    return ProblemError(HTTPStatus.BAD_REQUEST, f"{field}: {reason}", fields=((field, reason),))


def _count(erasure: ErasureRequested, settings: Settings) -> list[AffectedFolder]:
    from streams.training_sets.erasure_preview import preview_erasure  # noqa: PLC0415  takes a second

    return [
        AffectedFolder(
            folder_id=folder_id,
            logs=len(affected.logs),
            feedback=len(affected.feedback),
            documents=len(affected.documents),
            passages=len(affected.passages),
        )
        for folder_id, affected in sorted(preview_erasure(erasure, settings).items())
    ]
