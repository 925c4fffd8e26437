"""Status and stop of a stack that another process runs, by the pid files in its data folder."""

from dataclasses import dataclass, field
from pathlib import Path

from infra.local import kafka, pid_files, s3
from infra.local.folder import DataFolder
from infra.local.pid_files import ProcessIdentity, StackState
from infra.local.ports import HOST
from infra.local.server import STOP_SECONDS, stop_orphan

# Both servers stop at the same time; the owner may then have to delete the data.
OWNER_STOP_SECONDS = 2 * STOP_SECONDS


@dataclass(frozen=True)
class ServerStatus:
    """One server: the pid of its Java process while it runs, and its address where known."""

    name: str
    pid: int | None
    address: str = ""


@dataclass(frozen=True)
class StackStatus:
    """The stack of a data folder. ``stale``: its owner exited without cleaning up."""

    servers: tuple[ServerStatus, ...]
    owner_pid: int | None = None
    stale: bool = False
    log_dir: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        """Whether the owner and both servers run."""
        return self.owner_pid is not None and all(server.pid for server in self.servers)


def status(data_dir: Path) -> StackStatus:
    """What runs on the folder; a process whose pid has been reused counts as stopped."""
    folder = DataFolder(data_dir)
    state = pid_files.read(StackState, folder.state)
    kafka_pid, s3_pid = (_running_pid(path) for path in folder.server_pid_files)
    if not state:
        orphaned = bool(kafka_pid or s3_pid)
        return StackStatus((ServerStatus(kafka.NAME, kafka_pid), ServerStatus(s3.NAME, s3_pid)), stale=orphaned)
    owner = state.process()
    return StackStatus(
        servers=(
            ServerStatus(kafka.NAME, kafka_pid, f"{HOST}:{state.kafka_port}"),
            ServerStatus(s3.NAME, s3_pid, s3.endpoint(state.s3_port)),
        ),
        owner_pid=owner.pid if owner else None,
        stale=owner is None,
        log_dir=state.log_dir,
        environment=state.environment,
    )


def stop(data_dir: Path) -> bool:
    """Stop the stack of the folder, servers orphaned by a crash included; whether anything ran."""
    folder = DataFolder(data_dir)
    state = pid_files.read(StackState, folder.state)
    stopped = state is not None and state.terminate(OWNER_STOP_SECONDS)
    # A list, since any() over a generator would not stop the second after the first.
    orphans = [stop_orphan(path) for path in folder.server_pid_files]
    folder.state.unlink(missing_ok=True)
    return stopped or any(orphans)


def _running_pid(pid_file: Path) -> int | None:
    identity = pid_files.read(ProcessIdentity, pid_file)
    process = identity.process() if identity else None
    return process.pid if process else None
