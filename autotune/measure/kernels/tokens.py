"""Which token uses which adapter, as the kernels are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autotune.errors import InputError

if TYPE_CHECKING:
    from autotune.launch.shape import KernelShape

#: ``lora_ids`` and token mapping of a token that uses no LoRA.
NO_LORA = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenMetadata:
    """Which tokens belong to which adapter, as vLLM's ``LoRAKernelMeta`` lays it out; all int32.

    Attributes:
        token_lora_mapping: (m,) adapter of each token, -1 for none.
        token_indices_sorted_by_lora_ids: (m,) tokens, those of one adapter side by side.
        num_tokens_per_lora: (max_loras + 1,) tokens of each slot.
        lora_token_start_loc: (max_loras + 2,) where a slot's tokens start in the sorted ones.
        lora_ids: (max_loras + 1,) adapter of each slot in ascending order, -1 (no LoRA) first;
            slots that are not in use follow and are -1 too.
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
        max_loras: Adapters that there is room for.

    Raises:
        InputError: A token has an adapter that there is no room for.
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
    """The tensors of ``token_metadata`` on PyTorch's ``meta`` device: sizes, and no numbers."""

    def empty(size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int32, device="meta")

    return TokenMetadata(
        token_lora_mapping=empty(num_tokens),
        token_indices_sorted_by_lora_ids=empty(num_tokens),
        num_tokens_per_lora=empty(max_loras + 1),
        lora_token_start_loc=empty(max_loras + 2),
        lora_ids=empty(max_loras + 1),
    )
