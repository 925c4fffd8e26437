"""Which changelog records from Faust a table applies."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import faust
import pytest
from faust.types import TP

from streams.partitions.broker_reader import BrokerReader
from streams.partitions.changelog_table import ChangelogTable


def changelog_event(table: Any, partition: int, offset: int, value: bytes) -> Any:
    message = SimpleNamespace(
        tp=TP(table.changelog_topic_name, partition), partition=partition, offset=offset, key=b"k", value=value
    )
    return SimpleNamespace(message=message)


def test_late_changelog_records_do_not_undo_writes_of_an_owned_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = faust.App("unit", store="rocksdb://", datadir=str(tmp_path))
    changelog_table = ChangelogTable(app, "sets", 2, cast(BrokerReader, None))
    table = cast(Any, app.tables)["sets"]
    Path(str(table.data.path)).mkdir(parents=True, exist_ok=True)
    # A standby, and a partition that is being recovered, applies every record.
    table.apply_changelog_batch([changelog_event(table, 0, 7, b"newer"), changelog_event(table, 1, 7, b"newer")])
    monkeypatch.setattr(changelog_table, "owns", lambda partition: partition == 1)
    table.apply_changelog_batch([changelog_event(table, 0, 8, b"late"), changelog_event(table, 1, 5, b"late")])
    assert (changelog_table.get(0, b"k"), changelog_table.get(1, b"k")) == (b"late", b"newer")
    assert table.persisted_offset(TP(table.changelog_topic_name, 1)) == 7
