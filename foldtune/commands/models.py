"""``foldtune models``."""

import io
from typing import Annotated, Any

import typer

from foldtune.client.client import FoldtuneClient
from foldtune.commands.errors import UserError
from foldtune.commands.output import AsJson, print_event, print_json, print_table
from foldtune.events import ModelReady
from foldtune.object_keys import EVALUATION
from foldtune.object_store import ObjectStore, S3ObjectStore
from foldtune.settings import load_settings

app = typer.Typer(add_completion=False)


@app.command()
def models(
    model: Annotated[
        str | None, typer.Argument(help="The held-out questions that its newest version lost and gained most on.")
    ] = None,
    request: Annotated[
        str | None, typer.Option(help="Of the version that this request has trained, also if it was not promoted.")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, max=10_000, help="How many of each.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show the newest announced version of every model, or how one answers its held-out questions.

    Questions need rights in the bucket: they are in evaluation.parquet, which is not deployed with the model.
    """
    settings = load_settings()
    with FoldtuneClient(settings) as client:
        if model is None:
            if request is not None:
                raise UserError("--request needs a model")
            versions = sorted(client.models().values(), key=lambda ready: ready.model)
            _print_versions(versions, as_json=as_json)
            return
        uri = _announced(client, model) if request is None else _trained(client, model, request)
    _print_questions(_changed(uri, S3ObjectStore(settings.s3), questions), as_json=as_json)


def _announced(client: FoldtuneClient, model: str) -> str:
    if ready := client.models().get(model):
        return ready.model_uri
    raise UserError(f"no version of {model} has been announced; --request shows one that was not promoted")


def _trained(client: FoldtuneClient, model: str, request_id: str) -> str:
    status = client.requests().get((model, request_id))
    if status is None:
        raise UserError(f"model {model} has no request {request_id!r}")
    if status.model_uri is None:
        raise UserError(f"request {request_id!r} of {model} is {status.state.value}, and has no version")
    return status.model_uri


def _print_versions(newest: list[ModelReady], *, as_json: bool) -> None:
    if as_json:
        for ready in newest:
            print_event(ready)
        return
    rows = [
        (
            ready.model,
            ready.version,
            f"{ready.metrics_before.ndcg_at_10:.3f} → {ready.metrics_after.ndcg_at_10:.3f}",
            "{:+.3f} to {:+.3f}".format(*ready.gate.ndcg_gain_interval),
            "yes" if ready.requires_reindex else "no",
            ready.model_uri,
        )
        for ready in newest
    ]
    print_table(("model", "version", "nDCG@10", "95% of the gain", "reindex", "address"), rows)


def _changed(model_uri: str, store: ObjectStore, count: int) -> list[dict[str, Any]]:
    """The ``count`` questions that lost most and those that gained most, by gain; without the ids of their logs."""
    import pyarrow.parquet as pq  # noqa: PLC0415  of foldtune-server; the SDK alone lists versions

    try:
        content = store.find(f"{store.key(model_uri)}/{EVALUATION}")
        if content is None:
            raise UserError(f"{model_uri} has no {EVALUATION}, which releases up to 0.1 did not write")
        table = pq.read_table(io.BytesIO(content))
    # Of another bucket, or no Parquet.
    except ValueError as error:
        raise UserError(f"{model_uri}, {EVALUATION}: {error}") from error
    rows: list[dict[str, Any]] = table.drop_columns(["logs"]).to_pylist()
    lost, gained = ([row for row in rows if row["gain"] * sign > 0] for sign in (-1, 1))
    return [*lost[:count], *gained[-count:]]


def _print_questions(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        for row in rows:
            print_json(row)
        return
    columns = ("gain", "rank", "question", "found first before", "now")
    print_table(
        columns,
        [
            (
                f"{row['gain']:+.3f}",
                f"{row['rank_before'] or '-'} → {row['rank_after'] or '-'}",
                row["question"],
                *(row[moment][0]["document_id"] if row[moment] else "-" for moment in ("before", "after")),
            )
            for row in rows
        ],
    )
