"""Which token uses which adapter, in the tables that the kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autotune.errors import InputError

if TYPE_CHECKING:
    from autotune.launch.shape import KernelShape

#: Stands for "no LoRA" in ``lora_ids`` and in the token mapping.
NO_LORA = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenMetadata:
    """Which tokens belong to which adapter, as vLLM's ``LoRAKernelMeta`` lays it out; all int32.

    Attributes:
        token_lora_mapping: (m,) adapter of each token, -1 for none.
        token_indices_sorted_by_lora_ids: (m,) tokens, sorted by adapter.
        num_tokens_per_lora: (max_loras + 1,) number of tokens of each slot.
        lora_token_start_loc: (max_loras + 2,) where each slot's tokens start among the sorted ones.
        lora_ids: (max_loras + 1,) adapter of each slot in ascending order. -1 (no LoRA) comes first
            if any token has none; unused slots come last and are -1 too.
    """

    token_lora_mapping: torch.Tensor
    token_indices_sorted_by_lora_ids: torch.Tensor
    num_tokens_per_lora: torch.Tensor
    lora_token_start_loc: torch.Tensor
    lora_ids: torch.Tensor


def spread_tokens(shape: KernelShape, seed: int) -> torch.Tensor:
    """Deal the tokens to the shape's adapters in turn, then shuffle them.

    Returns:
        (m,) int32 on the CPU: the adapter of each token.
    """
    dealt = torch.arange(shape.num_tokens, dtype=torch.int32) % shape.loras_with_tokens  # (m,)
    shuffle = torch.Generator().manual_seed(seed)
    return dealt[torch.randperm(shape.num_tokens, generator=shuffle)]


def token_metadata(token_lora_mapping: torch.Tensor, max_loras: int) -> TokenMetadata:
    """Sort the tokens by adapter, as vLLM does before a forward pass.

    Args:
        token_lora_mapping: (m,) adapter of each token, -1 for none.
        max_loras: Number of adapters that the GPU has room for.

    Raises:
        InputError: A token's adapter is not among -1 to ``max_loras - 1``.
    """
    mapping = token_lora_mapping.to(torch.int32)  # (m,)
    low, high = int(mapping.min()), int(mapping.max())
    if low < NO_LORA or high >= max_loras:
        raise InputError(
            f"adapters must lie between -1 (none) and {max_loras - 1}: got {low} to {high}"
        )
    used, counts = torch.unique(mapping, sorted=True, return_counts=True)  # (slots in use,) each
    slots = used.numel()
    lora_ids = mapping.new_full((max_loras + 1,), NO_LORA)
    num_tokens_per_lora = mapping.new_zeros(max_loras + 1)
    lora_token_start_loc = mapping.new_zeros(max_loras + 2)
    lora_ids[:slots] = used
    num_tokens_per_lora[:slots] = counts
    lora_token_start_loc[1 : slots + 1] = counts.cumsum(0)
    return TokenMetadata(
        token_lora_mapping=mapping,
        token_indices_sorted_by_lora_ids=mapping.argsort(stable=True).to(torch.int32),  # (m,)
        num_tokens_per_lora=num_tokens_per_lora,
        lora_token_start_loc=lora_token_start_loc,
        lora_ids=lora_ids,
    )


def metadata_without_memory(num_tokens: int, max_loras: int) -> TokenMetadata:
    """The tensors of ``token_metadata`` on PyTorch's ``meta`` device: sizes without numbers."""

    def empty(size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int32, device="meta")

    return TokenMetadata(
        token_lora_mapping=empty(num_tokens),
        token_indices_sorted_by_lora_ids=empty(num_tokens),
        num_tokens_per_lora=empty(max_loras + 1),
        lora_token_start_loc=empty(max_loras + 2),
        lora_ids=empty(max_loras + 1),
    )
