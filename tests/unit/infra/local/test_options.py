"""Ports, folders and settings of the local servers, without starting one."""

import fcntl
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from infra.local import kafka, s3
from infra.local.errors import DataFolderInUseError, ForeignFilesError
from infra.local.folder import DataFolder
from infra.local.options import LocalOptions
from infra.local.ports import FREE_PORTS, HOST, choose_port, free_port, is_free
from infra.local.stack import LocalServers


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server((HOST, free_port())) as listener:
        yield listener.getsockname()[1]


def test_a_free_port_is_used_as_wanted() -> None:
    wanted = free_port()
    assert choose_port(wanted) == wanted


def test_a_taken_port_is_replaced_by_a_free_one(taken_port: int) -> None:
    assert not is_free(taken_port)
    assert choose_port(taken_port) in set(FREE_PORTS) - {taken_port}


def test_a_port_of_another_server_is_not_chosen_twice() -> None:
    wanted = free_port()
    assert choose_port(wanted, exclude=frozenset({wanted})) != wanted


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_outside_the_range_is_refused(port: int) -> None:
    with pytest.raises(ValidationError):
        LocalOptions(kafka_port=port)


def test_the_servers_listen_on_the_loopback_interface_only(tmp_path: Path) -> None:
    broker = kafka.settings_text(LocalOptions(), tmp_path, 20_001, 20_002)
    assert "listeners=PLAINTEXT://127.0.0.1:20001,CONTROLLER://127.0.0.1:20002\n" in broker
    assert "s3proxy.endpoint=http://127.0.0.1:20003\n" in s3.settings_text(LocalOptions(), tmp_path, 20_003)


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    first, second = DataFolder(tmp_path / "data"), DataFolder(tmp_path / "data")
    first.claim()
    with pytest.raises(DataFolderInUseError):
        second.claim()
    first.release()
    second.claim()
    second.release()


def test_a_folder_with_other_files_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ForeignFilesError, match="other files"):
        DataFolder(tmp_path).claim()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_discarding_keeps_other_files(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.claim()
    (folder.root / "notes.txt").write_text("mine")
    folder.discard()
    folder.release()
    assert [path.name for path in folder.root.iterdir()] == ["notes.txt"]


def test_discarding_removes_an_otherwise_empty_folder(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.claim()
    folder.discard()
    folder.release()
    assert not folder.root.exists()


def test_stopping_a_stack_that_never_started_touches_nothing(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.claim()
    (folder.config / "state.json").write_text("another stack's")
    LocalServers(LocalOptions(data_dir=folder.root, keep_data=False)).stop()
    assert folder.state.read_text() == "another stack's"
    folder.release()


def test_the_claim_is_a_lock_of_the_operating_system(tmp_path: Path) -> None:
    """Released with the process: a crash cannot leave it behind."""
    folder = DataFolder(tmp_path / "data")
    folder.claim()
    marker = next(path for path in folder.root.iterdir() if path.is_file())
    with marker.open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    folder.release()
