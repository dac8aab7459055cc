"""Open a new database again and again, killed one writing statement later each time."""

from __future__ import annotations

import os
import signal
import sys
from itertools import count
from pathlib import Path

import sqlalchemy as sa

from autotune.search import TrialMirror
from autotune.store import Store


def kill_at_every_statement(folder: Path) -> None:
    """Leave ``0.db``, ``1.db`` and so on in a folder; the first and the last are whole."""
    _open(folder / "0.db")  # so that children import nothing
    for number in count(1):
        child = os.fork()
        if child == 0:
            _kill_at(number)
            _open(folder / f"{number}.db")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return


def _open(path: Path) -> None:
    Store(f"sqlite:///{path}").close()
    TrialMirror(f"sqlite:///{path}").close()


def _kill_at(number: int) -> None:
    """Kill this process before it executes its ``number``-th statement that writes."""
    left = iter(range(number - 1))

    def executing(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        reads = statement.lstrip().startswith(("SELECT", "PRAGMA"))
        if not reads and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(sa.Engine, "before_cursor_execute", executing)


if __name__ == "__main__":
    kill_at_every_statement(Path(sys.argv[1]))
