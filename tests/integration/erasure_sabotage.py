"""A worker in which one step of an erasure is missing: ``python -m tests.integration.erasure_sabotage worker``.

The environment names it: ``ERASURE_WITHOUT``.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from foldtune import cli, work_folders
from streams.partitions.changelog_table import ChangelogTable
from streams.training_sets.erasures import Erasures
from streams.training_sets.state_events import StateRecord
from streams.training_sets.store import TrainingSets


def _keep_everything() -> None:
    def unchanged(_: Erasures, record: StateRecord) -> StateRecord:
        return record

    _replace(Erasures, "apply", unchanged)


def _keep_deleted_values() -> None:
    _replace(ChangelogTable, "reclaim", lambda *_: None)


def _keep_leftovers() -> None:
    # At the start, and at each export.
    _replace(work_folders, "_remove_abandoned", lambda *_: None)


def _keep_standbys() -> None:
    async def nothing(_: ChangelogTable) -> None:
        return

    _replace(ChangelogTable, "reclaim_standbys", nothing)


def _log_records() -> None:
    add = TrainingSets.add

    async def logged(self: TrainingSets, partition: int, topic: Any, records: Any) -> None:
        records = list(records)
        print(records, file=sys.stderr)  # noqa: T201
        await add(self, partition, topic, records)

    _replace(TrainingSets, "add", logged)


def _replace(of: object, name: str, function: Callable[..., Any]) -> None:
    assert hasattr(of, name)
    setattr(of, name, function)


WITHOUT: dict[str, Callable[[], None]] = {
    "application": _keep_everything,
    "compaction of RocksDB": _keep_deleted_values,
    "removal of leftovers": _keep_leftovers,
    "compaction of standbys": _keep_standbys,
    "silence of the log": _log_records,
}

if __name__ == "__main__":
    WITHOUT[os.environ["ERASURE_WITHOUT"]]()
    cli.main()
