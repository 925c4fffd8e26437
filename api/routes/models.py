"""``/models``: models, their versions, and what is known of each."""

import asyncio
from datetime import datetime
from http import HTTPStatus
from itertools import islice
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Path, Query, Response

from api.artifacts import LINK_SECONDS, Order, VersionFiles
from api.audit import audit_entry
from api.context import CurrentAccess, CurrentServices, Services
from api.cursors import NamePlace, decode_cursor, encode_cursor
from api.parameters import Cursor, Limit, PathModel, PathVersion
from api.problems import ProblemError
from api.schemas import (
    Ancestor,
    EvaluationList,
    FileLink,
    FileList,
    Lineage,
    ModelList,
    ModelSummary,
    Reviewed,
    TrainingEstimate,
    VersionDetails,
    VersionFigures,
    VersionList,
    VersionSummary,
)
from api.view.models import Version
from foldtune.events import ModelReady
from foldtune.reviews import Standing, needs_approval

router = APIRouter(tags=["models"])

_MAX_ANCESTORS = 1_000
_RECENT = 10


class RowPlace(NamedTuple):
    """A place in a table."""

    row: int


@router.get("/models", response_model=ModelList)
async def list_models(
    access: CurrentAccess, services: CurrentServices, limit: Limit = 50, cursor: Cursor = None
) -> ModelList:
    """The models that have a version, a request or a policy, by name."""
    place = decode_cursor(NamePlace, cursor)
    names, after = services.view.models.models(
        limit, lambda name: access.covers(model=name), place.name if place else None
    )
    items = [_summary(services, name) for name in names]
    return ModelList(items=items, next=encode_cursor(None if after is None else NamePlace(after)))


@router.get("/models/{model}", response_model=ModelSummary)
async def get_model(services: CurrentServices, model: PathModel) -> ModelSummary:
    """A model and its newest promoted versions."""
    _require_model(services, model)
    return _summary(services, model)


@router.get("/models/{model}/versions", response_model=VersionList)
async def list_versions(
    services: CurrentServices, model: PathModel, limit: Limit = 50, cursor: Cursor = None
) -> VersionList:
    """A model's versions, the newest first, with those that were not promoted."""
    _require_model(services, model)
    place = decode_cursor(NamePlace, cursor)
    versions, before = services.view.models.versions(model, limit, place.name if place else None)
    items = [_version_summary(services, model, version) for version in versions]
    return VersionList(items=items, next=encode_cursor(None if before is None else NamePlace(before)))


@router.get("/models/{model}/versions/{version}", response_model=VersionDetails, response_model_exclude_none=True)
async def get_version(services: CurrentServices, model: PathModel, version: PathVersion) -> VersionDetails:
    """Metrics before and after, the gate's verdict, what it was made of, who has approved it, and its estimate."""
    found = found_version(services, model, version)
    ready = found.ready or (await _files(services, model, version)).ready
    return VersionDetails.model_construct(
        **dict(ready), **dict(reviewed(services, model, found)), estimate=_estimate(services, ready)
    )


@router.get(
    "/models/{model}/versions/{version}/card",
    response_class=Response,
    responses={200: {"description": "Markdown", "content": {"text/markdown": {}}}},
)
async def get_card(services: CurrentServices, model: PathModel, version: PathVersion) -> Response:
    """The model card."""
    return Response(await _read(services, model, version, "README.md"), media_type="text/markdown; charset=utf-8")


@router.get("/models/{model}/versions/{version}/metrics", response_model=dict[str, Any])
async def get_metrics(services: CurrentServices, model: PathModel, version: PathVersion) -> Response:
    """``metrics.json``: by folder, before and after, general knowledge, and what was left out of the training."""
    return Response(await _read(services, model, version, "metrics.json"), media_type="application/json")


@router.get("/models/{model}/versions/{version}/files", response_model=FileList)
async def list_files(services: CurrentServices, model: PathModel, version: PathVersion) -> FileList:
    """The files that a deployment verifies, with their digests."""
    files = await _files(services, model, version)
    return FileList(items=list(files.files))


@router.get("/models/{model}/versions/{version}/files/{path:path}", response_model=FileLink)
async def link_file(
    services: CurrentServices, model: PathModel, version: PathVersion, path: Annotated[str, Path(max_length=512)]
) -> FileLink:
    """An address at which a file can be fetched for five minutes, without a token."""
    files = await _files(services, model, version)
    return FileLink(url=await asyncio.to_thread(files.link, path), seconds=LINK_SECONDS)


