"""Pid files after crashes and with reused pids."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.local import control, pid_files
from infra.local.folder import DataFolder
from infra.local.pid_files import ProcessIdentity, StackState
from infra.local.server import stop_orphan

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


def state(owner: ProcessIdentity) -> StackState:
    return StackState(**owner.model_dump(), kafka_port=20_001, s3_port=20_002, log_dir=Path("logs"), environment={})


def aged(identity: ProcessIdentity) -> ProcessIdentity:
    return identity.model_copy(update={"started": identity.started - A_DAY})


def test_a_running_process_is_found_by_its_identity() -> None:
    found = ProcessIdentity.current().process()
    assert found is not None
    assert found.pid == os.getpid()


def test_a_process_that_ended_is_not_found(bystander: "subprocess.Popen[bytes]") -> None:
    record = ProcessIdentity.of(bystander.pid)
    bystander.kill()
    bystander.wait()
    assert record.process() is None


def test_a_process_with_a_reused_pid_is_not_the_same() -> None:
    assert aged(ProcessIdentity.current()).process() is None


def test_a_pid_file_is_readable_by_its_user_only_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "pid.json"
    pid_files.write(ProcessIdentity.current(), path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert pid_files.read(ProcessIdentity, path) == ProcessIdentity.current()


@pytest.mark.parametrize("content", [None, "", "{", '{"pid": "x"}'])
def test_a_missing_or_partial_pid_file_is_none(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "pid.json"
    if content is not None:
        path.write_text(content)
    assert pid_files.read(ProcessIdentity, path) is None


def test_a_new_folder_has_nothing_running(folder: DataFolder) -> None:
    found = control.status(folder.root)
    assert not found.running
    assert not found.stale
    assert control.stop(folder.root) is False


def test_a_state_whose_owner_crashed_is_stale(folder: DataFolder) -> None:
    pid_files.write(state(aged(ProcessIdentity.current())), folder.state)
    found = control.status(folder.root)
    assert found.stale
    assert not found.running
    assert control.stop(folder.root) is False
    assert not control.status(folder.root).stale


def test_a_process_with_a_reused_pid_is_never_terminated(
    folder: DataFolder, bystander: "subprocess.Popen[bytes]"
) -> None:
    reused = aged(ProcessIdentity.of(bystander.pid))
    pid_files.write(state(reused), folder.state)
    for path in folder.server_pid_files:
        pid_files.write(reused, path)
    assert control.stop(folder.root) is False
    assert psutil.Process(bystander.pid).is_running()
    assert bystander.poll() is None


def test_an_orphaned_server_is_detected_and_stopped(folder: DataFolder, bystander: "subprocess.Popen[bytes]") -> None:
    pid_files.write(ProcessIdentity.of(bystander.pid), folder.kafka_pid_file)
    assert control.status(folder.root).stale
    assert stop_orphan(folder.kafka_pid_file)
    assert not psutil.pid_exists(bystander.pid)
    assert not folder.kafka_pid_file.exists()
