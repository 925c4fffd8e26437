"""Models, and the versions of one."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from math import isfinite
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from console.api_client import path
from console.context import CurrentClient, CurrentViewer, see_other
from console.pages.jobs import statuses_of
from console.pages.verdicts import FolderScores, Metrics
from console.rendering import following, render, score, words
from foldtune.events import PolicyDecided

router = APIRouter()

# Each is a file that is read.
_MEASURED = 5
# Of the small picture, which is as wide and high as this and two margins.
_LINE_WIDTH, _LINE_HEIGHT, _LINE_MARGIN = 152.0, 36.0, 4.0


class LinePoint(NamedTuple):
    """nDCG@10 of a version, and the interval of its gain above what it was measured against on the same questions."""

    after: float
    low: float
    high: float
    # Its standing.
    approval: str | None


class NdcgLine(NamedTuple):
    """A small picture of versions, in its own units, and what it says in words."""

    label: str
    points: str
    # Where each version is, and the ends of its interval: x, y, y, y; and its standing.
    versions: list[tuple[float, float, float, float, str | None]]


@router.get("/")
@router.get("/console")
async def lead_to_pages() -> Response:
    """The first page has one address."""
    return see_other("/console/")


@router.get("/console/")
async def list_models(
    request: Request, client: CurrentClient, viewer: CurrentViewer, cursor: str | None = None
) -> Response:
    """All models: what is served of each, whether it gets better, and when it is trained next."""
    del viewer
    found = await client.get("/models", cursor=cursor)
    # They are a part of the models, in the same order: at the same place begins a page that has all of them.
    policies = await client.optional("/policies", cursor=cursor)
    return render(
        request,
        "models.html",
        models=found["items"],
        lines={item["model"]: ndcg_line(points_of(item["recent"])) for item in found["items"] if item["recent"]},
        trainings=policies and {item["policy"]["model"]: next_training(item) for item in policies["items"]},
        next=following(found["next"]),
    )


@router.get("/console/models/{model}")
async def show_model(
    request: Request, client: CurrentClient, viewer: CurrentViewer, model: str, cursor: str | None = None
) -> Response:
    """The versions of a model over time, what is deployed of it, and its newest requests."""
    del viewer
    summary = await client.get(path("models", model))
    versions = await client.get(path("models", model, "versions"), cursor=cursor)
    requests = await client.get("/requests", model=model, limit=10)
    policy = await client.optional(path("policies", model))
    explained = policy and await client.optional(path("policies", model, "explain"), limit=1)
    return render(
        request,
        "model.html",
        model=summary,
        versions=versions["items"],
        standings={item["version"]: item["approval"] for item in (*summary["recent"], *versions["items"])},
        next=following(versions["next"]),
        requests=statuses_of(requests["items"]),
        training=explained and next_training({"policy": policy, "decision": explained["decision"]}),
    )


@router.get("/console/models/{model}/folders")
async def show_folders(request: Request, client: CurrentClient, viewer: CurrentViewer, model: str) -> Response:
    """A model's newest promoted versions by folder."""
    del viewer
    summary = await client.get(path("models", model))
    versions = summary["recent"][:_MEASURED][::-1]
    measured = await asyncio.gather(
        *(client.optional(path("models", model, "versions", version["version"], "metrics")) for version in versions)
    )
    folders = folders_over_time([Metrics.of(found).largest_folders for found in measured])
    approvals = [version["approval"] for version in versions]
    return render(
        request,
        "model_folders.html",
        model=model,
        versions=versions,
        folders=folders,
        lines={name: _folder_line(scores, approvals) for name, scores in folders.items()},
    )


def folders_over_time(measured: Sequence[Mapping[str, FolderScores]]) -> dict[str, list[FolderScores | None]]:
    """Of each folder the scores of each version, in their order; the newest version's folders come first."""
    names = dict.fromkeys(name for scores in reversed(measured) for name in scores)
    return {name: [scores.get(name) for scores in measured] for name in names}


