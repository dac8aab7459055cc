"""What every run or command does anew, done once in a process that runs hundreds of them.

A process of a user runs one command, so autotune and its libraries keep none of this. Together it
was a third of what tests in one process took.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import typer.main
from alembic.config import Config
from alembic.script import ScriptDirectory

from autotune.measure import recording, replay
from autotune.measure.recording import Recording
from autotune.search.samplers import known

_ROOT = Path(__file__).parents[1]


def do_once(patch: pytest.MonkeyPatch) -> None:
    """Have this process keep what does not change: until the patch is undone."""
    patch.setattr(ScriptDirectory, "from_config", _shared_revisions())
    patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
    for module in (replay, known):
        patch.setattr(module, "read_recording", _read_once)


def _read_once(path: Path) -> Recording:
    """A recording; one that comes with autotune is read once, which takes half a second."""
    whole = path.resolve()
    return _of_ours(whole) if whole.is_relative_to(_ROOT) else recording.read_recording(path)


_of_ours = cache(recording.read_recording)


def _shared_revisions() -> Callable[[Config], ScriptDirectory]:
    """Reads Optuna's descriptions of its tables' versions for the first database only.

    Alembic reads them whenever a database is opened, with some hundred table classes: that is 0.2 s
    of processor time for a new database, nine tenths of what opening it takes.
    """
    read, lock, kept = ScriptDirectory.from_config, threading.Lock(), dict[str, ScriptDirectory]()

    def shared(config: Config) -> ScriptDirectory:
        folder = str(config.get_main_option("script_location"))
        with lock:
            if folder not in kept:
                kept[folder] = read(config)
                kept[folder].get_heads()  # this reads them
            return kept[folder]

    return shared
