"""``foldtune demo``: the whole loop on this machine."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from demo.screen import Screen
    from demo.stages import Plan
    from demo.surroundings import Surroundings

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False,
    folders: Annotated[int, typer.Option(min=1, help="How many folders, the largest first.")] = 8,
    documents: Annotated[int, typer.Option(min=2, help="How many documents, but all that answer a question.")] = 2_400,
    questions: Annotated[int, typer.Option(min=1, help="How many questions the simulated users ask at most.")] = 1_600,
    held_out: Annotated[int, typer.Option(min=1, help="How many questions are kept for the comparison.")] = 400,
    wrong_labels: Annotated[float, typer.Option(min=0, max=0.5, help="Share of the labels that are wrong.")] = 0.2,
    epochs: Annotated[int, typer.Option(min=1, max=100, help="Number of epochs.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw, of the simulation and of the training.")] = 0,
) -> None:
    """Show the whole loop on this machine, from chat logs to a better model; the last line is the result as JSON.

    Starts a real Kafka, a real S3 server, a stream worker and a launcher, has an agent over Python's standard library
    simulated, and fine-tunes from its logs. Whatever it starts ends with it.
    """
    _with_roomy_allocator()
    # Imported when needed: help is quick without torch.
    from demo.screen import Screen  # noqa: PLC0415
    from demo.stages import Plan  # noqa: PLC0415
    from foldtune.logs import configure_logs  # noqa: PLC0415
    from foldtune.settings import Settings  # noqa: PLC0415

    # The stages say what goes on; of the libraries only what is wrong.
    configure_logs(Settings.model_construct(log_level="WARNING"))
    # As for Ctrl-C: the way out leads through every "finally".
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    plan = Plan(folders, documents, questions, held_out, wrong_labels, epochs, seed)
    try:
        _run(plan, Screen(), keep=keep)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _run(plan: "Plan", screen: "Screen", *, keep: bool) -> None:
    from demo.show import show_answers, show_how_to_go_on  # noqa: PLC0415
    from demo.stages import read_corpus, run  # noqa: PLC0415
    from demo.surroundings import Surroundings  # noqa: PLC0415

    material = read_corpus(plan, screen)
    with ExitStack() as stack:
        with screen.stage("start", "Starting Kafka, S3, a stream worker and a launcher"):
            surroundings = stack.enter_context(Surroundings())
        with _explained(surroundings):
            result = run(plan, surroundings, material, screen)
            show_answers(material, result, screen)
            # Before the wait: however that ends, the result has been said.
            typer.echo(json.dumps(result.report(screen.timings())))
            if keep:
                show_how_to_go_on(surroundings, result, screen)
                _until_interrupted(surroundings)


@contextmanager
def _explained(surroundings: "Surroundings") -> Iterator[None]:
    """Show what the parts said last before an error of theirs ends the command."""
    from demo.following import NoModelError  # noqa: PLC0415
    from demo.surroundings import PartEndedError  # noqa: PLC0415
    from foldtune.errors import FoldtuneError  # noqa: PLC0415

    try:
        yield
    except (NoModelError, PartEndedError, FoldtuneError) as error:
        typer.echo(f"{surroundings.tails()}\nfoldtune: {error}\nThe logs are in {surroundings.folder}.", err=True)
        raise typer.Exit(1) from error


def _until_interrupted(surroundings: "Surroundings") -> None:
    """Wait for Ctrl-C; raises ``PartEndedError`` where a part ends before."""
    with suppress(KeyboardInterrupt):
        while True:
            surroundings.check()
            time.sleep(1)


def _with_roomy_allocator() -> None:
    """Start this program anew where its environment lacks the allocator's options, which are read before ``main``."""
    from trainers.environment import ALLOCATOR_ENVIRONMENT  # noqa: PLC0415

    if not ALLOCATOR_ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, os.environ | ALLOCATOR_ENVIRONMENT)  # noqa: S606
