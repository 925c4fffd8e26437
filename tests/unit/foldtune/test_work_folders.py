"""Temporary folders of processes, some of which were killed."""

from pathlib import Path

from foldtune.work_folders import remove_abandoned, work_folder


def test_a_folder_is_removed_at_its_end(tmp_path: Path) -> None:
    with work_folder(tmp_path / "parent", "run-") as folder:
        (folder / "file").write_text("text")
        assert folder.name.startswith("run-")
    assert not folder.exists()


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    left, other = tmp_path / "run-left", tmp_path / "other-left"
    with work_folder(tmp_path, "run-") as in_use:
        for folder in (left, other):
            folder.mkdir()
            (folder / "file").write_text("text")
        remove_abandoned(tmp_path, "run-")
        assert (left.exists(), other.exists(), in_use.exists()) == (False, True, True)
        left.mkdir()
        with work_folder(tmp_path, "run-") as second:
            assert (left.exists(), in_use.exists(), second.exists()) == (False, True, True)


def test_a_folder_that_does_not_exist_yet_has_nothing_to_remove(tmp_path: Path) -> None:
    remove_abandoned(tmp_path / "nowhere", "run-")
    assert not (tmp_path / "nowhere").exists()
