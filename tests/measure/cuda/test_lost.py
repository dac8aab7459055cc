"""A GPU that is lost in the middle, told from a fault of what was launched: with real processes."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from autotune.errors import DeviceLost
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Outcome, never_stop
from autotune.measure.cuda.runner import CudaRunner, Processes
from autotune.measure.cuda.visible import VisibleDevice
from autotune.plan.study import StudyPlan
from autotune.search.session import Session
from autotune.search.tune import tune
from autotune.store import Store
from tests.measure.cuda.handlers import FOLDER, make_fragile
from tests.recordings import SHRINK
from tests.together import problems_in

pytestmark = pytest.mark.slow

SHAPE = KernelShape.from_mapping(SHRINK)


class Machine:
    """GPUs that fail as they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def runners(self, *plans: str) -> list[CudaRunner]:
        for number, plan in enumerate(plans):
            (self.folder / str(number)).mkdir()
            (self.folder / str(number) / "plan").write_text(plan)
        devices = [VisibleDevice(n, "G", f"GPU-{n}", str(n)) for n in range(len(plans))]
        return Processes(
            "builtin", devices, compile_workers=2, device_server=make_fragile
        ).runners()

    def started(self, number: int) -> int:
        return len((self.folder / str(number) / "started").read_text())


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Kernels that are compiled once for all tests here."""
    folder: Path = tmp_path_factory.mktemp("cache")
    return folder


@pytest.fixture
def machine(tmp_path, monkeypatch, cache) -> Machine:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return Machine(tmp_path)


def config(**changes: int) -> KernelConfig:
    table = {"block_m": 16, "block_n": 16, "block_k": 64, "split_k": 8, "num_warps": 4}
    return KernelConfig.from_mapping(SHAPE.op, table | {"num_stages": 2} | changes)


def test_a_gpu_whose_processes_cannot_be_started_again_is_lost(machine):
    with machine.runners("gone")[0] as runner, pytest.raises(DeviceLost) as caught:
        runner.measure(SHAPE, [config()], never_stop)
    assert str(caught.value).startswith("GPU 0 (0) is lost: ")
    assert "No CUDA GPUs are available" in str(caught.value)


def test_a_gpu_that_is_gone_while_finalists_are_timed_is_lost(machine):
    with machine.runners("turns")[0] as runner:
        assert runner.measure(SHAPE, [config()], never_stop).outcome is Outcome.OK
        with pytest.raises(DeviceLost, match=r"^GPU 0 \(0\) is lost: "):
            runner.compare(SHAPE, [config(), config(num_stages=3)], lambda _: True)


@pytest.mark.parametrize("plan", ["ecc", "inputs", "inputs ecc"])
def test_what_meets_a_failure_of_the_gpu_is_measured_again_if_the_gpu_goes_on(machine, plan):
    with machine.runners(plan)[0] as runner:
        assert runner.measure(SHAPE, [config()], never_stop).outcome is Outcome.OK
    assert (machine.folder / "0" / "plan").read_text() == ""


def test_a_gpu_that_fails_again_at_once_is_lost(machine):
    with machine.runners("ecc ecc")[0] as runner, pytest.raises(DeviceLost, match="ECC error"):
        runner.measure(SHAPE, [config()], never_stop)


def test_each_gpu_has_processes_that_see_nothing_else_and_one_pool_compiles_for_all(machine):
    runners = machine.runners("", "")
    with ExitStack() as opened:
        for runner in runners:
            opened.enter_context(runner)
        assert [runner.device for runner in runners] == ["GPU 0 (0)", "GPU 1 (1)"]
        assert runners[0].compilers is runners[1].compilers
        assert {runner.lookahead for runner in runners} == {1 + 4}
        for number, runner in enumerate(runners):
            assert runner.measure(SHAPE, [config()], never_stop).outcome is Outcome.OK
            assert machine.started(number) >= 1
        runners[0].close()
        assert runners[1].measure(SHAPE, [config(num_stages=3)], never_stop).outcome is Outcome.OK


def test_a_run_on_two_gpus_of_which_one_is_lost_ends_whole(machine, tmp_path):
    url, said = f"sqlite:///{tmp_path}/autotune.db", list[str]()
    shapes = [KernelShape.from_mapping(SHRINK | {"num_tokens": count}) for count in (8, 16, 32, 64)]
    axes = {"block_m": (16, 32), "block_n": (16,), "block_k": (64,), "num_warps": (4,)}
    plan = StudyPlan.of_shapes(shapes).override(storage=url, sampler="random", trials=6)
    plan.axes[SHAPE.op] = axes  # type: ignore[index]
    with ExitStack() as opened:
        runners = machine.runners("", "ecc gone")
        for runner in runners:
            opened.enter_context(runner)
        with Session(plan, runners, say=said.append) as session:
            tuned = tune(session)
    assert [one.trials for one in tuned] == [6] * len(shapes)
    assert all(one.selection for one in tuned)
    (line,) = said
    assert line.startswith("GPU 1 (1) is lost: ")
    assert line.endswith("What was under way there is tried again: the other GPU goes on.")
    with closing(Store(url)) as store:
        kept = [one.measurement for study in store.studies() for one in store.finished(study)]
    assert Counter(one.outcome for one in kept) == {Outcome.OK: 6 * len(shapes)}
    assert problems_in(url) == []
