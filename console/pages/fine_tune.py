"""The page with the Fine-tune button: what to train on and how, and what it will do with this data."""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.api_client import ApiClient, ApiError, path
from console.context import CurrentClient, CurrentConsole, CurrentViewer, see_other
from console.knobs import GROUPS, KNOBS, STARTS, Fields, fields_of, request_of
from console.rendering import render, words
from console.sign_in import parse_fields, read_fields
from foldtune.events import MAX_PREVIEW_FOLDERS

router = APIRouter()

# Of folders on one page; others are found by their name.
_FOLDERS = 100
# Below these a training is too short, or a verdict too unsure (docs/decisions.md).
_FEW_STEPS, _FEW_HELD_OUT, _FEW_OF_A_FOLDER = 50, 20, 20
# What was compared (docs/performance.md).
_MEASURED_TEMPERATURES = 0.02, 0.1
_FIELDS = frozenset(
    {
        *KNOBS,
        *("model", "request_id", "data", "data.start", "data.end", "data.folders", "data.agents"),
        *("training.start", "base_model.uri", "base_model.revision", "seed"),
    }
)
# Of these the ones that the form shows when they are asked for.
_FURTHER = frozenset(
    {
        *(knob.name for knob in GROUPS["further"]),
        *("request_id", "data.agents", "training.start", "base_model.uri", "base_model.revision", "seed"),
    }
)
_REFUSED = frozenset(
    {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.CONFLICT, HTTPStatus.SERVICE_UNAVAILABLE}
)

ByField = dict[str, list[str]]


@router.get("/console/fine-tune")
async def form(request: Request, client: CurrentClient, console: CurrentConsole, viewer: CurrentViewer) -> Response:
    """The form, filled in by the address; without a script, its first button asks for the right half, too."""
    del viewer
    fields = _query(request)
    seen: dict[str, Any] = {}
    if "preview" in fields:
        seen = await _preview(client, fields, console.settings.worker.min_examples)
    return await _form(request, client, fields, **seen)


@router.get("/console/fine-tune/folders")
async def folders(request: Request, client: CurrentClient, viewer: CurrentViewer) -> Response:
    """The folders to choose from: the part of the form that the search and the dates change."""
    del viewer
    return render(request, "fine_tune_folders.html", **await _folders(client, _query(request)))


@router.get("/console/fine-tune/days")
async def days(request: Request, client: CurrentClient, viewer: CurrentViewer) -> Response:
    """The logs per day: the part of the form that the choice of folders changes."""
    del viewer
    return render(request, "fine_tune_days.html", days=await _days(client, _query(request)))


@router.get("/console/fine-tune/preview")
async def preview(request: Request, client: CurrentClient, console: CurrentConsole, viewer: CurrentViewer) -> Response:
    """What a request would train on: the right half."""
    del viewer
    seen = await _preview(client, _query(request), console.settings.worker.min_examples)
    return render(request, "fine_tune_preview.html", **seen)


@router.get("/console/fine-tune/mined/{preview_id}")
async def mined(request: Request, client: CurrentClient, viewer: CurrentViewer, preview_id: str) -> Response:
    """Hard negatives that were found for a preview's questions since."""
    del viewer
    try:
        found = await client.get(path("previews", preview_id, "mined"))
    except ApiError as error:
        if error.status is not HTTPStatus.NOT_FOUND:
            raise
        # Of another replica, or of a preview that newer ones have replaced.
        found = {"state": "failed", "reason": error.lines[0], "documents": 0, "examples": []}
    return render(request, "fine_tune_mined.html", mined=found, preview_id=preview_id, key=example_key)


@router.post("/console/fine-tune")
async def submit(request: Request, client: CurrentClient, viewer: CurrentViewer) -> Response:
    """Ask for a training."""
    del viewer
    fields = await read_fields(request)
    try:
        made = await client.post("/requests", request_of(fields))
    except ApiError as error:
        if error.status not in _REFUSED:
            raise
        return await _form(request, client, fields, error)
    return see_other(f"/console/jobs{path(made['model'], made['request_id'])}?new=1")


