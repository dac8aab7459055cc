from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.errors import InputError, KernelsUnusable, WorkerDied
from autotune.measure.cuda.worker import Worker
from tests.measure.cuda.handlers import never_made, obedient, unusable
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[3]


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("is_ready", [False, True])
def test_signals_to_all_processes_of_a_run_do_not_fail_what_is_under_way(worker, number, is_ready):
    if is_ready:
        worker.wait_until_ready()
    worker.send(("echo", 1))
    os.kill(worker._process.pid, number)
    assert worker.receive(PATIENCE_S) == 1


def test_a_process_that_is_left_does_not_hold_up_the_end_of_its_owner():
    program = (
        "from autotune.measure.cuda.worker import Worker\n"
        "if __name__ == '__main__':\n"
        "    left = Worker(print, ('made',))\n"
        "    print(left._process.pid)\n"
    )
    ended = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert ends(int(ended.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("is_forked", [False, True])
def test_a_process_ends_with_an_owner_that_is_killed(is_forked):
    program = (
        "import time\n"
        "from autotune.measure.cuda.worker import Worker\n"
        "from tests.measure.cuda.handlers import obedient\n"
        "if __name__ == '__main__':\n"
        f"    worker = Worker(obedient, (), is_forked={is_forked})\n"
        "    worker.wait_until_ready()\n"
        "    print(worker._process.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        os.kill(pid, 0)  # it runs
        owner.kill()
    assert ends(pid)


@pytest.mark.slow
def test_a_forked_process_has_the_environment_variables_of_its_owner_at_its_start(monkeypatch):
    for value in ("early", "late"):  # the process that both are forked from is as old as the first
        monkeypatch.setenv("AUTOTUNE_TEST", value)
        worker = Worker(obedient, (), is_forked=True)
        worker.send(("environment", "AUTOTUNE_TEST"))
        try:
            assert worker.receive(PATIENCE_S) == value
        finally:
            worker.kill()


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


def test_a_process_outlives_the_thread_that_has_started_it():
    """Linux would end it with the thread."""
    started: list[Worker] = []
    thread = threading.Thread(target=lambda: started.append(Worker(obedient, ())))
    thread.start()
    thread.join()
    (worker,) = started
    try:
        for _ in range(3):  # the signal would come with the end of the thread, or a little later
            worker.send(("echo", "here"))
            assert worker.receive(PATIENCE_S) == "here"
            time.sleep(0.1)
    finally:
        worker.kill()


def test_a_process_has_the_variables_that_it_is_given_beside_those_of_its_owner(monkeypatch):
    monkeypatch.setenv("AUTOTUNE_TEST_A", "ours")
    monkeypatch.setenv("AUTOTUNE_TEST_B", "ours")
    worker = Worker(obedient, (), variables={"AUTOTUNE_TEST_B": "its own"})
    try:
        for name, value in (("AUTOTUNE_TEST_A", "ours"), ("AUTOTUNE_TEST_B", "its own")):
            worker.send(("environment", name))
            assert worker.receive(PATIENCE_S) == value
    finally:
        worker.kill()
