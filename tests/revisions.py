"""Optuna's descriptions of its tables' versions, read once in a process.

Alembic reads them anew, with some hundred table classes, whenever a database is opened: that is
0.2 s of processor time for a new database, nine tenths of what opening it takes.
"""

from __future__ import annotations

import threading

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory


def read_them_once(patch: pytest.MonkeyPatch) -> None:
    """Have all databases that this process opens share what was read for the first."""
    read, lock, known = ScriptDirectory.from_config, threading.Lock(), dict[str, ScriptDirectory]()

    def shared(config: Config) -> ScriptDirectory:
        folder = str(config.get_main_option("script_location"))
        with lock:
            if folder not in known:
                known[folder] = read(config)
                known[folder].get_heads()  # this reads them
            return known[folder]

    patch.setattr(ScriptDirectory, "from_config", shared)
