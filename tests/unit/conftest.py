"""Fixtures for tests without servers."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foldtune.settings import load_settings

# The tier runs in as many processes as there are cores. Were each to train with as many threads, they would spend their
# time at each other's barriers. Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[CliRunner]:
    """Runs commands in an empty folder, and gives every message the room that it takes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    load_settings.cache_clear()
    yield CliRunner()
    load_settings.cache_clear()
