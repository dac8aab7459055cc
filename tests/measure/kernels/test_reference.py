"""The float64 reference, and the check that throws out wrong kernels."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.measure.kernels import reference as reference_module
from autotune.measure.kernels.inputs import Inputs, make_inputs
from autotune.measure.kernels.reference import (
    Check,
    check_result,
    error_bound,
    expect,
    reference,
)
from tests.measure.kernels.cases import expand_shape, shrink_shape

#: Three adapters' worth of tokens, two of them without a LoRA.
MAPPING = torch.tensor([1, -1, 0, 1, -1, 2, 1])

SHAPES = {
    "shrink": shrink_shape(num_tokens=7, num_slices=2, max_loras=4),
    "expand that adds": expand_shape(num_tokens=7, slice_sizes=[40, 24], max_loras=4),
    "expand that overwrites": expand_shape(
        num_tokens=7, slice_sizes=[40, 24], max_loras=4, add_inputs=False
    ),
}

each_op = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def inputs_of(
    shape: KernelShape, mapping: torch.Tensor | None = MAPPING, scaling: float = 1.0
) -> Inputs:
    return make_inputs(
        shape, device="cpu", weight_sets=2, seed=3, token_lora_mapping=mapping, scaling=scaling
    )


def launch_right(inputs: Inputs) -> None:
    """What a right kernel does, with its rounding."""
    product = reference(inputs, 0).to(inputs.out.dtype)
    if inputs.shape.op is LoraOp.SHRINK:
        inputs.out.copy_(product)
        return
    used = inputs.tokens.token_lora_mapping >= 0
    before = inputs.out[used] if inputs.shape.add_inputs else 0
    inputs.out[used] = before + product[used]


def leave(_: torch.Tensor) -> None:
    """Spoil nothing."""


def check_after(inputs: Inputs, spoil: Callable[[torch.Tensor], None]) -> Check:
    """Check a right launch whose output ``spoil`` changes afterwards."""

    def launch() -> None:
        launch_right(inputs)
        spoil(inputs.out)

    return check_result(launch, inputs, expect(inputs))


def test_the_shrink_reference_is_the_product_of_every_token_with_its_own_adapter():
    inputs = inputs_of(SHAPES["shrink"], scaling=0.5)

    got = reference(inputs, 1)

    assert got.dtype is torch.float64
    for slice_id, weight in enumerate(inputs.weight_sets[1]):
        for token, lora in enumerate(MAPPING.tolist()):
            wanted = inputs.x[token].double() @ weight[lora].double().T * 0.5 * (lora >= 0)
            assert torch.allclose(got[slice_id, token], wanted)


def test_the_expand_reference_lays_the_slices_side_by_side():
    inputs = inputs_of(SHAPES["expand that adds"])

    got = reference(inputs, 0)

    for token, lora in enumerate(MAPPING.tolist()):
        parts = [
            inputs.x[slice_id, token].double() @ weight[lora].double().T * (lora >= 0)
            for slice_id, weight in enumerate(inputs.weight_sets[0])
        ]
        assert torch.allclose(got[token], torch.cat(parts))


@each_op
def test_working_in_small_chunks_changes_nothing(shape, monkeypatch):
    inputs = inputs_of(shape)
    whole, expected = reference(inputs, 0), expect(inputs)
    check = check_result(lambda: launch_right(inputs), inputs, expected)

    monkeypatch.setattr(reference_module, "CHUNK_ELEMENTS", 100)

    assert torch.allclose(reference(inputs, 0), whole)
    chunked = check_result(lambda: launch_right(inputs), inputs, expected)
    assert chunked.problem == ""
    assert chunked.relative_error == pytest.approx(check.relative_error)


def test_outputs_are_of_the_order_of_one():
    for shape in (
        shrink_shape(num_tokens=64, hidden_size=1000, rank=64),
        expand_shape(num_tokens=64, slice_sizes=[300], rank=64),
    ):
        inputs = make_inputs(shape, device="cpu", weight_sets=1, seed=0)
        assert 0.8 < reference(inputs, 0).std() < 1.25


@each_op
def test_a_right_launch_passes_with_the_error_of_its_rounding(shape):
    inputs = inputs_of(shape)

    check = check_after(inputs, leave)

    assert check.problem == ""
    assert 0 < check.relative_error < error_bound(shape)


@each_op
def test_a_right_launch_passes_where_every_token_has_a_lora(shape):
    check = check_after(inputs_of(shape, mapping=None), leave)

    assert check.problem == ""


@each_op
def test_a_launch_that_does_nothing_is_wrong(shape):
    inputs = inputs_of(shape)

    assert check_result(lambda: None, inputs, expect(inputs)).problem


@each_op
def test_a_single_nan_is_wrong(shape):
    def spoil(out):
        out[..., 0, 3] = math.nan

    check = check_after(inputs_of(shape), spoil)

    assert "NaN" in check.problem
    assert math.isnan(check.relative_error)


@each_op
def test_an_infinite_element_is_wrong(shape):
    def spoil(out):
        out[..., 0, 3] = math.inf

    assert "exceeds" in check_after(inputs_of(shape), spoil).problem


@pytest.mark.parametrize("name", ["shrink", "expand that overwrites"])
def test_a_tile_that_was_not_written_is_wrong(name):
    inputs = inputs_of(SHAPES[name])
    expected = expect(inputs)

    def launch():
        before = inputs.out.clone()
        launch_right(inputs)
        inputs.out[..., 5:, :8] = before[..., 5:, :8]

    assert "not written" in check_result(launch, inputs, expected).problem


def test_a_tile_that_was_not_added_to_is_wrong_however_large_the_output():
    """A single tile of 16 by 16 is too small a part of this output to be seen in its norm."""
    shape = expand_shape(num_tokens=256, slice_sizes=[28672], rank=8, dtype="bfloat16")
    inputs = make_inputs(shape, device="cpu", weight_sets=1, seed=0)
    expected = expect(inputs)

    def launch():
        before = inputs.out[16:32, 32:48].clone()
        launch_right(inputs)
        inputs.out[16:32, 32:48] = before

    check = check_result(launch, inputs, expected)

    assert check.relative_error < error_bound(shape)
    assert "an element is off" in check.problem


@each_op
def test_a_changed_row_of_a_token_without_a_lora_is_wrong(shape):
    def spoil(out):
        out[..., 4, 2] += 0.25

    assert "without a LoRA" in check_after(inputs_of(shape), spoil).problem


@each_op
def test_nan_in_the_row_of_a_token_without_a_lora_is_wrong(shape):
    def spoil(out):
        out[..., 1, :] = math.nan

    assert "without a LoRA" in check_after(inputs_of(shape), spoil).problem


def test_rows_without_a_lora_must_be_zeroed_by_shrink():
    inputs = inputs_of(SHAPES["shrink"])

    def launch():
        before = inputs.out.clone()
        launch_right(inputs)
        inputs.out[:, 1] = before[:, 1]

    assert "without a LoRA" in check_result(launch, inputs, expect(inputs)).problem


@each_op
def test_the_wrong_adapter_is_wrong(shape):
    inputs = inputs_of(shape)

    def spoil(out):
        out[..., 0, :] = out[..., 2, :]

    assert "exceeds" in check_after(inputs, spoil).problem


@each_op
def test_another_weight_set_is_wrong(shape):
    inputs = inputs_of(shape)

    check = check_result(lambda: launch_right(inputs), inputs, expect(inputs, weight_set=1))

    assert "exceeds" in check.problem


@each_op
def test_a_batch_without_any_lora_leaves_only_what_it_must(shape):
    inputs = inputs_of(shape, mapping=torch.full((7,), -1))

    check = check_after(inputs, leave)

    assert check.problem == ""
    assert check.relative_error == 0.0


def test_expect_does_not_change_the_inputs():
    inputs = inputs_of(SHAPES["expand that adds"])
    before = [each.clone() for each in (inputs.x, inputs.out, *inputs.weight_sets[0])]

    expect(inputs)

    after = (inputs.x, inputs.out, *inputs.weight_sets[0])
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
