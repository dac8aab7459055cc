"""What ends a command from outside: Ctrl-C, SIGTERM and SIGHUP.

Imports nothing heavy, because a signal may come while the commands are still being imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

#: Ctrl-C; what ``kill``, SLURM and Kubernetes send; what a terminal that goes away sends.
_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: A second signal within so many seconds changes nothing, as both of an impatient Ctrl-C Ctrl-C may
#: come before the first is heeded, and SLURM and shells send several. Writing what was measured
#: takes less, unless the database does not answer; a signal after that ends the process at once.
_GRACE_S = 5.0

#: Makes the cursor visible that a live display has hidden.
_SHOW_CURSOR = b"\x1b[?25h"


class Stopped(KeyboardInterrupt):
    """A signal asks the command to end. Whatever heeds Ctrl-C heeds it too.

    Attributes:
        number: The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 and the signal's number, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


class _Heed:
    """The handler of all signals.

    Attributes:
        stop: The first signal that came; None before.
        waits: How many callers are ready to be stopped by ``Stopped``. Without any, the process
            has nothing to keep and ends.
    """

    def __init__(self) -> None:
        self.stop: Stopped | None = None
        self.waits = 0
        self._came_s = 0.0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.stop is None:
            self.stop, self._came_s = Stopped(number), time.monotonic()
            raise self.stop if self.waits else SystemExit(exit_code(self.stop))
        if time.monotonic() - self._came_s > _GRACE_S:
            _end_at_once(128 + number)


_heed = _Heed()


@contextmanager
def heeded() -> Iterator[None]:
    """Heed signals for as long as a command runs.

    A signal that the process was started to ignore (``nohup``, ``&``) stays ignored. After a signal
    the handlers stay, so that a second one cannot disturb the end of the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Callable[..., object] | int | None] = {
        number: handler
        for number in _NUMBERS
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, _heed)
    reported, sys.unraisablehook = sys.unraisablehook, _unless_stopped(sys.unraisablehook)
    try:
        yield
    finally:
        if _heed.stop is None:
            sys.unraisablehook = reported
            for number, handler in before.items():
                signal.signal(number, handler)


def _unless_stopped(
    report: Callable[[sys.UnraisableHookArgs], object],
) -> Callable[[sys.UnraisableHookArgs], object]:
    """Report what Python cannot raise, but not that a signal came there."""

    def hook(about: sys.UnraisableHookArgs) -> None:
        if _heed.stop is None or not isinstance(about.exc_value, Stopped | SystemExit):
            report(about)

    return hook


@contextmanager
def stoppable() -> Iterator[None]:
    """Between these lines a signal raises ``Stopped``, once."""
    _heed.waits += 1
    try:
        yield
    finally:
        _heed.waits -= 1


def check_stopped() -> None:
    """Stop if a signal has come.

    Python drops an exception that a signal raises within a destructor; the next check raises it.

    Raises:
        Stopped: A signal has come.
    """
    if _heed.stop is not None:
        raise _heed.stop


def _end_at_once(code: int) -> None:
    with suppress(OSError):  # nobody reads it
        if os.isatty(1):
            os.write(1, _SHOW_CURSOR)
        os.write(2, b"autotune: ended at once\n")
    os._exit(code)