def _folder_line(scores: Sequence[FolderScores | None], approvals: Sequence[str | None]) -> NdcgLine:
    points: list[LinePoint] = []
    for each, approval in zip(scores, approvals, strict=True):
        if each:
            before, after = each.before.ndcg_at_10, each.after.ndcg_at_10
            low, high = each.ndcg_gain_interval or (each.gain, each.gain)
            points.append(LinePoint(after, before + low, before + high, approval))
    return ndcg_line(points)


def points_of(recent: Sequence[Mapping[str, Any]]) -> list[LinePoint]:
    """Of promoted versions, which come with the newest first."""
    points: list[LinePoint] = []
    for version in reversed(recent):
        after, gate = version["ndcg_at_10"], version["gate"]
        before = after - gate["ndcg_gain"]
        low, high = (before + end for end in gate["ndcg_gain_interval"])
        points.append(LinePoint(after, low, high, version["approval"]))
    return points


def ndcg_line(points: Sequence[LinePoint]) -> NdcgLine:
    """The picture of versions from the oldest to the newest; of one at least."""
    figures = [point[:3] for point in points]
    least, most = min(map(min, figures)), max(map(max, figures))
    unit, step = _LINE_HEIGHT / max(most - least, 0.001), _LINE_WIDTH / max(len(figures) - 1, 1)

    def y(figure: float) -> float:
        return round(_LINE_MARGIN + (most - figure) * unit, 1)

    drawn = [
        (round(_LINE_MARGIN + number * step, 1), y(point.after), y(point.low), y(point.high), point.approval)
        for number, point in enumerate(points)
    ]
    w = words()["models"]
    told = "; ".join(
        w["point"].format(score=score(after), low=score(low), high=score(high)) for after, low, high in figures
    )
    return NdcgLine(
        w["line"].format(count=len(figures), figures=told), " ".join(f"{x},{y}" for x, y, *_ in drawn), drawn
    )


class NextTraining(NamedTuple):
    """What a model's next automatic training waits for."""

    # As the policy says: ``requested``, ``blocked``, ``waiting``, ``paused``, ``off``, or whatever comes later.
    decision: str
    request_id: str | None = None
    # The least that any rule still waits for.
    examples: int | None = None
    # Share of documents that have changed, and that at which it trains.
    changed: tuple[float, float] | None = None
    at: datetime | None = None
    on_quality: bool = False
    # What is in the way of a rule that would train.
    block: str | None = None


def next_training(item: Mapping[str, Any]) -> NextTraining | None:
    """By a model's policy and its newest decision; ``None`` if there is none that can be read."""
    if not item["policy"].get("rules"):
        return NextTraining("off")
    try:
        decided = PolicyDecided.model_validate(item["decision"], strict=False)
    except ValidationError:
        return None
    conditions = [condition for rule in decided.rules for condition in rule.conditions if not condition.met]
    numbers = [
        (each.condition, each.figure, each.bound)
        for each in conditions
        # Their difference may be infinite all the same.
        if each.figure is not None and each.bound is not None and isfinite(each.bound - each.figure)
    ]
    missing = [bound - figure for name, figure, bound in numbers if name == "new_examples"]
    changed = [(figure, bound) for name, figure, bound in numbers if name == "changed_documents"]
    blocks = [block for rule in decided.rules if rule.rule == decided.rule for block in rule.blocks]
    return NextTraining(
        decision=decided.decision,
        request_id=decided.request_id,
        examples=int(min(missing)) if missing else None,
        changed=min(changed, key=lambda pair: pair[1] - pair[0], default=None),
        at=decided.next_at if any(each.condition == "calendar" for each in conditions) else None,
        on_quality=any(each.condition == "quality" for each in conditions),
        block=(blocks[0].text or blocks[0].block) if blocks else None,
    )
