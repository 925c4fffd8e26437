"""``/previews``: what a request would train on, as the workers that have the training sets answer."""

import asyncio
import uuid
from http import HTTPStatus

from fastapi import APIRouter, Request

from api.access import Access
from api.audit import audit_entry
from api.bodies import read_body
from api.context import CurrentAccess, CurrentServices, Services
from api.previews import (
    added,
    corrections_elsewhere,
    documents_of,
    drawn_questions,
    expected_training,
    explain,
)
from api.problems import ProblemError
from api.schemas import FailedPartition, PreviewResult, QuestionPreview, TrainingEstimate, json_body
from api.submission import RequestBody
from foldtune.events import (
    MAX_PREVIEW_FOLDERS,
    MAX_PREVIEW_QUESTIONS,
    DocumentReference,
    Preview,
    PreviewDocument,
    PreviewRequested,
)
from foldtune.settings import Role
from foldtune.topics import Topic

router = APIRouter(tags=["requests"])

# Below the time of a call, together: for the counts, and for each further question about texts.
_COUNT_SECONDS, _TEXT_SECONDS = 18, 4
# Of this replica; each takes seconds of every worker.
_AT_ONCE = 8
MINED = (
    "A training searches all documents for further hard negatives where fewer than dataset.hard_negatives were shown; "
    "these are found by the model that it starts from, and are not in a preview."
)


@router.post("/previews", response_model=PreviewResult, openapi_extra=json_body(RequestBody))
async def preview(request: Request, access: CurrentAccess, services: CurrentServices) -> PreviewResult:
    """What a request with this body would train on: counts, steps, and with the role `privacy` ten of its questions."""
    body = await read_body(request, RequestBody)
    access.require(model=body.model, folders=body.data.folders)
    with services.view.previews.place(_AT_ONCE) as is_free:
        if not is_free:
            reason = f"{_AT_ONCE} previews are being counted"
            raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, reason, headers={"retry-after": "2"})
        return await _preview(access, services, body)


async def _preview(access: Access, services: Services, body: RequestBody) -> PreviewResult:
    preview_id = uuid.uuid4().hex
    count = MAX_PREVIEW_QUESTIONS if _may_read(access, body) else 0
    if count:
        entry = audit_entry(access.caller, "preview.read", preview_id, model=body.model, folders=body.data.folders)
        await services.audit.write(entry)
    asked = PreviewRequested(preview_id=preview_id, data=body.data, questions=count, seconds=_COUNT_SECONDS)
    answers = await _ask(services, asked)
    counted = [answer for answer in answers.values() if answer.error is None]
    partitions = services.view.partitions(Topic.PREVIEW_REQUESTS)
    if not answers:
        reason = f"no worker has answered within {_COUNT_SECONDS} s"
        raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, reason, headers={"retry-after": "5"})
    folders = sorted((folder for answer in counted for folder in answer.folders), key=lambda folder: folder.examples)
    questions, texts_missing = await _questions(services, body, preview_id, counted) if count else (None, set())
    training = expected_training(sum(answer.pairs for answer in counted), body.training)
    return PreviewResult(
        preview_id=preview_id,
        at=min(answer.at for answer in answers.values()),
        complete=len(counted) == partitions,
        missing=[partition for partition in range(partitions) if partition not in answers],
        failed=[
            FailedPartition(partition=partition, error=answer.error)
            for partition, answer in sorted(answers.items())
            if answer.error is not None
        ],
        examples=sum(answer.positives for answer in counted),
        labels=added(answer.labels for answer in counted),
        left_out=added(answer.left_out for answer in counted),
        ignored=added(answer.ignored for answer in counted),
        documents=sum(answer.documents for answer in counted),
        folder_count=sum(answer.folder_count for answer in counted),
        folders=folders[:MAX_PREVIEW_FOLDERS],
        training=training,
        estimate=_estimate(services, body, training.examples),
        mined=MINED,
        questions=questions,
        texts_missing=sorted(texts_missing),
        cut=sum(answer.cut for answer in counted),
    )


def _may_read(access: Access, body: RequestBody) -> bool:
    return access.of_role(Role.PRIVACY).covers(model=body.model, folders=body.data.folders)


def _estimate(services: Services, body: RequestBody, examples: int) -> TrainingEstimate | None:
    """Of the base model that is asked for, else of the one that the model's newest version has come from."""
    models, layers = services.view.models, str(body.training.trainable_layers)
    newest = models.newest_promoted(body.model)
    base_model = body.base_model or (newest.base_model if newest else services.settings.trainer.base_model)
    found = models.past_trainings.estimate(base_model, layers, body.training.epochs * examples)
    return TrainingEstimate.model_validate(found) if found else None


async def _questions(
    services: Services, body: RequestBody, preview_id: str, answers: list[Preview]
) -> tuple[list[QuestionPreview], set[int]]:
    """The first questions, with texts asked of those who have the documents; and partitions that did not send them."""
    drawn = drawn_questions(answers, MAX_PREVIEW_QUESTIONS)
    texts, missing = await _texts(services, body, f"{preview_id}-texts", documents_of(drawn))
    elsewhere, also = await _texts(services, body, f"{preview_id}-elsewhere", corrections_elsewhere(drawn, texts))
    return await asyncio.to_thread(explain, drawn, [*texts, *elsewhere], body.dataset), missing | also


async def _texts(
    services: Services, body: RequestBody, preview_id: str, documents: list[DocumentReference]
) -> tuple[list[PreviewDocument], set[int]]:
    if not documents:
        return [], set()
    asked = PreviewRequested(preview_id=preview_id, data=body.data, documents=tuple(documents), seconds=_TEXT_SECONDS)
    answers = await _ask(services, asked)
    partitions = set(range(services.view.partitions(Topic.PREVIEW_REQUESTS)))
    answered = {partition for partition, answer in answers.items() if answer.error is None and not answer.cut}
    return [text for _, answer in sorted(answers.items()) for text in answer.texts], partitions - answered


async def _ask(services: Services, asked: PreviewRequested) -> dict[int, Preview]:
    partitions = services.view.partitions(Topic.PREVIEW_REQUESTS)
    with services.view.previews.expect(asked.preview_id, partitions) as waiting:
        await services.publisher.broadcast(Topic.PREVIEW_REQUESTS, asked, partitions)
        return await waiting.wait(asked.seconds)
