"""Signals and kills: everything measured is kept, and the same command goes on."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from functools import partial

import pytest

from autotune.measure.replay import shipped_recording
from tests.cli.command import AUTOTUNE, Command, environment
from tests.forks import Forked
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.slow

#: A run on the shipped recording that takes long enough to be interrupted after its first shape.
RUN = (
    *("run", "--replay", shipped_recording()),
    *("--op", "expand", "--tokens", "16,128", "--trials", 20, "--seed", 3),
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Command:
    """The folder of a run that nothing disturbed."""
    command = Command(tmp_path_factory.mktemp("uninterrupted"))
    ended = command(*RUN)
    assert ended.code == 0, ended.err
    return command


def started_and_at_work(autotune: Command, *, before: Callable[[], object] | None = None) -> Forked:
    """A run whose first shape is done."""
    process = autotune.start(*RUN, before=before)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[1/"):
            break
    return process


def stopped_after_the_first_shape(autotune: Command, number: signal.Signals) -> tuple[int, str]:
    """Exit code and what was said."""
    process = started_and_at_work(autotune)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert not (autotune.folder / "tuned").exists(), "it was done before the signal came"
    return process.wait(PATIENCE_S), err


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_scheduler_and_a_lost_connection_end_a_run_as_ctrl_c_does(
    autotune, uninterrupted, number, code
):
    ended, err = stopped_after_the_first_shape(autotune, number)
    assert ended == code, err
    first, second = err.splitlines()
    assert first.startswith("autotune: interrupted; ")
    assert second.startswith("To write the files of what is done: autotune export ")
    status = json.loads(autotune("status", "--json").out)
    assert [run["state"] for run in status["runs"]] == ["interrupted"]
    assert autotune(*RUN).code == 0
    assert autotune.files() == uninterrupted.files()


def test_signals_again_and_again_change_nothing(autotune):
    process = started_and_at_work(autotune)
    for number in [signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGHUP] * 20:
        process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode in {129, 130, 143}, err  # whichever Python saw first
    assert "Traceback" not in err
    assert err.startswith("autotune: interrupted; ")
    status = json.loads(autotune("status", "--json").out)
    assert [run["state"] for run in status["runs"]] == ["interrupted"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("module", "said"),
    [("autotune.measure.runners", ""), ("rich.live", "autotune: interrupted\n")],
)
def test_a_signal_while_a_command_is_being_imported_shows_no_traceback(
    autotune, number, module, said
):
    program = (
        "import os, sys, builtins\n"
        "from autotune.cli import main\n"
        "kept = builtins.__import__\n"
        "def by_name(name, *rest):\n"
        f"    if name == {module!r}: os.kill(os.getpid(), {int(number)})\n"
        "    return kept(name, *rest)\n"
        "builtins.__import__ = by_name\n"
        f"sys.argv = {['autotune', *map(str, RUN)]!r}\n"
        "main()\n"
    )
    ended = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", program],
        cwd=autotune.folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + number, "", said)


def test_a_run_that_is_told_to_ignore_a_lost_connection_goes_on(autotune, uninterrupted):
    like_nohup = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    process = started_and_at_work(autotune, before=like_nohup)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert autotune.files() == uninterrupted.files()


def test_a_run_goes_on_where_nobody_reads_its_output_and_says_so(autotune, uninterrupted):
    process = started_and_at_work(autotune)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        said = process.stderr.read()
    assert process.wait(PATIENCE_S) == 0
    gone = "autotune: the reader of the output has gone: going on without output\n"
    assert said == gone
    assert autotune.files() == uninterrupted.files()


def test_a_run_goes_on_where_nobody_reads_a_word_of_it(autotune, uninterrupted):
    process = started_and_at_work(autotune)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    assert process.wait(PATIENCE_S) == 0
    assert autotune.files() == uninterrupted.files()


def test_a_run_whose_terminal_goes_away_is_kept_and_ends(autotune):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(  # noqa: S603 - our own command
        [*AUTOTUNE, *map(str, RUN), "-v"],
        cwd=autotune.folder,
        env=environment() | {"TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=take_the_terminal,  # noqa: PLW1509 - it takes no lock
    )
    os.close(theirs)
    while b"[1/" not in os.read(ours, 65_536):
        pass
    os.close(ours)  # the kernel sends SIGHUP, and every write fails from then on
    assert process.wait(PATIENCE_S) == 129
    status = json.loads(autotune("status", "--json").out)
    assert [run["state"] for run in status["runs"]] == ["interrupted"]


def take_the_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_database_that_is_deleted_under_a_run_ends_it_with_one_line(autotune):
    process = started_and_at_work(autotune)
    (autotune.folder / "autotune.db").unlink()
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, err
    (line,) = err.splitlines()
    assert "autotune.db was deleted or moved away while it was in use" in line
    assert not (autotune.folder / "autotune.db").exists()


def test_a_late_second_signal_ends_a_run_that_waits_for_its_database(autotune):
    process = started_and_at_work(autotune)
    other = sqlite3.connect(
        autotune.folder / "autotune.db", timeout=PATIENCE_S, isolation_level=None
    )
    other.execute("BEGIN IMMEDIATE")  # the run cannot write while this lasts
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    other.close()
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (130, "autotune: ended at once\n")
    assert autotune(*RUN).code == 0


IN_A_DESTRUCTOR = """
import os, signal
from autotune.cli.signals import Stopped, check_stopped, heeded, stoppable

class Ends:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGHUP)
        signal.getsignal(signal.SIGHUP)

with heeded(), stoppable():
    del_me = Ends()
    del del_me
    try:
        check_stopped()
    except Stopped as stop:
        print(stop.number)
"""


def test_a_signal_within_a_destructor_shows_no_traceback():
    ended = subprocess.run(  # noqa: S603 - the lines above
        [sys.executable, "-c", IN_A_DESTRUCTOR],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ended.stdout, ended.stderr) == ("1\n", "")
