"""Marks that need what the machine may lack, and Triton's interpreter where there is no GPU."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import NoReturn

import pytest

from autotune.plan.models.asking import has_vllm
from tests import memory, profiles
from tests.browser import Browser, chromium, chromium_program
from tests.patience import be_patient
from tests.postgres import postgres_programs

# Below nohup, or in the background of a script, they are ignored, and processes that tests start
# would ignore them, too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before any temporary folder is made. A database on a disk waits for it at every commit.
memory.use_for_temporary_files()

profiles.register()

# By default the garbage collector looks after each 700 new objects. All tests and modules stay.
gc.set_threshold(50_000, 20, 50)

# Before NumPy or PyTorch is imported. Tests run beside each other, and threads of theirs would wait
# for one another busily.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@cache
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


# Compilers are forked from a process that is started once. It imports what a run has it import
# (``worker.prepare``), whichever test starts it: otherwise each compiler would import PyTorch.
multiprocessing.set_forkserver_preload(["autotune.measure.cuda.preloaded"])


#: Per mark: is what it needs here, and what to say where it is not.
_NEEDS: dict[str, tuple[Callable[[], object], str]] = {
    "browser": (chromium_program, "no Chromium"),
    "gpu": (_has_gpu, "no CUDA device"),
    "installed_vllm": (has_vllm, "no vLLM beside autotune"),
    "postgres": (cache(postgres_programs), "no PostgreSQL server programs"),
    "ray": (lambda: find_spec("ray"), "no Ray"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        action="append",
        default=[],
        metavar="MARK",
        help="fail, and do not skip, the tests of this mark where what they need is absent",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Before any test imports a kernel: Triton decides how a function runs when it is defined."""
    hands_out = config.getoption("numprocesses", 0) and not hasattr(config, "workerinput")
    # The process that only hands tests out to others need not wait for PyTorch.
    if not hands_out and not _has_gpu():
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_xdist_auto_num_workers() -> int:
    """For ``-n auto``: one more than there are processors, as many tests wait for something."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put first what shares a costly process: a vLLM, or a Ray cluster.

    Without this, processes of pytest-xdist would steal these tests from each other at the end, and
    each would start every vLLM, and a cluster.
    """
    costly = ("vllm", "ray")
    items.sort(key=lambda item: [item.get_closest_marker(each) is None for each in costly])


def pytest_collection_finish() -> None:
    """Have the garbage collector leave out what stays: thousands of tests, and all modules."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark, (is_here, what) in _NEEDS.items():
        if item.get_closest_marker(mark) and not is_here():
            absent(item.config, mark, what)


def absent(config: pytest.Config, mark: str, what: str) -> NoReturn:
    """End a test whose need is not there: as failed, where the mark is required, else as skipped.

    Args:
        config: Of the test.
        mark: The mark that says what the test needs.
        what: What is not there.
    """
    if mark in config.getoption("--require"):
        pytest.fail(f"{what}, and --require {mark} was given")
    pytest.skip(what)


@pytest.fixture(scope="session", autouse=True)
def _patient() -> Iterator[None]:
    """A busy machine fails no test."""
    with pytest.MonkeyPatch.context() as patch:
        be_patient(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def _sparing() -> Iterator[None]:
    """What every command does anew is done once."""
    from tests.once import do_once

    with pytest.MonkeyPatch.context() as patch:
        do_once(patch)
        yield


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium, for tests of the mark ``browser``."""
    with chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running
