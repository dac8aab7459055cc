"""In which order thread blocks run changes bits only where they split k."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from triton.runtime.interpreter import interpreter_builder

from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import is_shrink
from autotune.measure.kernels.builtin import BuiltinProvider
from autotune.measure.kernels.inputs import make_inputs
from autotune.measure.kernels.reference import expect
from tests.measure.kernels.cases import (
    expand_shape,
    interpreted,
    make_config,
    moe_shape,
    shrink_shape,
)

pytestmark = [
    interpreted,
    pytest.mark.slow,
    # Triton 3.6's interpreter turns arrays of one element into numbers: an error from NumPy 2.4 on.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]


def last_first(builder: Any) -> Any:
    """A ``set_grid_idx`` that has the interpreter run the last thread block first."""
    usual = builder.set_grid_idx

    def set_grid_idx(*place: int) -> None:
        usual(*(size - 1 - at for size, at in zip(builder.grid_dim, place, strict=True)))

    return set_grid_idx


def both_ways(monkeypatch, shape: KernelShape, config: KernelConfig) -> list[torch.Tensor]:
    """The output with the thread blocks in order, and with the last one first."""
    inputs = make_inputs(shape, device="cpu", weight_sets=1, seed=5)
    start = expect(inputs).start
    found = []
    for is_reversed in (False, True):
        with monkeypatch.context() as patch:
            if is_reversed:
                patch.setattr(interpreter_builder, "set_grid_idx", last_first(interpreter_builder))
            inputs.out.copy_(start)
            BuiltinProvider().launch(inputs, config, 0)
        found.append(inputs.out.clone())
    return found


SHAPES = {
    LoraOp.SHRINK: shrink_shape(hidden_size=512, num_slices=2),
    LoraOp.EXPAND: expand_shape(slice_sizes=[40, 24]),
    **{
        op: moe_shape(
            op,
            num_tokens=5,
            num_experts=2,
            hidden_size=256 if is_shrink(op) else 40,
            intermediate_size=256 if is_shrink(op) else 40,
        )
        for op in LoraOp
        if op.is_moe
    },
}


@pytest.mark.parametrize("op", LoraOp, ids=lambda op: op.value)
def test_without_a_split_the_order_makes_no_difference(monkeypatch, op):
    one, other = both_ways(monkeypatch, SHAPES[op], make_config(op))
    assert torch.equal(one, other)


@pytest.mark.parametrize("op", [op for op in LoraOp if is_shrink(op)], ids=lambda op: op.value)
def test_with_a_split_it_does(monkeypatch, op):
    one, other = both_ways(monkeypatch, SHAPES[op], make_config(op, split_k=8))
    assert not torch.equal(one, other)
    assert torch.allclose(one, other, rtol=1e-2, atol=1e-2)


def test_a_moe_expand_never_splits(monkeypatch):
    shape = SHAPES[LoraOp.W13_EXPAND]
    one, other = both_ways(monkeypatch, shape, make_config(shape.op, split_k=8))
    assert torch.equal(one, other)
