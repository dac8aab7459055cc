"""Ctrl-C and kills: everything measured is kept, and the same command goes on."""

from __future__ import annotations

import re
import signal

import pytest

from autotune.measure.replay import shipped_recording
from tests.cli.command import Command
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.slow

#: A run on the shipped recording that takes long enough to be interrupted after its first shape.
RUN = (
    *("run", "--replay", shipped_recording()),
    *("--op", "expand", "--tokens", "16,128", "--trials", 40, "--seed", 3),
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Command:
    """The folder of a run that nothing disturbed."""
    command = Command(tmp_path_factory.mktemp("uninterrupted"))
    ended = command(*RUN)
    assert ended.code == 0, ended.err
    return command


def stopped_after_the_first_shape(autotune: Command, number: signal.Signals) -> tuple[int, str]:
    """Exit code and what was said."""
    process = autotune.start(*RUN)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[1/"):
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert not (autotune.folder / "tuned").exists(), "it was done before the signal came"
    return process.returncode, err


def test_ctrl_c_says_where_everything_is_and_the_next_run_ends_alike(autotune, uninterrupted):
    code, err = stopped_after_the_first_shape(autotune, signal.SIGINT)
    assert code == 130, err
    first, second = err.splitlines()
    # A shape may have been done between the line and the signal.
    assert re.fullmatch(
        r"autotune: interrupted; [1-5] of 6 shapes are done\. Everything measured is in "
        r"sqlite:///autotune\.db: the same command goes on\.",
        first,
    )
    command = "export --storage sqlite:///autotune.db --output tuned"
    assert second == f"To write the files of what is done: autotune {command}"
    assert autotune(*command.split(" "), "--output", "so-far").code == 0
    assert set(autotune.files("so-far")) <= set(uninterrupted.files())
    ended = autotune(*RUN)
    assert ended.code == 0, ended.err
    assert autotune.files() == uninterrupted.files()


def test_after_a_kill_the_next_run_ends_as_if_nothing_had_happened(autotune, uninterrupted):
    code, _ = stopped_after_the_first_shape(autotune, signal.SIGKILL)
    assert code == -signal.SIGKILL
    ended = autotune(*RUN)
    assert ended.code == 0, ended.err
    assert autotune.files() == uninterrupted.files()
