"""Programs that are started, read line by line, and ended."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from autotune.errors import InputError, WorkerDied
from autotune.serve.child import Child, environment, started, stop_all, tail
from tests.patience import PATIENCE_S


@pytest.fixture
def run(tmp_path):
    """A child that runs a script."""

    def begin(script: str):
        log = tmp_path / "log"
        return started([sys.executable, "-c", script], name="it", log=log, env=environment())

    return begin


def test_lines_are_read_whatever_else_is_printed_between(run):
    script = 'print("no json"); print(\'{"a": 1}\'); print("[2]"); print(\'{"b": 2}\', end="")'
    with run(script) as child:
        child.give({})
        assert list(child.lines()) == [{"a": 1}, {"b": 2}]


def test_a_job_that_nobody_reads_is_no_fault_of_its_own(run):
    with run("import os; os.close(0)") as child:
        child.give({"large": "x" * 10**6})
        assert list(child.lines()) == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("raise SystemExit(3)", "its exit code is 3"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL ended it, as the kernel does"),
        ("import os; os.kill(os.getpid(), 6)", "SIGABRT ended it"),
        ('print(\'{"error": "no such model"}\')', "no such model"),
    ],
)
def test_how_a_program_ended_is_said(run, script, said):
    with run(script) as child, pytest.raises(WorkerDied, match=said) as caught:
        list(child.lines())
    assert str(child.log) in str(caught.value)


def test_a_program_that_cannot_be_started_is_named(tmp_path):
    begin = started([str(tmp_path / "none")], name="it", log=tmp_path / "log", env={})
    with pytest.raises(InputError, match="name the Python that vLLM is installed for"), begin:
        pass


def test_what_a_program_started_ends_with_it(run, tmp_path):
    pid = tmp_path / "pid"
    script = (
        "import subprocess, sys, pathlib\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(10**6)'])\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(other.pid))\n"
        "print('{}', flush=True)\n"
    )
    with run(script) as child:
        assert list(child.lines()) == [{}]  # the pipe is the other program's, too
    deadline = time.monotonic() + PATIENCE_S
    stat = Path(f"/proc/{pid.read_text()}/stat")
    while stat.exists() and stat.read_text().rpartition(") ")[2][0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", ""),
        ("one\n\ntwo\n", "one / two"),
        ("a\nb\nc\nd\n", "b / c / d"),
        (
            "torch.OutOfMemoryError: CUDA out of memory.\nTraceback\nRuntimeError: Engine failed\n",
            "torch.OutOfMemoryError: CUDA out of memory. / RuntimeError: Engine failed",
        ),
        (
            "usage: it.py\nit.py: error: unrecognized arguments: --no\nexit\nSystemExit: 2\n",
            "it.py: error: unrecognized arguments: --no",
        ),
        ("ValueError: \x1b[31mred\n", "ValueError: \\x1b[31mred"),
    ],
)
def test_the_end_of_a_log_is_said_in_one_line(tmp_path, log, expected):
    file = tmp_path / "log"
    file.write_text(log)
    assert tail(file) == expected


def test_what_would_change_a_measurement_is_not_passed_on(monkeypatch):
    monkeypatch.setenv("VLLM_TUNED_CONFIG_FOLDER", "elsewhere")
    monkeypatch.setenv("AUTOTUNE_TRACE", "trace.jsonl")
    given = environment(MORE="1")
    assert "VLLM_TUNED_CONFIG_FOLDER" not in given
    assert "AUTOTUNE_TRACE" not in given
    assert given["MORE"] == "1"


@pytest.mark.slow
def test_programs_that_do_not_end_by_themselves_are_ended_together(tmp_path):
    script = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('{}', flush=True)\n"
        "time.sleep(10**6)\n"
    )
    children = [
        Child([sys.executable, "-c", script], name="it", log=tmp_path / "log", env=environment())
        for _ in range(6)
    ]
    for child in children:
        assert next(child.lines()) == {}
    began = time.monotonic()
    stop_all(children)
    for child in children:
        child.end()
    together_s = time.monotonic() - began
    assert all(child.has_ended for child in children)
    alone = Child(
        [sys.executable, "-c", script], name="it", log=tmp_path / "log", env=environment()
    )
    assert next(alone.lines()) == {}
    began = time.monotonic()
    alone.end()
    assert together_s < 3 * (time.monotonic() - began)
