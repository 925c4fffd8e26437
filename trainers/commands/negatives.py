"""``foldtune negatives``."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from foldtune.commands.errors import UserError
from foldtune.commands.output import AsJson, print_json, print_table
from foldtune.events import TrainingJob
from foldtune.object_store import S3ObjectStore
from foldtune.settings import KafkaSettings, load_settings
from foldtune.topic_reader import read
from foldtune.topics import Topic

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Hard negatives.")


@app.callback()
def negatives() -> None:
    """Hard negatives."""


@app.command()
def explain(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST", help="A request whose training was started.")],
    question: Annotated[str, typer.Argument(help="A question of its logs.")],
    model: Annotated[str | None, typer.Option(help="The request's model, where several use the id.")] = None,
    nearest: Annotated[int, typer.Option(min=1, max=1000, help="Number of nearest documents to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show the candidates for hard negatives before the first epoch, why each was chosen or excluded, and its scores.

    First the passages that agents were shown and did not cite, then the nearest documents.
    """
    # torch is imported only when a model is needed.
    from trainers.data.negative_explanation import explain_negatives  # noqa: PLC0415
    from trainers.errors import TrainerError  # noqa: PLC0415

    settings = load_settings()
    job = _job(settings.kafka, request_id, model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            store = S3ObjectStore(settings.s3)
            examples = explain_negatives(job, settings, store, Path(folder), question=question, depth=nearest)
        except TrainerError as error:
            raise UserError(str(error)) from error
    for example in examples:
        if as_json:
            candidates = [
                {
                    "passage": text,
                    "shown": candidate.shown,
                    "score": candidate.score,
                    "jaccard": candidate.jaccard,
                    "verdict": candidate.decision.name.lower(),
                    "chosen": candidate.chosen,
                }
                for text, candidate in example.candidates
            ]
            print_json(asdict(example) | {"candidates": candidates})
            continue
        typer.echo(f"{example.question}\npositive, score {example.score:.3f}: {example.positive[:200]}")
        rows = [
            (
                candidate.decision.name.lower().replace("_", " ") + (", chosen" if candidate.chosen else ""),
                "shown" if candidate.shown else "mined",
                f"{candidate.score:.3f}",
                f"{candidate.jaccard:.2f}",
                text[:200],
            )
            for text, candidate in example.candidates
        ]
        print_table(("verdict", "from", "score", "Jaccard", "passage"), rows)


def _job(kafka: KafkaSettings, request_id: str, model: str | None) -> TrainingJob:
    for record in read(kafka, Topic.TRAINING_JOBS):
        job = TrainingJob.model_validate_json(record.value)
        if job.request.request_id == request_id and model in {None, job.request.model}:
            return job
    raise UserError(f"no training was started for a request {request_id!r}; 'foldtune status' shows its state")
