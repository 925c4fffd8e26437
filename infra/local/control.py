"""Looking at, and stopping, a stack that another process runs, by what it left in its data folder."""

from dataclasses import dataclass, field
from pathlib import Path

from infra.local import kafka, records, s3
from infra.local.folder import DataFolder
from infra.local.ports import HOST
from infra.local.records import LocalState, ProcessRecord
from infra.local.server import STOP_SECONDS, end_leftover

# Both servers stop at the same time; the owner then has the data to throw away.
OWNER_STOP_SECONDS = 2 * STOP_SECONDS


@dataclass(frozen=True)
class ServerStatus:
    """One server: its Java process where it runs, and its address where one is known."""

    name: str
    pid: int | None
    address: str = ""


@dataclass(frozen=True)
class StackStatus:
    """What a data folder says about its stack. ``stale``: the owner is gone, but did not clean up."""

    servers: tuple[ServerStatus, ...]
    owner_pid: int | None = None
    stale: bool = False
    log_dir: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        """The owner and both servers live."""
        return self.owner_pid is not None and all(server.pid for server in self.servers)


def status(data_dir: Path) -> StackStatus:
    """What runs on the folder. A pid that belongs to another process by now counts as stopped."""
    folder = DataFolder(data_dir)
    state = records.read(LocalState, folder.state)
    kafka_pid, s3_pid = (_pid(path) for path in folder.server_records)
    if not state:
        leftover = bool(kafka_pid or s3_pid)
        return StackStatus((ServerStatus(kafka.NAME, kafka_pid), ServerStatus(s3.NAME, s3_pid)), stale=leftover)
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
    """Stop the stack of the folder; says whether anything ran. What a crash left behind is ended and forgotten."""
    folder = DataFolder(data_dir)
    state = records.read(LocalState, folder.state)
    ended = state is not None and state.end(OWNER_STOP_SECONDS)
    # A list, so that the second is ended whatever the first was.
    leftovers = [end_leftover(path) for path in folder.server_records]
    folder.state.unlink(missing_ok=True)
    return ended or any(leftovers)


def _pid(record_file: Path) -> int | None:
    record = records.read(ProcessRecord, record_file)
    process = record.process() if record else None
    return process.pid if process else None
