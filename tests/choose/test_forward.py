"""The time of a forward pass: every launch counts, at batch sizes that all kernels have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.choose.forward import ForwardPass, forward_passes
from autotune.choose.selection import Selection
from autotune.launch.environment import Environment
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from tests.moe import moe_config, moe_shape
from tests.recordings import ENVIRONMENT, EXPAND, SHRINK

HERE = Environment.from_mapping(ENVIRONMENT)
ON_VLLM = replace(HERE, provider="vllm", provider_version="0.33.0")
DOWN, UP = (KernelShape.from_mapping(table) for table in (SHRINK, EXPAND))


def chosen(
    shape: KernelShape, tuned_us: float, default_us: float | None, num_tokens: int
) -> Selection:
    """A selection with these latencies, microseconds."""
    config, default = moe_config(num_warps=8), moe_config()
    samples = {config: (tuned_us,) * 5}
    if default_us is not None:
        samples[default] = (default_us,) * 5
    return Selection.of_samples(replace(shape, num_tokens=num_tokens), default, samples)


def kinds(**runs: int) -> dict[KernelShape, int]:
    return {DOWN.without_batch: runs["down"], UP.without_batch: runs["up"]}


def test_every_launch_of_a_pass_counts():
    rows = [chosen(DOWN, 4.0, 6.0, 16), chosen(UP, 1.0, 2.0, 16)]
    (one,) = forward_passes(rows, kinds(down=10, up=100), HERE)
    assert one == ForwardPass(num_tokens=16, default_us=260.0, tuned_us=140.0)


def test_a_batch_size_that_a_kernel_lacks_is_left_out():
    rows = [chosen(DOWN, 4.0, 6.0, 16), chosen(UP, 1.0, 2.0, 16), chosen(UP, 1.0, 2.0, 64)]
    assert [one.num_tokens for one in forward_passes(rows, kinds(down=1, up=1), HERE)] == [16]


def test_a_kernel_over_sampled_tokens_keeps_the_time_of_its_largest_batch():
    rows = [chosen(DOWN, 4.0, 6.0, 16), chosen(UP, 1.0, 2.0, 16), chosen(UP, 3.0, 5.0, 64)]
    passes = forward_passes(rows, kinds(down=1, up=1), HERE, sampled={DOWN.without_batch})
    assert [(one.num_tokens, one.tuned_us) for one in passes] == [(16, 5.0), (64, 7.0)]


def test_a_default_that_does_not_run_has_no_time():
    rows = [chosen(DOWN, 4.0, None, 16), chosen(UP, 1.0, 2.0, 16)]
    (one,) = forward_passes(rows, kinds(down=1, up=1), HERE)
    assert one == ForwardPass(num_tokens=16, default_us=None, tuned_us=5.0)


def test_nothing_is_said_where_no_model_says_how_often_kernels_run():
    rows = [chosen(DOWN, 4.0, 6.0, 16), chosen(UP, 1.0, 2.0, 16)]
    assert forward_passes(rows, kinds(down=0, up=0), HERE) == []


@pytest.mark.parametrize(("environment", "launches"), [(ON_VLLM, 1), (HERE, 2)])
def test_one_kernel_for_shrink_and_expand_is_counted_once(environment, launches):
    shapes = [moe_shape(op, rank=16) for op in (LoraOp.W13_SHRINK, LoraOp.W13_EXPAND)]
    rows = [chosen(shape, 5.0, 8.0, 16) for shape in shapes]
    runs = {shape.without_batch: 3 for shape in shapes}
    (one,) = forward_passes(rows, runs, environment)
    assert (one.default_us, one.tuned_us) == (3 * launches * 8.0, 3 * launches * 5.0)
