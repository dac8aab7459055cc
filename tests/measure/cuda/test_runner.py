"""The CUDA runner with real compilers and a fake device."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from autotune.errors import WorkerDied
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Outcome, never_stop
from autotune.measure.cuda import referee
from autotune.measure.cuda.referee import MOST_TURNS, TURNS_AT_ONCE
from autotune.measure.cuda.runner import CudaRunner, Processes
from tests.measure.cuda.handlers import (
    CRASHES,
    HANGS,
    LIES,
    LOSES_CONTEXT,
    FakeDevice,
    HotDevice,
    never_made,
)
from tests.patience import PATIENCE_S
from tests.recordings import EXPAND, SHRINK

pytestmark = pytest.mark.slow

SHAPE = KernelShape.from_mapping(SHRINK)


def config(**changes: int) -> KernelConfig:
    table = {"block_m": 16, "block_n": 16, "block_k": 64, "split_k": 8, "num_warps": 4}
    return KernelConfig.from_mapping(SHAPE.op, table | {"num_stages": 2} | changes)


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> Iterator[CudaRunner]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        with CudaRunner(Processes("builtin", compile_workers=1, device_server=FakeDevice)) as made:
            yield made


@pytest.mark.parametrize(
    ("num_warps", "outcome", "reason"),
    [
        (CRASHES, Outcome.WORKER_DIED, "exit code 139"),
        (HANGS, Outcome.TIMED_OUT, "within 1 s"),
        (LIES, Outcome.WRONG_RESULT, "relative error 1 exceeds"),
        (LOSES_CONTEXT, Outcome.LAUNCH_FAILED, "illegal memory access"),
    ],
)
def test_a_fault_costs_one_configuration_and_the_next_one_runs(
    runner, monkeypatch, num_warps, outcome, reason
):
    with monkeypatch.context() as patch:
        if num_warps == HANGS:
            patch.setattr(runner._searcher, "_timeout_s", 1.0)
        faulty = runner.measure(SHAPE, [config(num_warps=num_warps)], never_stop)
    assert faulty.outcome is outcome
    assert reason in faulty.reason
    assert faulty.samples_us == ()
    assert runner.measure(SHAPE, [config(num_stages=3)], never_stop).outcome is Outcome.OK


def test_a_kernel_that_needs_more_shared_memory_than_there_is_is_never_launched(runner):
    # The fake device crashes on one warp, so this shows that it was not asked.
    big = config(block_m=64, block_k=512, num_stages=5, num_warps=CRASHES)
    measurement = runner.measure(SHAPE, [big], never_stop)
    assert measurement.outcome in (Outcome.INVALID, Outcome.COMPILE_FAILED)
    assert "shared_memory" in measurement.reason
    assert measurement.shared_memory_bytes is not None
    assert measurement.shared_memory_bytes > 232448


def test_a_measurement_has_the_shared_memory_that_the_compiler_reports(runner):
    measurement = runner.measure(SHAPE, [config()], never_stop)
    assert measurement.shared_memory_bytes is not None
    assert measurement.shared_memory_bytes > 0


def test_the_space_has_the_default_and_keeps_to_the_device_s_limits(runner):
    space = runner.space(SHAPE, {})
    assert space.default in space.configs
    rejection = space.rejection(config(block_k=256, num_stages=5, block_n=256))
    assert rejection is not None


def test_finalists_that_kill_the_process_are_left_out_of_a_comparison(runner, monkeypatch):
    # For the one that hangs; the others answer within a millisecond.
    monkeypatch.setattr(runner._referee, "_timeout_s", 5.0)
    good = [config(block_k=64), config(block_k=128)]
    bad = [config(num_warps=warps) for warps in (CRASHES, HANGS, LIES, LOSES_CONTEXT)]
    compared = runner.compare(SHAPE, [bad[0], good[0], *bad[1:], good[1]], lambda samples: True)
    assert set(compared.samples_us) == set(good)
    assert len(compared.states) == 1


def test_what_is_expected_is_compiled_with_nobody_waiting(runner):
    expected = [config(block_k=32, num_stages=stages) for stages in (2, 3)]
    jobs = {runner._job(SHAPE, each) for each in expected}
    assert not jobs & runner._queue.results.keys()
    runner.expect({SHAPE: expected})
    late_s = time.monotonic() + PATIENCE_S
    while not jobs <= runner._queue.results.keys():
        assert time.monotonic() < late_s
        time.sleep(0.01)
    compared = runner.compare(SHAPE, expected, lambda samples: True)
    assert set(compared.samples_us) == set(expected)


def test_a_comparison_goes_on_until_it_is_enough_or_has_all_its_turns(runner, monkeypatch):
    monkeypatch.setattr(referee, "COMPARE_S", PATIENCE_S)
    configs = [config(block_k=64), config(block_k=128)]
    asked = []

    def enough(samples):
        asked.append(len(samples[configs[0]]))
        return len(asked) == 3

    runner.compare(SHAPE, configs, enough)
    assert asked == [TURNS_AT_ONCE, 2 * TURNS_AT_ONCE, 3 * TURNS_AT_ONCE]
    samples = runner.compare(SHAPE, configs, lambda samples: False).samples_us
    assert len(samples[configs[0]]) == MOST_TURNS


def test_a_comparison_that_takes_long_ends_before_its_last_turn(runner, monkeypatch):
    monkeypatch.setattr(referee, "COMPARE_S", -1.0)
    samples = runner.compare(SHAPE, [config()], lambda samples: False).samples_us
    assert len(samples[config()]) == TURNS_AT_ONCE


@pytest.mark.parametrize(("retries", "is_throttled"), [(0, True), (2, False)])
def test_a_comparison_under_throttling_is_repeated_or_else_marked(
    tmp_path, monkeypatch, retries, is_throttled
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(referee, "THROTTLED_RETRIES", retries)
    monkeypatch.setattr(referee, "COOL_DOWN_S", 0.0)
    with CudaRunner(Processes("builtin", compile_workers=1, device_server=HotDevice)) as hot:
        comparison = hot.compare(SHAPE, [config()], lambda samples: True)
    assert comparison.is_throttled is is_throttled
    assert len(comparison.samples_us[config()]) == TURNS_AT_ONCE


def test_configurations_that_compile_to_one_binary_are_launched_once(runner):
    # On Hopper the expand kernel always has one stage, whatever the configuration says.
    shape = KernelShape.from_mapping(EXPAND)
    table = {"block_m": 16, "block_n": 16, "block_k": 16, "num_warps": 4}
    twins = [
        KernelConfig.from_mapping(shape.op, table | {"num_stages": stages}) for stages in (2, 3)
    ]
    before = runner.figures.reused
    first, second = (runner.measure(shape, [twin], never_stop) for twin in twins)
    assert runner.figures.reused == before + 1
    assert [first.config, second.config] == twins
    assert second.samples_us == first.samples_us


def test_a_device_that_cannot_be_opened_is_an_error_that_says_why():
    with pytest.raises(WorkerDied, match="no such device"):
        CudaRunner(Processes("builtin", compile_workers=1, device_server=refuses_to_start))


def refuses_to_start(_provider: str):
    return never_made()
