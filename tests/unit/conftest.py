"""Fixtures for tests without servers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foldtune.settings import load_settings


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[CliRunner]:
    """Runs commands in an empty folder, and gives every message the room that it takes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    load_settings.cache_clear()
    yield CliRunner()
    load_settings.cache_clear()
