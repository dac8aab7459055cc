"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import Command
from tests.recordings import write_recording


@pytest.fixture
def autotune(tmp_path) -> Command:
    """The command, in an empty folder."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return Command(folder)


@pytest.fixture
def recording(tmp_path) -> Path:
    """Two shapes of 162 configurations each."""
    return write_recording(tmp_path / "r.jsonl.gz")