def hints(preview: Mapping[str, Any], body: Mapping[str, Any], min_examples: int) -> ByField:
    """By field, what of a selection fights the data."""
    training, texts, found = preview["training"], words()["hints"], defaultdict[str, list[str]](list)
    value = {name: knob.of(body) for name, knob in KNOBS.items()}

    def tell(field: str, hint: str, **figures: object) -> None:
        found[field].append(texts[hint].format(**figures))

    counted = {folder["folder_id"] for folder in preview["folders"]}
    unknown = [name for name in body.get("data", {}).get("folders", ()) if name not in counted]
    # More are not named in a preview.
    if unknown and preview["complete"] and len(counted) < MAX_PREVIEW_FOLDERS:
        tell("data.folders", "unknown_folders", folders=_first(unknown))
    if preview["examples"] < min_examples:
        tell("data.folders", "too_few", examples=preview["examples"], least=min_examples)
    elif training["held_out"] < _FEW_HELD_OUT:
        tell("data.folders", "few_held_out", questions=training["held_out"], least=_FEW_HELD_OUT)
    elif small := [folder["folder_id"] for folder in preview["folders"] if folder["examples"] < _FEW_OF_A_FOLDER]:
        tell("data.folders", "small_folders", folders=_first(small), least=_FEW_OF_A_FOLDER)
    if preview["documents"] <= value["dataset.easy_negatives"] + value["dataset.hard_negatives"]:
        tell("dataset.easy_negatives", "few_documents", documents=preview["documents"])
    _tell_candidates(preview, value, tell)
    if training["examples"] < value["training.batch_size"]:
        tell("training.batch_size", "batch_above_examples", examples=training["examples"])
    if training["steps"] < _FEW_STEPS:
        tell("training.epochs", "few_steps", steps=training["steps"], least=_FEW_STEPS)
    if not training["validation"]:
        tell("training.epochs", "no_validation")
        if value["training.trainable_layers"] == "all":
            tell("training.trainable_layers", "all_layers_unchecked")
    low, high = _MEASURED_TEMPERATURES
    if not low <= value["weights.temperature"] <= high:
        tell("weights.temperature", "unmeasured_temperature", low=low, high=high)
    if value["weights.focus"] == 1 and value["weights.minimum"]:
        tell("weights.minimum", "minimum_without_focus")
    if value["weights.focus"] > 1 and not value["weights.minimum"]:
        tell("weights.minimum", "focus_without_minimum")
    return dict(found)


def _first(names: Sequence[str]) -> str:
    more = words()["hints"]["and_more"].format(count=len(names) - 3) if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _tell_candidates(preview: Mapping[str, Any], value: Mapping[str, Any], tell: Any) -> None:
    """What the questions that are shown say of the negatives that are asked for."""
    examples = [example for question in preview["questions"] or () for example in question["examples"]]
    judged = [
        [shown["reason"] for shown in example["shown"] if shown["reason"] in {"negative", "near_positive_by_words"}]
        for example in examples
    ]
    shown = sum(map(len, judged))
    near = sum(reasons.count("near_positive_by_words") for reasons in judged)
    if 2 * near > shown:
        tell("dataset.exclusion_threshold", "most_are_near", near=near, shown=shown)
    short = sum(reasons.count("negative") < value["dataset.hard_negatives"] for reasons in judged)
    if 2 * short > len(examples):
        tell("dataset.hard_negatives", "few_shown", short=short, examples=len(examples))


def example_key(question: str, positive: str) -> str:
    """A name for a question with one of its right passages, by which what was mined for it finds its place."""
    text = "\0".join(" ".join(part.split()).casefold() for part in (question, positive))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def beside(fields: Mapping[str, str], known: Collection[str] = _FIELDS) -> tuple[ByField, list[str]]:
    """Reasons by the form's field that they are of, or of a part of it; and lines for all others."""
    found, lines = defaultdict[str, list[str]](list), []
    for name, reason in fields.items():
        if name in known or (field := name.rpartition(".")[0]) not in known:
            field = name
        if field in known:
            found[field].append(reason)
        else:
            lines.append(f"{name}: {reason}")
    return dict(found), lines


