"""The compile pool with the real compiler, for GPUs that this machine does not have."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from autotune.errors import WorkerDied
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import Grid, SearchSpace, complete_axes
from autotune.measure import Outcome
from autotune.measure.cuda.compiler import (
    CompileFailure,
    CompileJob,
    CompilePool,
    CompileQueue,
)
from autotune.measure.kernels import CompiledKernel, provider
from tests.measure.kernels.cases import A100, H100
from tests.patience import PATIENCE_S
from tests.profiles import some
from tests.recordings import EXPAND, SHRINK

pytestmark = pytest.mark.slow

AXES = {
    "shrink": {"block_m": (16, 32), "block_n": (16,), "block_k": (64,), "split_k": (1, 8)}
    | {"num_warps": (4,), "num_stages": (2, 3)},
    "expand": {"block_m": (16,), "block_n": (16, 64), "block_k": (16,)}
    | {"num_warps": (2, 4), "num_stages": (2,)},
}


def space(shape: KernelShape) -> SearchSpace:
    grid = Grid(shape=shape, axes=complete_axes(shape.op, AXES[shape.op.value]))
    return SearchSpace.of_grid(grid, default=provider("builtin").default(shape))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    cache: Path = tmp_path / "cache"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    return cache


@pytest.mark.parametrize("target", some([H100], [A100]))
def test_every_configuration_of_a_small_space_compiles_with_no_gpu(target, own_cache):
    shapes = [KernelShape.from_mapping(table) for table in (SHRINK, EXPAND)]
    jobs = [CompileJob(shape, c, target) for shape in shapes for c in space(shape).configs]
    pool = CompilePool("builtin", workers=2)
    with closing(pool.queue()) as queue:
        left = dict.fromkeys(jobs)
        while left:
            job, compiled = queue.first_done(list(left))
            del left[job]
            assert isinstance(compiled, CompiledKernel), compiled
            assert compiled.shared_memory_bytes > 0
            assert compiled.registers
            assert compiled.spills is not None
        assert 0 < pool.busy_s <= pool.wanted_s
        assert pool.busy_s <= queue.compiled_s
    assert list(own_cache.rglob("*.cubin"))


def test_a_compile_that_never_ends_is_killed_with_its_children_and_the_next_one_runs(own_cache):
    shape = KernelShape.from_mapping(EXPAND | {"num_tokens": 1024, "rank": 64})
    table = {"block_m": 128, "block_n": 256, "block_k": 32, "num_stages": 2}
    # 1,024 accumulators a thread: ptxas is not done soon.
    endless = KernelConfig.from_mapping(shape.op, table | {"num_warps": 1})
    easy = KernelConfig.from_mapping(shape.op, table | {"num_warps": 4, "block_m": 16})
    pool = CompilePool("builtin", workers=1, timeout_s=PATIENCE_S)
    with closing(pool.queue()) as queue:
        job = CompileJob(shape, endless, A100)
        queue.expect([job])
        late = time.monotonic() + PATIENCE_S
        while not running("ptxas", own_cache):
            assert time.monotonic() < late
            time.sleep(0.05)
        (slot,) = pool._slots
        slot.deadline = 0.0  # as if it had taken so long
        pool.ring()
        _, compiled = queue.first_done([job])
        assert isinstance(compiled, CompileFailure)
        assert compiled.outcome is Outcome.COMPILE_TIMEOUT
        assert "within 900 s" in compiled.reason
        assert not running("ptxas", own_cache)
        _, compiled = queue.first_done([CompileJob(shape, easy, A100)])
        assert isinstance(compiled, CompiledKernel), compiled


def counted(queues: Sequence[CompileQueue]) -> int:
    return sum(len(queue.results) for queue in queues)


def running(program: str, cache: Path) -> bool:
    """Whether any process of that name uses this cache, even one whose parent is gone."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "comm").read_text().strip()
            if name == program and str(cache).encode() in (folder / "environ").read_bytes():
                return True
        except OSError:  # it ended meanwhile
            continue
    return False


def test_a_kernel_that_cannot_be_compiled_says_why():
    shape = KernelShape.from_mapping(SHRINK)
    table = {"block_m": 16, "block_n": 16, "block_k": 64, "split_k": 8, "num_warps": 4}
    broken = KernelConfig.from_mapping(shape.op, table | {"block_m": 24, "num_stages": 2})
    with closing(CompilePool("builtin", workers=1).queue()) as queue:
        _, compiled = queue.first_done([CompileJob(shape, broken, H100)])
    assert isinstance(compiled, CompileFailure)
    assert compiled.outcome is Outcome.COMPILE_FAILED
    assert "power of 2" in compiled.reason or "CompilationError" in compiled.reason


def test_jobs_are_compiled_in_the_order_in_which_they_are_wanted():
    shape = KernelShape.from_mapping(SHRINK)
    one, two, three = (CompileJob(shape, config, H100) for config in space(shape).configs[:3])
    pool = CompilePool("builtin", workers=1)
    with closing(pool.queue()) as queue:
        with pool.changed:  # so that none is handed out meanwhile
            queue.expect([one, two])
            queue.want([three, two])
            assert pool.changed.wait_for(lambda: len(queue.results) == 3, PATIENCE_S)
        assert list(queue.results) == [three, two, one]


def test_queues_get_the_same_share_of_the_processes_and_the_last_one_ends_them():
    shapes = [KernelShape.from_mapping(SHRINK | {"num_tokens": count}) for count in (16, 32)]
    jobs = [[CompileJob(s, config, H100) for config in space(s).configs[:3]] for s in shapes]
    pool = CompilePool("builtin", workers=1)
    queues = [pool.queue(), pool.queue()]
    with pool.changed:
        for queue, those in zip(queues, jobs, strict=True):
            queue.want(those)
        assert pool.compiling(queues[0]) + pool.compiling(queues[1]) == 0
    with pool.changed:
        for done in range(1, 5):
            while counted(queues) < done:
                assert pool.changed.wait(PATIENCE_S)
            assert abs(len(queues[0].results) - len(queues[1].results)) <= 1
    queues[0].close()
    queues[1].first_done(jobs[1][2:])
    assert all(slot.worker.is_ready for slot in pool._slots)
    queues[1].close()
    with pytest.raises(WorkerDied, match="the compilers have been ended"):
        queues[1].first_done(jobs[0])


def test_results_of_a_finished_shape_are_dropped_and_its_jobs_can_be_submitted_again():
    shape = KernelShape.from_mapping(SHRINK)
    job = CompileJob(shape, space(shape).configs[0], H100)
    with closing(CompilePool("builtin", workers=1).queue()) as queue:
        first = queue.first_done([job])
        queue.forget(shape)
        assert queue.first_done([job]) == first
