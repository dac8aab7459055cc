"""The tensors that a kernel is launched with: activations, rotating weights, slice tables.

Their sizes are those that vLLM allocates, and do not depend on the configuration.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from autotune.errors import InputError
from autotune.launch.op import LoraOp
from autotune.launch.shape import DTYPE_BYTES, KernelShape
from autotune.measure.kernels.layout import Layout, layout
from autotune.measure.kernels.moe_inputs import MoeInputs
from autotune.measure.kernels.routing import Routing, pairs_hit, route, rows_here
from autotune.measure.kernels.tokens import (
    TokenMetadata,
    metadata_without_memory,
    spread_tokens,
    token_metadata,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


#: Elements before and after the output, so that a store that is off by a row or a tile lands there.
#: A multiple of 16 bytes, so that the output is aligned like an allocation.
MARGIN = 4096

#: What the margins hold. It is exact in every dtype, and no kernel here writes it by chance.
MARGIN_VALUE = -1024.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operands:
    """What a dense kernel gets for one weight set: tensors, or stand-ins that have only a dtype.

    Attributes:
        x: shrink: (m, hidden); expand: (num_slices, m, rank) float32.
        weights: With one slice its weight; with more (num_slices,) uint64, the weights' addresses.
        out: shrink: (num_slices, m, rank) float32; expand: (m, sum of slice_sizes).
        token_indices: ``token_indices_sorted_by_lora_ids``.
        num_tokens_per_lora: See ``TokenMetadata``.
        lora_token_start_loc: See ``TokenMetadata``.
        lora_ids: See ``TokenMetadata``.
        slice_starts: expand: (num_slices,) uint64, first output column of each slice; 0 if there is
            one slice.
        slice_sizes: The n of all slices, or (num_slices,) int64 where slices differ in size.
        weight_strides: Strides of adapter, n and k: numbers, or (num_slices,) int64 each where
            slices differ in size.
    """

    x: Any
    weights: Any
    out: Any
    token_indices: Any
    num_tokens_per_lora: Any
    lora_token_start_loc: Any
    lora_ids: Any
    slice_starts: Any
    slice_sizes: Any
    weight_strides: tuple[Any, Any, Any]

    def as_arguments(self) -> dict[str, Any]:
        """The arguments that both dense kernels take, by name."""
        stride_lora, stride_n, stride_k = self.weight_strides
        return {
            "x": self.x,
            "weights": self.weights,
            "out": self.out,
            "token_indices": self.token_indices,
            "num_tokens_per_lora": self.num_tokens_per_lora,
            "lora_token_start_loc": self.lora_token_start_loc,
            "lora_ids": self.lora_ids,
            "weights_stride_lora": stride_lora,
            "weights_stride_n": stride_n,
            "weights_stride_k": stride_k,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """Everything that launches of one shape read and write.

    Attributes:
        shape: The shape.
        x: What the op reads; see ``Layout``.
        weight_sets: Weight sets, each with one contiguous tensor per slice: (max_loras, n, k), in a
            mixture of experts (max_loras, num_experts, n, k), or a view of that size with a stride
            of 0 between experts. A pair has the shrink's slices, then the expand's.
        out: What the op writes; see ``Layout``.
        margins: The memory before and after ``out``, filled with ``MARGIN_VALUE``.
        tokens: Which token uses which adapter.
        scaling: Dense shrink: what the product is multiplied by.
        operands: What a dense kernel gets for each weight set; empty for MoE ops.
        capability: Compute capability of the device; (0, 0) for the CPU, where Triton interprets.
        moe: MoE ops: which token uses which expert, and what the kernel gets.
        pair: MoE ops: whether the inputs are for a shrink and the expand that follows it.
    """

    shape: KernelShape
    x: torch.Tensor
    weight_sets: tuple[tuple[torch.Tensor, ...], ...]
    out: torch.Tensor
    margins: tuple[torch.Tensor, torch.Tensor]
    tokens: TokenMetadata
    scaling: float
    operands: tuple[Operands, ...]
    capability: tuple[int, int]
    moe: MoeInputs | None = None
    pair: bool = False

    @property
    def row_loras(self) -> torch.Tensor:
        """(rows,) adapter of each row of the output; -1 for none, or an expert not here."""
        mapping = self.tokens.token_lora_mapping
        if self.moe is None:
            return mapping
        return rows_here(self.shape, mapping, self.moe.routing.topk_ids)


def weight_set_bytes(shape: KernelShape, *, pair: bool = False) -> int:
    """Bytes of one weight set: all slices, experts and adapters that there is room for."""
    return sum(_slice_bytes(shape, pair=pair))


def _slice_bytes(shape: KernelShape, *, pair: bool) -> list[int]:
    """Bytes of the weights of each slice: of experts that share a matrix, those of one."""
    sizes = layout(shape, pair=pair)
    return [
        math.prod(_kept(size, shared=shared)) * DTYPE_BYTES[shape.dtype]
        for size, shared in zip(sizes.weights, sizes.shared, strict=True)
    ]


def _kept(size: tuple[int, ...], *, shared: bool) -> tuple[int, ...]:
    """The size of what a weight takes in memory."""
    return (size[0], 1, *size[2:]) if shared else size


def weight_bytes_touched(shape: KernelShape, *, seed: int = 0, pair: bool = False) -> int:
    """Bytes of the weights that one launch reads: only those that a token needs.

    Args:
        shape: The shape.
        seed: As given to ``make_inputs``. For MoE ops it decides which experts get tokens; their
            number is about the same with any seed.
        pair: As given to ``make_inputs``.
    """
    if not shape.op.is_moe:
        return weight_set_bytes(shape) // shape.max_loras * shape.loras_with_tokens
    matrices = shape.max_loras * shape.num_experts
    hit = pairs_hit(shape, spread_tokens(shape, seed), seed)
    shared = layout(shape, pair=pair).shared
    return sum(
        size // shape.max_loras * min(hit, shape.loras_with_tokens)
        if one
        else size // matrices * hit
        for size, one in zip(_slice_bytes(shape, pair=pair), shared, strict=True)
    )


def make_inputs(  # noqa: PLR0913 - each by its name
    shape: KernelShape,
    *,
    device: torch.device | str,
    weight_sets: int,
    seed: int,
    token_lora_mapping: torch.Tensor | None = None,
    scaling: float = 1.0,
    routing: Routing | None = None,
    pair: bool = False,
) -> Inputs:
    """Allocate and fill what a shape's launches need, with values that make outputs near 1.

    Args:
        shape: The shape.
        device: Where the tensors are made.
        weight_sets: Sets of weights to rotate over; ``weight_set_bytes`` says what each takes.
        seed: Seed of every random value.
        token_lora_mapping: (m,) adapter of each token, -1 for none; ``spread_tokens`` by default.
        scaling: Dense shrink: what the product is multiplied by.
        routing: MoE ops: experts of each token; drawn as the shape's ``routing`` says by default.
        pair: MoE ops: make inputs for the shape's shrink and the expand after it: what the shrink
            reads, what the expand writes, and the weights of both.

    Raises:
        InputError: The mapping or the routing does not fit the shape.
    """
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(seed)
    mapping = spread_tokens(shape, seed) if token_lora_mapping is None else token_lora_mapping
    tokens = _tokens(shape, mapping.to(device))
    sizes = layout(shape, pair=pair)
    x = _empty_x(sizes, device).normal_(generator=generator)
    out, margins = _output(sizes, device)
    sets = tuple(_empty_weights(sizes, device) for _ in range(weight_sets))
    _fill(sets, generator)
    operands: tuple[Operands, ...] = ()
    moe = None
    if shape.op.is_moe:
        routing = (routing or route(shape, seed)).to(x.device)
        moe = MoeInputs(shape, routing=routing, tokens=tokens, x=x, weight_sets=sets, out=out)
    else:
        operands = tuple(_operands(shape, x, weights, out, tokens) for weights in sets)
    return Inputs(
        shape=shape,
        x=x,
        weight_sets=sets,
        out=out,
        margins=margins,
        tokens=tokens,
        scaling=scaling,
        operands=operands,
        capability=torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0),
        moe=moe,
        pair=pair,
    )


def inputs_without_memory(shape: KernelShape, *, pair: bool = False) -> Inputs:
    """A shape's tensors on PyTorch's ``meta`` device: sizes, strides and dtypes without numbers.

    Their address is 0. Triton takes that for a multiple of 16, which the address of every
    allocation is. There is one weight set, and there are no operands.
    """
    device, sizes = torch.device("meta"), layout(shape, pair=pair)
    out, margins = _output(sizes, device)
    return Inputs(
        shape=shape,
        x=_empty_x(sizes, device),
        weight_sets=(_empty_weights(sizes, device),),
        out=out,
        margins=margins,
        tokens=metadata_without_memory(shape.num_tokens, shape.max_loras),
        scaling=1.0,
        operands=(),
        capability=(0, 0),
        pair=pair,
    )


def operands_without_tensors(shape: KernelShape) -> Operands:
    """Stand-ins for a dense shape's tensors, to compile with.

    Triton specialises on a tensor's dtype and on whether its address is a multiple of 16. The
    address of every PyTorch allocation is; that of a stand-in counts as one.
    """
    from triton.runtime.jit import MockTensor

    sizes_and_types = layout(shape)
    table, numbers = MockTensor(torch.uint64), MockTensor(torch.int64)
    metadata = MockTensor(torch.int32)
    starts, sizes, strides = _slice_tables(shape, lambda _: table, lambda _: numbers)
    return Operands(
        x=MockTensor(sizes_and_types.x_dtype),
        weights=MockTensor(sizes_and_types.dtype) if shape.num_slices == 1 else table,
        out=MockTensor(sizes_and_types.out_dtype),
        token_indices=metadata,
        num_tokens_per_lora=metadata,
        lora_token_start_loc=metadata,
        lora_ids=metadata,
        slice_starts=starts,
        slice_sizes=sizes,
        weight_strides=strides,
    )


def _tokens(shape: KernelShape, mapping: torch.Tensor) -> TokenMetadata:
    if mapping.shape != (shape.num_tokens,):
        raise InputError(
            f"the mapping must name one adapter per token, {shape.num_tokens} of them: "
            f"got a tensor of {tuple(mapping.shape)}"
        )
    return token_metadata(mapping, shape.max_loras)


def _empty_x(sizes: Layout, device: torch.device) -> torch.Tensor:
    """An x that is not filled."""
    return torch.empty(sizes.x, dtype=sizes.x_dtype, device=device)


def _output(
    sizes: Layout, device: torch.device
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """An out of zeros, and the margins around it."""
    end = MARGIN + math.prod(sizes.out)
    memory = torch.full(
        (end + MARGIN,), MARGIN_VALUE, dtype=sizes.out_dtype, device=device
    )  # (all,)
    out = memory[MARGIN:end].view(sizes.out)
    return out.zero_(), (memory[:MARGIN], memory[end:])


def _empty_weights(sizes: Layout, device: torch.device) -> tuple[torch.Tensor, ...]:
    """A weight set that is not filled: one tensor per slice, or a view of one matrix for all."""
    kept = (
        torch.empty(_kept(size, shared=shared), dtype=sizes.dtype, device=device)
        for size, shared in zip(sizes.weights, sizes.shared, strict=True)
    )
    return tuple(one.expand(size) for one, size in zip(kept, sizes.weights, strict=True))


def _fill(weight_sets: Sequence[Sequence[torch.Tensor]], generator: torch.Generator) -> None:
    """Fill weights at random; a deviation of 1/sqrt(k) keeps sums over k near 1."""
    for weight in itertools.chain(*weight_sets):
        once = weight[:, :1] if weight.stride(1) == 0 else weight
        once.normal_(std=weight.shape[-1] ** -0.5, generator=generator)


def _operands(
    shape: KernelShape,
    x: torch.Tensor,
    weights: tuple[torch.Tensor, ...],
    out: torch.Tensor,
    tokens: TokenMetadata,
) -> Operands:
    def addresses(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.uint64, device=x.device)  # (num_slices,)

    def numbers(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=x.device)  # (num_slices,)

    starts, sizes, strides = _slice_tables(shape, addresses, numbers)
    table = weights[0] if len(weights) == 1 else addresses([each.data_ptr() for each in weights])
    return Operands(
        x=x,
        weights=table,
        out=out,
        token_indices=tokens.token_indices_sorted_by_lora_ids,
        num_tokens_per_lora=tokens.num_tokens_per_lora,
        lora_token_start_loc=tokens.lora_token_start_loc,
        lora_ids=tokens.lora_ids,
        slice_starts=starts,
        slice_sizes=sizes,
        weight_strides=strides,
    )


def _slice_tables(
    shape: KernelShape,
    addresses: Callable[[Sequence[int]], Any],
    numbers: Callable[[Sequence[int]], Any],
) -> tuple[Any, Any, tuple[Any, Any, Any]]:
    """Starts, sizes and weight strides of the slices; a table only where slices differ.

    Args:
        shape: The shape.
        addresses: Makes a table of uint64 from one value per slice.
        numbers: Makes a table of int64 from one value per slice.
    """
    weights = layout(shape).weights
    sizes, depth = [size[-2] for size in weights], weights[0][-1]
    several = shape.op is LoraOp.EXPAND and len(sizes) > 1
    starts = addresses(list(itertools.accumulate(sizes, initial=0))[:-1]) if several else 0
    if len(set(sizes)) == 1:
        return starts, sizes[0], (sizes[0] * depth, depth, 1)
    strides = (
        numbers([size * depth for size in sizes]),
        numbers([depth] * len(sizes)),
        numbers([1] * len(sizes)),
    )
    return starts, numbers(sizes), strides
