"""``foldtune demo``: the whole loop on this machine."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from demo.console import DemoConsole
    from demo.pipeline import DemoOptions
    from demo.running_system import RunningSystem

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the system running until Ctrl-C.")] = False,
    loop: Annotated[
        int, typer.Option(min=0, max=5, help="Rounds that the policy requests by itself; 0: one, by a request.")
    ] = 0,
    folders: Annotated[
        int | None, typer.Option(min=1, help="Number of folders, the largest first.", show_default="8, of a loop 5")
    ] = None,
    documents: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Number of documents; those that answer a question are always included.",
            show_default="2400, of a loop 1600",
        ),
    ] = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of questions in the logs.", show_default="1600")
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option(min=1, help="Number of questions held out for evaluation.", show_default="400, of a loop 150"),
    ] = None,
    wrong_labels: Annotated[
        float | None, typer.Option(min=0, max=0.5, help="Share of wrong labels.", show_default="0.2, of a loop 0.05")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, max=100, help="Number of epochs.", show_default="1, of a loop 2")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sample, the simulation and the training.")] = 0,
) -> None:
    """Run the whole loop on this machine, from chat logs to a better model; the last line is the result as JSON.

    Starts a real Kafka, a real S3 server, a stream worker and a launcher, simulates an agent over Python's standard
    library, and fine-tunes a model on its logs. Stops everything that it started when it exits.

    With --loop nothing is requested: the retraining policy trains, round after round, and the agent answers with the
    newest model; then its answers get worse, which the policy notices. The last line has all events in order.
    """
    _restart_with_allocator_options()
    # Imported here so that help does not load torch.
    from demo.console import DemoConsole  # noqa: PLC0415
    from demo.loop import LOOP_OPTIONS  # noqa: PLC0415
    from demo.pipeline import DemoOptions  # noqa: PLC0415
    from foldtune.logs import configure_logs  # noqa: PLC0415

    # The stages show the progress; of the libraries, only warnings matter.
    configure_logs("WARNING")
    # Like Ctrl-C: raises, so that every "finally" runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chosen: dict[str, Any] = {
        "folders": folders,
        "documents": documents,
        "questions": questions,
        "held_out": held_out,
        "wrong_labels": wrong_labels,
        "epochs": epochs,
    }
    sizes = {name: value for name, value in chosen.items() if value is not None}
    options = replace(LOOP_OPTIONS if loop else DemoOptions(), **sizes, seed=seed)
    try:
        _run(options, loop, DemoConsole(), keep=keep)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _run(options: "DemoOptions", rounds: int, console: "DemoConsole", *, keep: bool) -> None:
    from demo.console_content import fill_console  # noqa: PLC0415
    from demo.loop import Script, run_loop  # noqa: PLC0415
    from demo.pipeline import read_corpus, run  # noqa: PLC0415
    from demo.report import print_next_steps, print_results  # noqa: PLC0415
    from demo.running_system import RunningSystem  # noqa: PLC0415

    task = read_corpus(options, console)
    script = Script.of(task.questions.asked, rounds) if rounds else None
    with ExitStack() as stack:
        with console.stage("start", "Starting Kafka, S3, a stream worker and a launcher"):
            system = stack.enter_context(RunningSystem(script.policy(options) if script else None))
        with _errors_reported(system):
            # Each before the wait, so that the result is printed however that ends.
            if script:
                typer.echo(json.dumps(run_loop(options, script, system, task, console)))
            else:
                result = run(options, system, task, console)
                print_results(task, result, console)
                typer.echo(json.dumps(result.summary(console.durations())))
            if keep:
                address = system.start_console()
                fill_console(address, system.settings)
                print_next_steps(system, f"{address}/console/", console)
                _wait_for_interrupt(system)


@contextmanager
def _errors_reported(system: "RunningSystem") -> Iterator[None]:
    """Print the processes' last log lines before an error of the system ends the command."""
    import httpx  # noqa: PLC0415

    from demo.request_progress import NoModelError  # noqa: PLC0415
    from demo.running_system import ProcessExitedError  # noqa: PLC0415
    from foldtune.errors import FoldtuneError  # noqa: PLC0415

    try:
        yield
    except (NoModelError, ProcessExitedError, FoldtuneError, httpx.HTTPError) as error:
        typer.echo(f"{system.log_tails()}\nfoldtune: {error}\nThe logs are in {system.folder}.", err=True)
        raise typer.Exit(1) from error


def _wait_for_interrupt(system: "RunningSystem") -> None:
    """Wait for Ctrl-C; raises ``ProcessExitedError`` if a server or process exits before."""
    with suppress(KeyboardInterrupt):
        while True:
            system.check_running()
            time.sleep(1)


def _restart_with_allocator_options() -> None:
    """Re-execute this program if its environment lacks the allocator's options, which malloc reads before ``main``."""
    from trainers.environment import ALLOCATOR_ENVIRONMENT  # noqa: PLC0415

    if not ALLOCATOR_ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, os.environ | ALLOCATOR_ENVIRONMENT)  # noqa: S606
