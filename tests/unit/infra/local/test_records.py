"""What a data folder says about processes, after crashes and reused pids."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.local import control, records
from infra.local.folder import DataFolder
from infra.local.records import LocalState, ProcessRecord
from infra.local.server import end_leftover

A_DAY = 86_400.0


@pytest.fixture
def bystander() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with process:
        yield process
        process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path)
    folder.config.mkdir()
    return folder


def state(owner: ProcessRecord) -> LocalState:
    return LocalState(**owner.model_dump(), kafka_port=20_001, s3_port=20_002, log_dir=Path("logs"), environment={})


def aged(record: ProcessRecord) -> ProcessRecord:
    return record.model_copy(update={"started": record.started - A_DAY})


def test_a_running_process_is_found_by_its_record() -> None:
    found = ProcessRecord.here().process()
    assert found is not None
    assert found.pid == os.getpid()


def test_a_process_that_ended_is_not_found(bystander: "subprocess.Popen[bytes]") -> None:
    record = ProcessRecord.of(bystander.pid)
    bystander.kill()
    bystander.wait()
    assert record.process() is None


def test_a_process_that_was_given_the_pid_later_is_another_one() -> None:
    assert aged(ProcessRecord.here()).process() is None


def test_a_record_is_for_its_user_only_and_survives_the_way_to_disk(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    records.write(ProcessRecord.here(), path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert records.read(ProcessRecord, path) == ProcessRecord.here()


@pytest.mark.parametrize("content", [None, "", "{", '{"pid": "x"}'])
def test_no_record_and_half_a_record_are_none(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "record.json"
    if content is not None:
        path.write_text(content)
    assert records.read(ProcessRecord, path) is None


def test_a_new_folder_has_nothing_running(folder: DataFolder) -> None:
    found = control.status(folder.root)
    assert not found.running
    assert not found.stale
    assert control.stop(folder.root) is False


def test_a_state_whose_owner_crashed_is_stale(folder: DataFolder) -> None:
    records.write(state(aged(ProcessRecord.here())), folder.state)
    found = control.status(folder.root)
    assert found.stale
    assert not found.running
    assert control.stop(folder.root) is False
    assert not control.status(folder.root).stale


def test_a_reused_pid_is_never_ended(folder: DataFolder, bystander: "subprocess.Popen[bytes]") -> None:
    reused = aged(ProcessRecord.of(bystander.pid))
    records.write(state(reused), folder.state)
    for path in folder.server_records:
        records.write(reused, path)
    assert control.stop(folder.root) is False
    assert psutil.Process(bystander.pid).is_running()
    assert bystander.poll() is None


def test_a_server_that_lost_its_owner_is_seen_and_ended(
    folder: DataFolder, bystander: "subprocess.Popen[bytes]"
) -> None:
    records.write(ProcessRecord.of(bystander.pid), folder.kafka_record)
    assert control.status(folder.root).stale
    assert end_leftover(folder.kafka_record)
    assert not psutil.pid_exists(bystander.pid)
    assert not folder.kafka_record.exists()
