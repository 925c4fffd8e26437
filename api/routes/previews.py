"""``/previews``: what a request would train on, as the workers that have the training sets answer."""

import asyncio
import hashlib
import uuid
from http import HTTPStatus
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Path, Request

from api.access import Access
from api.audit import audit_entry
from api.bodies import read_body
from api.context import CurrentAccess, CurrentServices, Services
from api.mining import BY_TRAINING
from api.previews import (
    added,
    corrections_elsewhere,
    documents_of,
    drawn_questions,
    expected_training,
    explain,
    to_mine,
    words_of,
)
from api.problems import ProblemError
from api.schemas import FailedPartition, MinedPreview, PreviewResult, TrainingEstimate, json_body
from api.submission import RequestBody
from foldtune.events import (
    MAX_PREVIEW_FOLDERS,
    MAX_PREVIEW_QUESTIONS,
    DocumentReference,
    Preview,
    PreviewDocument,
    PreviewLog,
    PreviewRequested,
)
from foldtune.settings import Role
from foldtune.topics import Topic

router = APIRouter(tags=["requests"])

# Below the time of a call, together: for the counts, and for each further question about texts.
_COUNT_SECONDS, _TEXT_SECONDS = 18, 4
# Of this replica; each takes seconds of every worker.
_AT_ONCE = 8
PreviewId = Annotated[str, Path(alias="id", max_length=64)]


class _Questions(NamedTuple):
    """Those that were drawn, with the documents that they were shown, and partitions that did not send all of these."""

    drawn: list[list[PreviewLog]]
    documents: list[PreviewDocument]
    texts_missing: set[int]


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
    questions = await _questions(services, body, preview_id, counted) if count else None
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
        mined=_mined(services, body, preview_id, questions),
        questions=await asyncio.to_thread(explain, questions.drawn, questions.documents, body.dataset)
        if questions
        else None,
        texts_missing=sorted(questions.texts_missing) if questions else [],
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


async def _questions(services: Services, body: RequestBody, preview_id: str, answers: list[Preview]) -> _Questions:
    """The first questions, with texts asked of those who have the documents."""
    drawn = drawn_questions(answers, MAX_PREVIEW_QUESTIONS)
    texts, missing = await _texts(services, body, f"{preview_id}-texts", documents_of(drawn))
    elsewhere, also = await _texts(services, body, f"{preview_id}-elsewhere", corrections_elsewhere(drawn, texts))
    return _Questions(drawn, [*texts, *elsewhere], missing | also)


def _mined(services: Services, body: RequestBody, preview_id: str, questions: _Questions | None) -> MinedPreview:
    """Have more negatives found for the questions, where that can be done here."""
    is_by_base = body.training.start == "base" and body.base_model in {None, services.settings.trainer.base_model}
    if questions is None or not questions.drawn or not services.miner.enabled or not is_by_base:
        return MinedPreview(state="by_training", reason=BY_TRAINING)

    async def prepare() -> bytes:
        near = words_of(questions.drawn, questions.documents)
        asked = PreviewRequested(preview_id=f"{preview_id}-near", data=body.data, near=near, seconds=_COUNT_SECONDS)
        found = [text for _, answer in sorted((await _ask(services, asked)).items()) for text in answer.texts]
        return to_mine(questions.drawn, [*questions.documents, *found], body.dataset)

    asked = hashlib.sha256(to_mine(questions.drawn, questions.documents, body.dataset))
    asked.update(f"{body.model} {body.data.model_dump_json()}".encode())
    return services.miner.begin(preview_id, body.model, body.data.folders, prepare, asked.digest())


@router.get("/previews/{id}/mined", response_model=MinedPreview)
async def get_mined(access: CurrentAccess, services: CurrentServices, preview_id: PreviewId) -> MinedPreview:
    """Hard negatives that were found for the questions of a preview since: users' words, so each read is audited."""
    mining = services.miner.get(preview_id)
    if mining is None or not access.covers(model=mining.model, folders=mining.folders):
        reason = f"this replica mines for no preview {preview_id!r} (any more)"
        raise ProblemError(HTTPStatus.NOT_FOUND, reason)
    if mining.told.state == "ready":
        entry = audit_entry(access.caller, "preview.read", preview_id, model=mining.model, folders=mining.folders)
        await services.audit.write(entry)
    return mining.told


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
