"""``/models/MODEL/versions/VERSION/approve`` and ``…/reject``."""

from http import HTTPStatus

from fastapi import APIRouter, Request

from api.access import Access
from api.audit import audit_entry
from api.bodies import read_body
from api.context import CurrentAccess, CurrentServices, Services
from api.parameters import PathModel, PathVersion
from api.problems import ProblemError
from api.routes.models import found_version, reviewed
from api.schemas import ReviewBody, json_body
from foldtune.events import ModelReviewed, now
from foldtune.topics import Topic, review_key

router = APIRouter(tags=["models"])


@router.post(
    "/models/{model}/versions/{version}/approve", response_model=ModelReviewed, openapi_extra=json_body(ReviewBody)
)
async def approve(
    request: Request, access: CurrentAccess, services: CurrentServices, model: PathModel, version: PathVersion
) -> ModelReviewed:
    """Approve a version: where its model needs approvals, deployers have waited for this."""
    body = await read_body(request, ReviewBody)
    return await _review(access, services, model, version, approved=True, comment=body.comment)


@router.post(
    "/models/{model}/versions/{version}/reject", response_model=ModelReviewed, openapi_extra=json_body(ReviewBody)
)
async def reject(
    request: Request, access: CurrentAccess, services: CurrentServices, model: PathModel, version: PathVersion
) -> ModelReviewed:
    """Reject a version, for good: it is never deployed again. Where it is deployed already, it stays."""
    body = await read_body(request, ReviewBody)
    return await _review(access, services, model, version, approved=False, comment=body.comment)


async def _review(
    access: Access, services: Services, model: str, version: str, *, approved: bool, comment: str | None
) -> ModelReviewed:
    """Publish a review; one that says what another has said already is that one."""
    # What is deployed serves all folders.
    access.require(model=model, folders=None)
    before = reviewed(services, model, found_version(services, model, version))
    if before.approval is None:
        raise ProblemError(HTTPStatus.CONFLICT, f"version {version!r} of model {model!r} was not promoted")
    if (known := before.review) and known.approved == approved:
        return known
    if before.approval == "rejected":
        reason = f"version {version!r} of model {model!r} was rejected at {known.at.isoformat() if known else '?'}"
        raise ProblemError(HTTPStatus.CONFLICT, f"{reason}, which is final")
    review = ModelReviewed(
        model=model, version=version, approved=approved, by=access.caller.name, comment=comment, at=now()
    )
    entry = audit_entry(
        access.caller,
        "version.approve" if approved else "version.reject",
        f"{model}/{version}",
        model=model,
        before=before.model_dump(mode="json", exclude_none=True),
        after={"comment": comment},
    )
    await services.audit.write(entry)
    await services.publisher.publish(Topic.REVIEWS, review, review_key(model, version, approved=approved))
    services.view.reviews.add(review)
    return review
