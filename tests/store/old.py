"""A database of an autotune that did not yet write down a run's plan."""

from __future__ import annotations

import sqlite3
from pathlib import Path

DUMP = Path(__file__).with_name("version1.sql")


def write_old_database(path: Path) -> str:
    """Two finished shapes of five trials each, by commit bcb5f93; returns the URL."""
    connection = sqlite3.connect(path)
    connection.executescript(DUMP.read_text())
    connection.close()
    return f"sqlite:///{path}"
