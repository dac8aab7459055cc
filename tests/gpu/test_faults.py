"""A faulty kernel costs its own configuration and nothing else."""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Measurement, Outcome
from autotune.measure.cuda.runner import CudaRunner, Processes
from autotune.search import Budget, ShapeTuner, TrialMirror
from autotune.search.writer import Writer
from autotune.store import Store
from tests.gpu.faulty import Fault
from tests.recordings import SHRINK

pytestmark = pytest.mark.gpu

SHAPE = KernelShape.from_mapping(SHRINK)
CONFIGS = 100

EXPECTED = {
    Fault.ILLEGAL_READ: (Outcome.LAUNCH_FAILED, "illegal memory access"),
    Fault.ENDLESS_LOOP: (Outcome.TIMED_OUT, "within 3 s"),
    Fault.EXIT: (Outcome.WORKER_DIED, "exit code 3"),
    Fault.OUT_OF_MEMORY: (Outcome.LAUNCH_FAILED, "OutOfMemoryError"),
    Fault.NAN: (Outcome.WRONG_RESULT, "NaN"),
    Fault.WRITE_OUTSIDE: (Outcome.WRONG_RESULT, "outside the output"),
    Fault.ENDLESS_COMPILE: (Outcome.COMPILE_TIMEOUT, "within 10 s"),
}


class ListedRunner(CudaRunner):
    """Searches a list of configurations, the faulty ones spread among the good."""

    faults: Sequence[Fault] = ()

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        space = super().kernel_space(shape, axes)
        good = [config for config in space.configs if config.num_stages > 1][: CONFIGS - 7]
        listed = list(good)
        for number, fault in enumerate(self.faults, start=1):
            listed.insert(11 * number, replace(good[number], group_size_m=int(fault)))
        return SearchSpace(shape, listed, default=space.default)


def measured(tmp_path: Path, name: str, faults: Sequence[Fault]) -> dict[KernelConfig, Measurement]:
    url = f"sqlite:///{tmp_path / name}.db"
    store, mirror = Store(url), TrialMirror(url)
    processes = Processes(
        "tests.gpu.faulty:FaultyProvider", config_timeout_s=3.0, compile_timeout_s=10.0
    )
    with ListedRunner(processes) as runner:
        runner.faults = faults
        space = runner.space(SHAPE, {"block_m": (16,), "block_n": (16,), "num_warps": (2, 4)})
        with closing(Writer(store, mirror)) as writer:
            tuner = ShapeTuner(runner, space, writer=writer, sampler="exhaustive", seed=0)
            assert tuner.run(Budget(trials=200)) is not None
        record = store.study(
            f"{runner.environment.gpu}/{runner.environment.provider}/shrink/{SHAPE.label}",
            SHAPE,
            runner.environment,
        )
    return {item.measurement.config: item.measurement for item in store.finished(record)}


def test_a_study_among_faulty_kernels_ends_with_the_results_of_a_clean_one(tmp_path):
    clean = measured(tmp_path, "clean", [])
    faulty = measured(tmp_path, "faulty", list(Fault))
    assert len(faulty) == len(clean) + len(Fault)
    for config, measurement in faulty.items():
        if config.group_size_m in set(Fault):
            outcome, reason = EXPECTED[Fault(config.group_size_m)]
            assert measurement.outcome is outcome, measurement
            assert reason in measurement.reason
        else:
            assert measurement.outcome in (Outcome.OK, Outcome.TOO_SLOW), measurement
    ratios = [
        faulty[config].latency_us / measurement.latency_us for config, measurement in clean.items()
    ]
    assert statistics.median(ratios) == pytest.approx(1, abs=0.03)
    assert max(ratios) < 1.5
    assert not children_on_the_gpu()


def children_on_the_gpu() -> list[int]:
    """Children of this process that use the GPU, as nvidia-smi lists them."""
    query = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    answer = subprocess.run(  # noqa: S603 - a fixed command
        query, capture_output=True, text=True, check=True
    )
    return [pid for pid in map(int, answer.stdout.split()) if parent(pid) == os.getpid()]


def parent(pid: int) -> int | None:
    """The parent of a process; None where it has ended meanwhile."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None
