"""A configuration that does not split k gives the same bits every time, on a real GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure.kernels import KernelProvider
from autotune.measure.kernels.inputs import make_inputs
from autotune.measure.kernels.reference import expect
from tests.gpu.test_kernels import EXPANDS, SHRINKS, expand_case, shrink_case
from tests.gpu.test_moe_kernels import LAYERS, OPS, config_of, shape_of

pytestmark = pytest.mark.gpu

REPEATS = 100


def outputs_differ(kernels: KernelProvider, shape: KernelShape, config: KernelConfig) -> bool:
    """Whether any of 100 launches over the same inputs gives other bits than the first."""
    inputs = make_inputs(shape, device="cuda", weight_sets=1, seed=3, pair=kernels.runs_pair(shape))
    start = expect(inputs).start
    first: torch.Tensor | None = None
    for _ in range(REPEATS):
        inputs.out.copy_(start)
        kernels.launch(inputs, config, 0)
        kernels.collect(inputs, config)
        if first is None:
            first = inputs.out.clone()
        elif not torch.equal(inputs.out, first):
            return True
    return False


@pytest.mark.parametrize("name", SHRINKS)
def test_a_shrink_that_does_not_split(kernels, name):
    shape, config = shrink_case(name, "bfloat16")
    assert not outputs_differ(kernels, shape, replace(config, split_k=1))


@pytest.mark.parametrize("name", EXPANDS)
def test_an_expand(kernels, name):
    assert not outputs_differ(kernels, *expand_case(name, "bfloat16"))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.value)
@pytest.mark.parametrize("name", LAYERS)
def test_a_moe_op_that_does_not_split(kernels, op, name):
    shape = shape_of(op, name)
    config = config_of(shape, LAYERS[name][1])
    assert not outputs_differ(kernels, shape, replace(config, split_k=1))
