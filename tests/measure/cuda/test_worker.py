from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.errors import InputError, KernelsUnusable, WorkerDied
from autotune.measure.cuda.worker import Worker
from tests.measure.cuda.handlers import never_made, obedient, unusable
from tests.patience import PATIENCE_S


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(obedient, ())
    yield worker
    worker.kill()


def test_a_worker_answers_requests_in_order(worker):
    for value in (1, "two", None):
        worker.send(("echo", value))
        assert worker.receive(PATIENCE_S) == value


def test_an_exception_in_the_handler_is_reported_in_one_line_and_the_worker_goes_on(worker):
    worker.send(("raise", "bad\ntrace"))
    with pytest.raises(WorkerDied, match=r"^ValueError: bad$"):
        worker.receive(PATIENCE_S)
    worker.send(("echo", 1))
    assert worker.receive(PATIENCE_S) == 1


def test_a_process_that_ends_is_reported_with_its_exit_code(worker):
    worker.send(("exit", 7))
    with pytest.raises(WorkerDied, match="exit code 7") as caught:
        worker.receive(PATIENCE_S)
    assert not caught.value.timed_out


def test_a_process_that_hangs_is_reported_as_timed_out(worker):
    worker.wait_until_ready()
    worker.send(("sleep", 600))
    with pytest.raises(WorkerDied, match="in time") as caught:
        worker.receive(0.2)
    assert caught.value.timed_out


def test_killing_a_worker_ends_what_it_started(worker, tmp_path):
    pid_file = tmp_path / "pid"
    worker.send(("spawn", str(pid_file)))
    deadline = time.monotonic() + PATIENCE_S
    while not (pid_file.exists() and pid_file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    worker.kill()
    assert ends(int(pid_file.read_text()))


def test_a_handler_that_cannot_be_made_says_why():
    worker = Worker(never_made, ())
    with pytest.raises(WorkerDied, match=r"^RuntimeError: no such device$"):
        worker.wait_until_ready()
    worker.kill()


def test_an_error_of_our_own_in_making_the_handler_reaches_the_owner_as_it_is():
    worker = Worker(unusable, ())
    with pytest.raises(KernelsUnusable, match=r"^no kernels today$"):
        worker.wait_until_ready()
    worker.kill()


def test_an_error_of_our_own_that_a_request_raises_reaches_the_owner_too(worker):
    worker.send(("refuse", "too wide"))
    with pytest.raises(InputError, match=r"^too wide$"):
        worker.receive(PATIENCE_S)
    worker.send(("echo", 1))
    assert worker.receive(PATIENCE_S) == 1


def ends(pid: int) -> bool:
    """Whether the process ends within ``PATIENCE_S``; a zombie counts as ended."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.01)
    return False