@router.get("/models/{model}/versions/{version}/evaluation", response_model=EvaluationList)
async def list_evaluation(  # noqa: PLR0917  each is a parameter
    access: CurrentAccess,
    services: CurrentServices,
    model: PathModel,
    version: PathVersion,
    order: Annotated[Order, Query(description="Those first that lost most, or that gained most")] = "lost",
    limit: Limit = 50,
    cursor: Cursor = None,
) -> EvaluationList:
    """The held-out questions, each with what was found before and after: users' words, so a read of them is audited."""
    access.require(model=model, folders=None)
    place = decode_cursor(RowPlace, cursor)
    first = max(place.row, 0) if place else 0
    files = await _files(services, model, version)
    await services.audit.write(audit_entry(access.caller, "evaluation.read", f"{model}/{version}", model=model))
    rows, total = await asyncio.to_thread(files.evaluation, first, limit, order)
    following = RowPlace(first + limit) if first + limit < total else None
    return EvaluationList(items=rows, total=total, next=encode_cursor(following))


@router.get("/models/{model}/versions/{version}/lineage", response_model=Lineage)
async def get_lineage(services: CurrentServices, model: PathModel, version: PathVersion) -> Lineage:
    """What a version was made from, back to its base model."""
    ancestors: list[Ancestor] = []
    following: str | None = version
    while following is not None and len(ancestors) < _MAX_ANCESTORS:
        found = services.view.models.get(model, following)
        if found is None:
            break
        ready = found.ready or (await _files(services, model, following)).ready
        ancestors.append(Ancestor.model_construct(**dict(ready), **dict(reviewed(services, model, found))))
        # Each started from an earlier one; a forged event must not make a circle.
        parent = ready.parent_version
        following = parent if parent is not None and parent < following else None
    if not ancestors:
        raise _not_found(model, version)
    return Lineage(items=ancestors)


def _summary(services: Services, model: str) -> ModelSummary:
    view, required = services.view, services.settings.approval.models
    deployable, waiting = None, 0
    for version in view.models.promoted(model):
        standing = view.reviews.standing(model, version.version, required)
        if standing is Standing.ALLOWED:
            deployable = version
            break
        waiting += standing is Standing.WAITING
    return ModelSummary(
        model=model,
        versions=view.models.count(model),
        recent=[
            VersionFigures(**_figures(services, model, version))
            for version in islice(view.models.promoted(model), _RECENT)
        ],
        deployable=deployable.version if deployable else None,
        deployable_since=_deployable_since(services, model, deployable) if deployable else None,
        waiting=waiting,
    )


def _deployable_since(services: Services, model: str, version: Version) -> datetime | None:
    review = services.view.reviews.of(model, version.version)
    if review and needs_approval(model, services.settings.approval.models):
        return review.at
    return version.ready.published_at if version.ready else None


def reviewed(services: Services, model: str, version: Version) -> Reviewed:
    """What people have said about a version."""
    if version.ready is None:
        return Reviewed()
    if review := services.view.reviews.of(model, version.version):
        return Reviewed(approval="approved" if review.approved else "rejected", review=review)
    standing = services.view.reviews.standing(model, version.version, services.settings.approval.models)
    return Reviewed(approval="waiting" if standing is Standing.WAITING else "not_required")


def _version_summary(services: Services, model: str, version: Version) -> VersionSummary:
    ready = version.ready
    return VersionSummary(
        **_figures(services, model, version),
        seconds=ready.seconds.get("all") if ready else None,
        cost_dollars=ready.cost_dollars if ready else None,
        estimate=_estimate(services, ready) if ready else None,
    )


def _figures(services: Services, model: str, version: Version) -> dict[str, Any]:
    ready = version.ready
    return {
        **dict(reviewed(services, model, version)),
        "version": version.version,
        "request_id": version.request_id,
        "promoted": ready is not None,
        "published_at": ready.published_at if ready else None,
        "compared_with": ready.compared_with if ready else None,
        "ndcg_at_10_before": ready.metrics_before.ndcg_at_10 if ready else None,
        "ndcg_at_10": ready.metrics_after.ndcg_at_10 if ready else None,
        "questions": ready.metrics_after.questions if ready else None,
        "gate": ready.gate if ready else None,
    }


def _estimate(services: Services, ready: ModelReady) -> TrainingEstimate | None:
    if (work := ready.work) is None:
        return None
    past = services.view.models.past_trainings
    found = past.estimate(ready.base_model, work.trainable_layers, work.examples, ready.published_at)
    return TrainingEstimate.model_validate(found) if found else None


def _require_model(services: Services, model: str) -> None:
    if model not in services.view.models:
        reason = f"model {model!r} has no versions, requests or policy (yet)"
        raise ProblemError(HTTPStatus.NOT_FOUND, reason)


def found_version(services: Services, model: str, version: str) -> Version:
    """The version; raises ``ProblemError`` (404)."""
    found = services.view.models.get(model, version)
    if found is None:
        raise _not_found(model, version)
    return found


def _not_found(model: str, version: str) -> ProblemError:
    return ProblemError(HTTPStatus.NOT_FOUND, f"version {version!r} of model {model!r} not found (yet)")


async def _files(services: Services, model: str, version: str) -> VersionFiles:
    found_version(services, model, version)
    return await asyncio.to_thread(VersionFiles, services.store, model, version)


async def _read(services: Services, model: str, version: str, path: str) -> bytes:
    files = await _files(services, model, version)
    return await asyncio.to_thread(files.read, path)
