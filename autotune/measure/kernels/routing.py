"""Which expert each token goes to, and how its rows are sorted and padded into blocks for that.

Plain PyTorch on any device, without a loop. Knows no weights and no configuration but ``block_m``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autotune.errors import InputError
from autotune.launch.sizes import assigns_naively, launched_rows
from autotune.measure.kernels.tokens import NO_LORA

if TYPE_CHECKING:
    from autotune.launch.shape import KernelShape

#: What ``expert_ids`` holds for a block without rows.
NO_EXPERT = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Routing:
    """The experts of every token.

    Attributes:
        topk_ids: (m, top_k) int32, a token's experts, all different.
        topk_weights: (m, top_k) float32, what each expert's result is multiplied by.
    """

    topk_ids: torch.Tensor
    topk_weights: torch.Tensor

    def to(self, device: torch.device) -> Routing:
        """The same on a device."""
        return Routing(topk_ids=self.topk_ids.to(device), topk_weights=self.topk_weights.to(device))


def route(shape: KernelShape, seed: int) -> Routing:
    """Choose experts as the shape's ``routing`` says; the seed decides, whatever the device.

    ``uniform``: any ``top_k`` of them. ``zipf``: the n-th most popular expert is n times less
    likely than the first; which one that is, is drawn. ``hit=N``: N experts that are drawn, dealt
    out in turn, so that all of them get rows if there are enough. With expert parallelism they are
    drawn from all devices' experts, of which the first ones are here, and one of them is always
    among those chosen: a launch with nothing to do has no speed.

    Weights lie around 1, and not in vLLM's 1/top_k, so that a row that is missing shows as much as
    in the dense ops. No kernel's speed depends on them.

    Args:
        shape: The shape of a MoE op.
        seed: Of every random value.

    Returns:
        The routing, on the CPU.

    Raises:
        InputError: There are fewer experts to choose from than ``top_k``.
    """
    generator = torch.Generator().manual_seed(seed)
    topk_ids = _choose(shape, generator)  # (m, top_k)
    if not (topk_ids < shape.num_experts).any():
        topk_ids[0, 0] = 0
    weights = torch.rand(topk_ids.shape, generator=generator) + 0.5  # (m, top_k)
    return Routing(topk_ids=topk_ids.to(torch.int32), topk_weights=weights)


def _choose(shape: KernelShape, generator: torch.Generator) -> torch.Tensor:
    experts, pairs = shape.global_experts, (shape.num_tokens, shape.top_k)
    kind, _, number = shape.routing.partition("=")
    hit = int(number) if kind == "hit" else experts
    if not shape.top_k <= hit <= experts:
        raise InputError(
            f"routing must leave {shape.top_k} to {experts} experts (top_k to num_experts): "
            f"got {shape.routing!r}"
        )
    order = torch.randperm(experts, generator=generator)  # (experts,)
    if kind == "hit":
        # Neighbours in the deal are different experts, as a token's are: top_k <= hit.
        return order[torch.arange(shape.num_tokens * shape.top_k) % hit].view(pairs)
    # Gumbel's trick: the largest of log(weight) + noise is a draw by weight, and the top_k largest
    # are top_k draws without putting back.
    noise = -torch.empty(shape.num_tokens, experts).exponential_(generator=generator).log()
    if kind == "zipf":
        noise -= (order + 1).log()  # (experts,): order is the popularity of each
    return noise.topk(shape.top_k, dim=1).indices


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alignment:
    """Which rows each block of ``block_m`` works on; all int32.

    Attributes:
        sorted_token_ids: (max_loras, padded) rows by adapter and expert, each expert's padded to
            whole blocks with the number of all rows, which is no row. None where blocks are
            assigned naively: block i then is row i.
        expert_ids: (max_loras, blocks) expert of each block, -1 without rows; naive: (rows,).
        num_tokens_post_padded: (max_loras,) how many of the sorted ones are in use, padding and
            all; None where blocks are assigned naively.
    """

    sorted_token_ids: torch.Tensor | None
    expert_ids: torch.Tensor
    num_tokens_post_padded: torch.Tensor | None


def align(
    shape: KernelShape, topk_ids: torch.Tensor, token_lora_mapping: torch.Tensor, block_m: int
) -> Alignment:
    """Sort and pad the rows as vLLM does before the four kernels of a layer.

    Sizes and layout are those of ``moe_lora_align_block_size`` (vLLM 0.33.0,
    ``vllm/lora/punica_wrapper/punica_gpu.py``). Rows of one expert stay in order here, while
    vLLM's order changes from run to run.

    Args:
        shape: The shape of a MoE op.
        topk_ids: (m, top_k) experts of each token.
        token_lora_mapping: (m,) adapter of each token, -1 for none.
        block_m: Rows of a block.
    """
    if assigns_naively(shape):
        return Alignment(
            sorted_token_ids=None,
            expert_ids=topk_ids.reshape(-1).to(torch.int32),  # (rows,)
            num_tokens_post_padded=None,
        )
    loras, experts, rows = shape.max_loras, shape.num_experts, topk_ids.numel()
    padded = launched_rows(shape, block_m)
    blocks = -(-padded // block_m)
    lora_of_row = rows_here(shape, token_lora_mapping, topk_ids).long()  # (rows,)
    used = (lora_of_row != NO_LORA).nonzero().squeeze(1)  # (used rows,)
    # A group is one expert of one adapter; groups of an adapter lie side by side.
    group_of_row = lora_of_row[used] * experts + topk_ids.reshape(-1)[used]  # (used rows,)
    counts = torch.bincount(group_of_row, minlength=loras * experts)  # (groups,)
    group_blocks = (counts + block_m - 1) // block_m  # (groups,)
    first_block = _starts(group_blocks.view(loras, experts)).view(-1)  # (groups,) in its adapter

    sorted_group, order = group_of_row.sort(stable=True)  # (used rows,) each
    within = torch.arange(len(used), device=used.device) - _starts(counts)[sorted_group]
    place = sorted_group // experts * padded + first_block[sorted_group] * block_m + within
    sorted_token_ids = topk_ids.new_full((loras * padded,), rows, dtype=torch.int32)
    sorted_token_ids[place] = used[order].to(torch.int32)

    group_of_block = torch.arange(loras * experts, device=used.device).repeat_interleave(
        group_blocks
    )  # (blocks in use,)
    number = torch.arange(len(group_of_block), device=used.device)
    within = number - _starts(group_blocks)[group_of_block]
    place = group_of_block // experts * blocks + first_block[group_of_block] + within
    expert_ids = topk_ids.new_full((loras * blocks,), NO_EXPERT, dtype=torch.int32)
    expert_ids[place] = (group_of_block % experts).to(torch.int32)
    return Alignment(
        sorted_token_ids=sorted_token_ids.view(loras, padded),
        expert_ids=expert_ids.view(loras, blocks),
        num_tokens_post_padded=(group_blocks.view(loras, experts).sum(1) * block_m).to(torch.int32),
    )


def pairs_hit(shape: KernelShape, token_lora_mapping: torch.Tensor, seed: int) -> int:
    """How many (adapter, expert) pairs get a row, and so have their weights read.

    Args:
        shape: The shape of a MoE op.
        token_lora_mapping: (m,) adapter of each token, -1 for none, on the CPU.
        seed: Of the routing.
    """
    topk_ids = route(shape, seed).topk_ids
    lora_of_row = rows_here(shape, token_lora_mapping, topk_ids).long()  # (rows,)
    groups = lora_of_row * shape.num_experts + topk_ids.reshape(-1)  # (rows,)
    return len(torch.unique(groups[lora_of_row != NO_LORA]))


def rows_here(
    shape: KernelShape, token_lora_mapping: torch.Tensor, topk_ids: torch.Tensor
) -> torch.Tensor:
    """(rows,) adapter of each (token, expert) pair, -1 for none and for experts elsewhere.

    Args:
        shape: The shape of a MoE op.
        token_lora_mapping: (m,) adapter of each token, -1 for none.
        topk_ids: (m, top_k) experts of each token, on whatever device.
    """
    loras = token_lora_mapping.repeat_interleave(shape.top_k)  # (rows,)
    return loras.masked_fill(topk_ids.reshape(-1) >= shape.num_experts, NO_LORA)


def _starts(counts: torch.Tensor) -> torch.Tensor:
    """Where each of several lots starts if they lie one behind the other, along the last axis."""
    return counts.cumsum(-1) - counts