async def _preview(client: ApiClient, fields: Fields, min_examples: int) -> dict[str, Any]:
    body = request_of(fields)
    # A form that has just been opened.
    if not body["model"]:
        return {"preview": None, "preview_lines": [words()["preview"]["no_model"]], "hints": {}}
    try:
        found = await client.post("/previews", {name: part for name, part in body.items() if name != "request_id"})
    except ApiError as error:
        if error.status not in _REFUSED:
            raise
        # Beside their fields, as far as these have one; a part of a page is no page of errors.
        by_field, others = beside(error.fields)
        lines = [*others, words()["preview"]["marked"]] if error.fields else error.lines
        return {"preview": None, "preview_lines": lines, "hints": by_field}
    told = hints(found, body, min_examples)
    if body.get("training", {}).get("start") == "incumbent" and not await _is_promoted(client, body["model"]):
        told["training.start"] = [words()["hints"]["none_promoted"]]
    return {
        "preview": found,
        "preview_lines": [],
        "hints": told,
        "hard": KNOBS["dataset.hard_negatives"].of(body),
        "threshold": KNOBS["dataset.exclusion_threshold"].of(body),
        "key": example_key,
    }


async def _is_promoted(client: ApiClient, model: str) -> bool:
    """Whether a version of the model is; also if that cannot be said."""
    try:
        found = await client.get(path("models", model))
    except ApiError as error:
        return error.status is not HTTPStatus.NOT_FOUND
    return bool(found["recent"])


async def _form(
    request: Request, client: ApiClient, fields: Fields, error: ApiError | None = None, **seen: Any
) -> Response:
    models = await client.get("/models", limit=200)
    errors, others = beside(error.fields) if error else ({}, [])
    values: dict[str, Any] = {
        "fields": fields,
        "groups": GROUPS,
        "starts": STARTS,
        "models": [model["model"] for model in models["items"]],
        "errors": errors,
        # Those that belong to no field that is shown.
        "lines": error.lines if error and not error.fields else others,
        "hints": {},
        "preview": None,
        "days": await _days(client, fields),
    }
    values |= await _folders(client, fields)
    values["is_further"] = (
        not _FURTHER.isdisjoint(errors)
        or bool(fields.get("request_id", [""])[-1])
        or any(name in _FURTHER for name, _ in fields_of(request_of(fields)))
    )
    return render(request, "fine_tune.html", HTTPStatus.OK if error is None else error.status, **values | seen)


async def _folders(client: ApiClient, fields: Fields) -> dict[str, Any]:
    data, search = request_of(fields)["data"], "".join(fields.get("search", ())[-1:])
    since, until = (data.get(name, "")[:10] or None for name in ("start", "end"))
    found = await _figures(client, "/folders", limit=_FOLDERS, newest_days=0, search=search, since=since, until=until)
    listed = {folder["folder_id"] for folder in found["items"]}
    chosen = data.get("folders", [])
    return {
        "folders": found["items"],
        "few": _FEW_OF_A_FOLDER,
        "chosen": chosen,
        # Chosen, and not among those that are listed: they stay chosen.
        "others": [name for name in chosen if name not in listed],
        "are_all": not found.get("next"),
        "folders_error": found.get("error"),
        "search": search,
    }


async def _days(client: ApiClient, fields: Fields) -> list[tuple[str, int]]:
    """Of the folders that are chosen, or of all."""
    chosen = request_of(fields)["data"].get("folders", [])
    found = await _figures(client, "/logs-per-day", folder=chosen if len(chosen) <= _FOLDERS else None)
    return [(day["day"], day["logs"]) for day in found["items"]]


async def _figures(client: ApiClient, address: str, **query: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = await client.get(address, **query)
    except ApiError as error:
        # Half a date, while it is typed; or no figures at the moment, without which a form can be sent all the same.
        if error.status not in _REFUSED:
            raise
        return {"items": [], "error": error.lines[0]}
    return found


def _query(request: Request) -> Fields:
    return parse_fields(request.url.query)
