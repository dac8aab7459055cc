"""How a command ends: its exit code, and one line in place of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from autotune.cli.console import say_error, say_interrupted
from autotune.cli.signals import exit_code, stoppable
from autotune.errors import AutotuneError

if TYPE_CHECKING:
    from autotune.cli.progress import RunProgress
    from autotune.plan.study import StudyPlan

EXIT_ERROR = 1
EXIT_CHECK_FAILED = 3


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the command with one line and its exit code on an ``AutotuneError`` or a signal."""
    try:
        with stoppable():
            yield
    except AutotuneError as error:
        say_error(" ".join(str(error).split()))
        raise typer.Exit(EXIT_ERROR) from None
    except KeyboardInterrupt as stop:
        say_error("interrupted")
        raise typer.Exit(exit_code(stop)) from None


@contextmanager
def resumable(plan: StudyPlan, progress: RunProgress) -> Iterator[None]:
    """End a run on a signal with what is kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        say_interrupted(plan, progress)
        raise typer.Exit(exit_code(stop)) from None
