"""Checking a kernel's numbers against a float64 reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from autotune.launch.op import LoraOp
from autotune.launch.sizes import is_shrink
from autotune.measure.kernels.inputs import MARGIN_VALUE
from autotune.measure.kernels.layout import adds_to_output
from autotune.measure.kernels.tokens import NO_LORA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from autotune.launch.shape import KernelShape
    from autotune.measure.kernels.inputs import Inputs

#: Most elements of a float64 temporary. It takes 512 MiB, so that a check fits beside the weights.
CHUNK_ELEMENTS = 1 << 26

#: Bound on the relative error of the dense ``shrink``. Products of bfloat16 or float16 are exact in
#: float32, and their float32 sum is off by 1e-6 to 1e-5. The bound of 1e-3 leaves room for any
#: order of summing and is still far below the error of a wrong kernel.
SHRINK_BOUND = 1e-3

#: Bounds on the relative error of the other ops, by dtype. ``expand`` rounds its x and its result
#: to the dtype, the MoE ops round their result. With bfloat16 the measured error is 1.7e-3; float16
#: has three more bits, so there it is about 2e-4. The MoE shrinks add up their split_k parts in the
#: dtype. That multiplies the error by sqrt((split_k + 1) / 2): by 3 with 16, the largest split that
#: is searched.
ROUNDED_BOUNDS = {"bfloat16": 1e-2, "float16": 2e-3}

#: How much a single element may be off: this, times the bound, times the root mean square of the
#: result. Rounding grows with the element. The largest of 1e8 normal values is 6 times their root
#: mean square; with rank 1, where an element is a product of two such values, it is 22 times. A
#: tile that was not added to exceeds this limit, even where it is too small to be seen in the norm.
WORST_ELEMENT = 20.0


def error_bound(shape: KernelShape) -> float:
    """The largest relative error that rounding explains."""
    return SHRINK_BOUND if shape.op is LoraOp.SHRINK else ROUNDED_BOUNDS[shape.dtype]


def reference(inputs: Inputs, weight_set: int) -> torch.Tensor:
    """The result of a launch in float64, computed from the tensors that the kernel reads.

    Rows of tokens without a LoRA are zero. Temporaries take at most about 2 GiB for any shape.

    Args:
        inputs: The tensors; they are not changed.
        weight_set: Which of the rotating weight sets.

    Returns:
        The result without the values that the kernel adds it to. It has the size of ``out``:
        shrink: (num_slices, rows, rank); expand: (rows, sum of the slices' n).
    """
    result = torch.zeros_like(inputs.out, dtype=torch.float64)
    for matrix, rows in _rows_by_matrix(inputs):
        _multiply(inputs, inputs.weight_sets[weight_set], matrix, rows, result)
    return result


def _rows_by_matrix(inputs: Inputs) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """The index of each matrix in the stacked weights, and the rows that it is multiplied with.

    The index is (adapter,), and in a mixture of experts (adapter, expert).
    """
    loras = inputs.row_loras.long()  # (rows,)
    experts = 1
    keys = loras
    if inputs.moe is not None:
        experts = inputs.shape.num_experts
        keys = loras * experts + inputs.moe.routing.topk_ids.view(-1)  # (rows,)
    used = (loras != NO_LORA).nonzero().squeeze(1)  # (used rows,)
    ordered, order = keys[used].sort(stable=True)  # (used rows,) each
    found, counts = torch.unique_consecutive(ordered, return_counts=True)  # (matrices,) each
    groups = torch.split(used[order], counts.tolist())
    for key, rows in zip(found.tolist(), groups, strict=True):
        lora, expert = divmod(key, experts)
        yield ((lora, expert) if inputs.moe else (lora,)), rows


def _multiply(
    inputs: Inputs,
    weights: tuple[torch.Tensor, ...],
    matrix: tuple[int, ...],
    rows: torch.Tensor,
    result: torch.Tensor,
) -> None:
    """Write the rows of ``result`` that one matrix gives, a bounded number at a time."""
    if inputs.pair:
        _multiply_pair(inputs, weights, matrix, rows, result)
        return
    shape, start = inputs.shape, 0
    for slice_id, weight in enumerate(weights):
        one = weight[matrix].double()  # (n, k)
        columns = slice(start, start + one.shape[0])
        start = columns.stop
        for some in torch.split(rows, max(1, CHUNK_ELEMENTS // max(one.shape))):
            if is_shrink(shape.op):
                product = _read_by_shrink(inputs, some) @ one.T  # (rows, rank)
                result[slice_id, some] = product * inputs.scaling
            else:
                product = inputs.x[slice_id, some].double() @ one.T  # (rows, n)
                result[some, columns] = product * _routed_weights(inputs, some)


def _multiply_pair(
    inputs: Inputs,
    weights: tuple[torch.Tensor, ...],
    matrix: tuple[int, ...],
    rows: torch.Tensor,
    result: torch.Tensor,
) -> None:
    """As ``_multiply``, for a shrink and the expand that follows it."""
    half, start = len(weights) // 2, 0
    for lora_a, lora_b in zip(weights[:half], weights[half:], strict=True):
        a, b = lora_a[matrix].double(), lora_b[matrix].double()  # (rank, k), (n, rank)
        columns = slice(start, start + b.shape[0])
        start = columns.stop
        for some in torch.split(rows, max(1, CHUNK_ELEMENTS // max(*a.shape, *b.shape))):
            product = _read_by_shrink(inputs, some) @ a.T @ b.T  # (rows, n)
            result[some, columns] = product * _routed_weights(inputs, some)


def _read_by_shrink(inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
    """(rows, k) float64: for each row of the output the row of x that it is computed from."""
    is_w13 = inputs.shape.op in {LoraOp.W13_SHRINK, LoraOp.W13_EXPAND}
    return inputs.x[rows // inputs.shape.top_k if is_w13 else rows].double()


def _routed_weights(inputs: Inputs, rows: torch.Tensor) -> torch.Tensor | float:
    """(rows, 1): what w2's expand multiplies each row by; 1 for the other ops."""
    weighs = {LoraOp.W2_EXPAND, LoraOp.W2_SHRINK} if inputs.pair else {LoraOp.W2_EXPAND}
    if inputs.moe is None or inputs.shape.op not in weighs:
        return 1.0
    return inputs.moe.routing.topk_weights.view(-1)[rows].double()[:, None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expected:
    """What every launch of a shape must leave in the output.

    Attributes:
        start: What the output holds before the launch, in its dtype. NaN where the kernel must
            write without reading; random values where it adds, and where it must not write.
        values: What the output must hold after the launch, float64.
        norm: Euclidean norm of ``values`` over rows of tokens with a LoRA.
        root_mean_square: Root mean square of ``values`` over rows of tokens with a LoRA.
        idle_rows: Rows of tokens without a LoRA.
        bound: The largest relative error that rounding explains.
    """

    start: torch.Tensor
    values: torch.Tensor
    norm: float
    root_mean_square: float
    idle_rows: torch.Tensor
    bound: float


@dataclass(frozen=True, slots=True)
class Check:
    """The verdict on one launch.

    Attributes:
        relative_error: ‖out - ref‖ / ‖ref‖ over tokens with a LoRA; NaN if an element is NaN or was
            not written.
        problem: What is wrong; empty if the numbers are right.
    """

    relative_error: float
    problem: str


def expect(inputs: Inputs, *, weight_set: int = 0, seed: int = 0) -> Expected:
    """Compute what every launch of a shape must leave in the output.

    Args:
        inputs: The tensors; they are not changed.
        weight_set: The weight set that the launches will read.
        seed: Seed of the values that the output holds before a launch.
    """
    values = reference(inputs, weight_set)
    row_loras = inputs.row_loras
    idle_rows = (row_loras == NO_LORA).nonzero().squeeze(1)  # (idle rows,)
    used = values.numel() // len(row_loras) * (len(row_loras) - len(idle_rows))
    start = torch.full_like(inputs.out, math.nan)
    if inputs.pair or not is_shrink(inputs.shape.op):
        _prepare_expand(inputs, start, values, idle_rows, seed)
    squares = _squared_norm(values)
    if len(idle_rows):
        squares -= _squared_norm(values.index_select(-2, idle_rows))
    norm = math.sqrt(max(squares, 0.0))
    return Expected(
        start=start,
        values=values,
        norm=norm,
        root_mean_square=norm / math.sqrt(max(used, 1)),
        idle_rows=idle_rows,
        bound=error_bound(inputs.shape),
    )


def _prepare_expand(
    inputs: Inputs, start: torch.Tensor, values: torch.Tensor, idle_rows: torch.Tensor, seed: int
) -> None:
    """Put random values where the kernel adds to the output, and where it must not write."""
    generator = torch.Generator(start.device).manual_seed(seed)
    if adds_to_output(inputs.shape, pair=inputs.pair):
        start.normal_(generator=generator)
        values += start
        return
    idle = start[idle_rows].normal_(generator=generator)  # (idle tokens, sum n)
    start[idle_rows] = idle
    values[idle_rows] = idle.double()


def _squared_norm(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values).item() ** 2)


def check_result(launch: Callable[[], None], inputs: Inputs, expected: Expected) -> Check:
    """Launch once over a poisoned output and compare the result with what is expected.

    Takes a few kernels and one wait for the device.

    Args:
        launch: Enqueues the op once, with the weight set that ``expected`` was made for.
        inputs: The tensors that the launch reads and writes.
        expected: What the launch must leave in the output.
    """
    inputs.out.copy_(expected.start)
    launch()
    figures = _differences(inputs, expected)
    if figures.outside != 0.0:
        for margin in inputs.margins:  # so that the next launch is not blamed
            margin.fill_(MARGIN_VALUE)
    error = _ratio(math.sqrt(figures.squares), expected.norm)
    return Check(error, _problem(error, figures, expected))


class _Differences(NamedTuple):
    """How an output differs from what it must hold.

    Attributes:
        squares: Squared norm of the error.
        worst: Largest element of the error.
        idle: The largest change in rows of tokens without a LoRA.
        outside: 1 if the margins of the output were written to, else 0.
    """

    squares: float
    worst: float
    idle: float
    outside: float


def _differences(inputs: Inputs, expected: Expected) -> _Differences:
    """Compare the output with ``expected``, in one transfer from the device."""
    chunks = zip(_chunks(inputs.out), _chunks(expected.values), strict=True)
    parts = []
    for got, wanted in chunks:
        difference = got - wanted  # float64
        parts.append(torch.stack((difference.dot(difference), difference.abs().max())))
    figures = torch.stack(parts)  # (chunks, 2)
    idle = figures.new_zeros(())
    if len(expected.idle_rows):
        rows = inputs.out.index_select(-2, expected.idle_rows)
        idle = (rows - expected.values.index_select(-2, expected.idle_rows)).abs().max()
    outside = (torch.stack(inputs.margins) != MARGIN_VALUE).any().double()
    found = torch.stack((figures[:, 0].sum(), figures[:, 1].max(), idle, outside))
    return _Differences(*found.tolist())


def _chunks(values: torch.Tensor) -> Sequence[torch.Tensor]:
    """The values in order, split so that each part fits into a temporary."""
    return torch.split(values.view(-1), CHUNK_ELEMENTS)


def _problem(error: float, figures: _Differences, expected: Expected) -> str:
    """What is wrong, or nothing. The comparisons are written so that NaN fails them."""
    if figures.outside != 0.0:
        return "memory outside the output was written"
    if figures.idle != 0.0:
        return "rows of tokens without a LoRA were changed"
    if math.isnan(error):
        return "the output holds NaN, or was not written everywhere"
    if not error <= expected.bound:
        return f"relative error {error:.3g} exceeds {expected.bound:g}"
    most = WORST_ELEMENT * expected.bound * expected.root_mean_square
    if not figures.worst <= most:
        return f"an element is off by {figures.worst:.3g}, {most:.3g} at most"
    return ""


def _ratio(error: float, norm: float) -> float:
    return error / norm if norm else (0.0 if error == 0.0 else math.inf)
