"""What a MoE op's kernel gets beside activations and weights: experts and their blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from autotune.errors import InputError
from autotune.launch.sizes import assigns_naively
from autotune.measure.kernels.layout import layout
from autotune.measure.kernels.routing import Alignment, Routing, align

if TYPE_CHECKING:
    from autotune.launch.shape import KernelShape
    from autotune.measure.kernels.tokens import TokenMetadata


class MoeOperands(NamedTuple):
    """What the kernel gets for one weight set: tensors, or stand-ins that have only a dtype.

    Attributes:
        x: See ``Layout``.
        weights: (num_slices,) uint64, the addresses of the slices' weights, even if there is one.
        out: See ``Layout``.
        topk_weights: (m, top_k) float32.
        token_lora_mapping: (m,) int32.
        lora_ids: (max_loras + 1,) int32, see ``TokenMetadata``.
        adapter_enabled: (max_loras + 1,) int32, whether an adapter has weights for the layer.
    """

    x: Any
    weights: Any
    out: Any
    topk_weights: Any
    token_lora_mapping: Any
    lora_ids: Any
    adapter_enabled: Any


class MoeInputs:
    """What the launches of a MoE shape share, beside the tensors of ``Inputs``.

    Attributes:
        routing: The experts of every token, on the device.
        adapter_enabled: (max_loras + 1,) int32, 1 for every adapter and 0 for the slot after them.
        operands: What the kernel gets for each weight set.
    """

    def __init__(
        self,
        shape: KernelShape,
        *,
        routing: Routing,
        tokens: TokenMetadata,
        x: torch.Tensor,
        weight_sets: tuple[tuple[torch.Tensor, ...], ...],
        out: torch.Tensor,
    ) -> None:
        """Make the tables that do not depend on the configuration.

        Raises:
            InputError: The routing does not fit the shape.
        """
        _check_fits(routing, shape)
        self._shape, self._mapping = shape, tokens.token_lora_mapping
        self._alignments: dict[int, Alignment] = {}
        self.routing = routing
        enabled = [1] * shape.max_loras + [0]
        self.adapter_enabled = torch.tensor(enabled, dtype=torch.int32, device=x.device)
        self.operands = tuple(
            MoeOperands(
                x=x,
                weights=_addresses(weights),
                out=out,
                topk_weights=routing.topk_weights,
                token_lora_mapping=tokens.token_lora_mapping,
                lora_ids=tokens.lora_ids,
                adapter_enabled=self.adapter_enabled,
            )
            for weights in weight_sets
        )

    def alignment(self, block_m: int) -> Alignment:
        """The rows of every block, made on the first call for a ``block_m``.

        Making them waits for the device, so the first launch of a ``block_m`` must not be captured
        in a graph.
        """
        if block_m not in self._alignments:
            made = align(self._shape, self.routing.topk_ids, self._mapping, block_m)
            self._alignments[block_m] = made
        return self._alignments[block_m]


def _check_fits(routing: Routing, shape: KernelShape) -> None:
    size = (shape.num_tokens, shape.top_k)
    if routing.topk_ids.shape != size or routing.topk_weights.shape != size:
        raise InputError(
            f"the routing must name {shape.top_k} experts for each of {shape.num_tokens} "
            f"tokens: got a tensor of {tuple(routing.topk_ids.shape)}"
        )


def moe_operands_without_tensors(shape: KernelShape) -> tuple[MoeOperands, Alignment]:
    """Stand-ins for a shape's tensors, to compile with; see ``operands_without_tensors``."""
    from triton.runtime.jit import MockTensor

    sizes, numbers = layout(shape), MockTensor(torch.int32)
    operands = MoeOperands(
        x=MockTensor(sizes.x_dtype),
        weights=MockTensor(torch.uint64),
        out=MockTensor(sizes.out_dtype),
        topk_weights=MockTensor(torch.float32),
        token_lora_mapping=numbers,
        lora_ids=numbers,
        adapter_enabled=numbers,
    )
    sorted_only = None if assigns_naively(shape) else numbers
    alignment = Alignment(
        sorted_token_ids=sorted_only, expert_ids=numbers, num_tokens_post_padded=sorted_only
    )
    return operands, alignment


def _addresses(weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
    values = [each.data_ptr() for each in weights]
    return torch.tensor(values, dtype=torch.uint64, device=weights[0].device)  # (num_slices,)
