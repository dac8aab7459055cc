"""Waits for a database that fails for a moment, so that a run outlasts a restart of its server."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, Protocol, TypeVar

from autotune.errors import StorageError
from autotune.store.faults import is_passing, is_race

if TYPE_CHECKING:
    from typing import ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")

#: How long a run tries again, seconds: a server restarts in less, and what is measured meanwhile is
#: only in memory.
PATIENCE_S = 120.0

#: How long it tries once it was told to end, seconds: SLURM and Kubernetes kill after 30.
_HASTE_S = 10.0

#: The pause before the first new try, and the longest one, seconds; each is twice the one before.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0

#: How often something is done again because another process was faster: once is enough, unless many
#: runs begin at the same moment.
_MOST_RACES = 100

#: The longest pause before that, seconds: those that met must not meet again.
_RACE_PAUSE_S = 0.05


class Patience:
    """Tries again what a database refused, for as long as it makes sense.

    Several threads may wait at a time.
    """

    def __init__(
        self, limit_s: float = 0.0, *, say: Callable[[str], None] = lambda _line: None
    ) -> None:
        """Wait for nothing yet.

        Args:
            limit_s: How long to try again, seconds; 0 for not at all.
            say: Called with a line when the waiting begins, and when it has ended well.
        """
        self._limit_s, self._say = limit_s, say
        self._latest_s = float("inf")
        self._lock, self._hurried = threading.Lock(), threading.Event()
        self._is_told = False

    @property
    def tries_again(self) -> bool:
        """Whether anything is tried again."""
        return self._limit_s > 0

    def hurry(self) -> None:
        """Wait ten seconds at most from now on, because the run is to end."""
        self._latest_s = min(self._latest_s, time.monotonic() + _HASTE_S)
        self._hurried.set()

    def outlast(self, work: Callable[[bool], T]) -> T:
        """Call a function until the database does what it asks.

        Args:
            work: Given whether it was called before. What it was to write may then be written
                already, as an answer may be lost after the database has done what was asked.

        Raises:
            StorageError: The database refuses for good, or did not answer for too long.
        """
        begun_s, pause_s, again = time.monotonic(), _FIRST_PAUSE_S, False
        while True:
            try:
                result = work(again)
            except StorageError as error:
                if not is_passing(error.__cause__):
                    raise
                until_s = min(begun_s + self._limit_s, self._latest_s)
                if time.monotonic() + pause_s > until_s:
                    self._latest_s = 0.0  # and nobody else waits for it
                    raise self._given_up(error, time.monotonic() - begun_s) from error
                self._tell(f"{error}. Trying again for {self._limit_s:.0f} s; measuring goes on.")
            else:
                if again:
                    self._tell("The database answers again.", is_over=True)
                return result
            self._pause(pause_s)
            pause_s, again = min(2 * pause_s, _LONGEST_PAUSE_S), True

    def _pause(self, seconds: float) -> None:
        """Wait, but not through the moment at which haste begins."""
        if self._hurried.is_set():
            time.sleep(seconds)
        else:
            self._hurried.wait(seconds)

    def _given_up(self, error: StorageError, waited_s: float) -> StorageError:
        if waited_s < 1:
            return error
        return StorageError(f"{error} (tried again for {waited_s:.0f} s)")

    def _tell(self, line: str, *, is_over: bool = False) -> None:
        with self._lock:
            if self._is_told != is_over:
                return
            self._is_told = not is_over
        self._say(line)


class _Patient(Protocol):
    @property
    def patience(self) -> Patience: ...


S = TypeVar("S", bound=_Patient)


def outlasted(
    function: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[S, P], T]:
    """A function that is called again while the database of its first argument does not answer.

    It is called again, too, where another process wrote the same row at the same moment. Only for a
    function that may be repeated: the second call finds what is written.
    """

    @wraps(function)
    def patient(of: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        def work(_again: bool) -> T:
            return unraced(lambda: function(of, *args, **kwargs))

        return of.patience.outlast(work)

    return patient


def unraced(work: Callable[[], T]) -> T:
    """Call a function again while other processes write or make the same as it does.

    Args:
        work: May be repeated: the next call finds what is there.

    Raises:
        StorageError: The database refuses for another reason, or again and again.
    """
    for _ in range(_MOST_RACES):
        try:
            return work()
        except StorageError as error:
            if not is_race(error.__cause__):
                raise
        time.sleep(_RACE_PAUSE_S * random.random())  # noqa: S311 - nothing is kept secret by it
    return work()
