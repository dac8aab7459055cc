"""Which experts each token goes to, and how rows are sorted and padded into blocks of one expert.

Plain PyTorch on any device, without a loop. Of a configuration only ``block_m`` matters here.
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
        """The same routing on a device."""
        return Routing(topk_ids=self.topk_ids.to(device), topk_weights=self.topk_weights.to(device))


def route(shape: KernelShape, seed: int) -> Routing:
    """Choose experts as the shape's ``routing`` says; the same seed gives the same on any device.

    ``uniform``: all experts are equally likely. ``zipf``: the n-th most popular expert is n times
    less likely than the first; the order of popularity is drawn. ``hit=N``: N experts are drawn and
    given to the rows in turn, so that all of them get rows if there are enough. With expert
    parallelism the experts of all devices are drawn from, and the first ``num_experts`` are on this
    device. At least one row goes to an expert on this device, since a launch without work has no
    speed.

    Weights lie around 1, where vLLM's lie around 1/top_k, so that a missing row shows as clearly as
    in the dense ops. No kernel's speed depends on them.

    Args:
        shape: The shape of a MoE op.
        seed: Seed of every random value.

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
        # The top_k experts of a token follow each other in turn. They differ, since top_k <= hit.
        return order[torch.arange(shape.num_tokens * shape.top_k) % hit].view(pairs)
    # Gumbel's trick: with Gumbel noise the largest of log(weight) + noise is a draw by weight, and
    # the top_k largest are top_k draws without replacement.
    noise = -torch.empty(shape.num_tokens, experts).exponential_(generator=generator).log()
    if kind == "zipf":
        noise -= (order + 1).log()  # (experts,): order is the rank of each in popularity
    return noise.topk(shape.top_k, dim=1).indices


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alignment:
    """Which rows each block of ``block_m`` works on; all int32.

    Attributes:
        sorted_token_ids: (max_loras, padded) rows of each adapter, sorted by expert. Each expert's
            rows are padded to whole blocks with the number of rows, which stands for no row. None
            where blocks are assigned naively: then block i is row i.
        expert_ids: (max_loras, blocks) expert of each block, -1 for a block without rows. Where
            blocks are assigned naively, (rows,).
        num_tokens_post_padded: (max_loras,) how many of the sorted rows are in use, with padding.
            None where blocks are assigned naively.
    """

    sorted_token_ids: torch.Tensor | None
    expert_ids: torch.Tensor
    num_tokens_post_padded: torch.Tensor | None


def align(
    shape: KernelShape, topk_ids: torch.Tensor, token_lora_mapping: torch.Tensor, block_m: int
) -> Alignment:
    """Sort and pad the rows as vLLM does before the four kernels of a layer.

    Sizes and layout are those of ``moe_lora_align_block_size`` (vLLM 0.33.0,
    ``vllm/lora/punica_wrapper/punica_gpu.py``). Rows of one expert stay in order here; in vLLM
    their order changes from run to run.

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
    # A group is the rows of one expert of one adapter; an adapter's groups lie side by side.
    group_of_row = lora_of_row[used] * experts + topk_ids.reshape(-1)[used]  # (used rows,)
    counts = torch.bincount(group_of_row, minlength=loras * experts)  # (groups,)
    group_blocks = (counts + block_m - 1) // block_m  # (groups,)
    first_block = _starts(group_blocks.view(loras, experts)).view(-1)  # (groups,) in its adapter

    of_row, order = group_of_row.sort(stable=True)  # (used rows,) each
    place = of_row // experts * padded + first_block[of_row] * block_m + _within(of_row, counts)
    sorted_token_ids = topk_ids.new_full((loras * padded,), rows, dtype=torch.int32)
    sorted_token_ids[place] = used[order].to(torch.int32)

    groups = torch.arange(loras * experts, device=used.device)
    of_block = groups.repeat_interleave(group_blocks)  # (blocks in use,)
    place = of_block // experts * blocks + first_block[of_block] + _within(of_block, group_blocks)
    expert_ids = topk_ids.new_full((loras * blocks,), NO_EXPERT, dtype=torch.int32)
    expert_ids[place] = (of_block % experts).to(torch.int32)
    return Alignment(
        sorted_token_ids=sorted_token_ids.view(loras, padded),
        expert_ids=expert_ids.view(loras, blocks),
        num_tokens_post_padded=(group_blocks.view(loras, experts).sum(1) * block_m).to(torch.int32),
    )


def pairs_hit(shape: KernelShape, token_lora_mapping: torch.Tensor, seed: int) -> int:
    """How many (adapter, expert) pairs get a row, so that their weights are read.

    Args:
        shape: The shape of a MoE op.
        token_lora_mapping: (m,) adapter of each token, -1 for none, on the CPU.
        seed: Seed of the routing.
    """
    topk_ids = route(shape, seed).topk_ids
    lora_of_row = rows_here(shape, token_lora_mapping, topk_ids).long()  # (rows,)
    groups = lora_of_row * shape.num_experts + topk_ids.reshape(-1)  # (rows,)
    return len(torch.unique(groups[lora_of_row != NO_LORA]))


def rows_here(
    shape: KernelShape, token_lora_mapping: torch.Tensor, topk_ids: torch.Tensor
) -> torch.Tensor:
    """(rows,) adapter of each (token, expert) pair; -1 for none, or an expert not on this device.

    Args:
        shape: The shape of a MoE op.
        token_lora_mapping: (m,) adapter of each token, -1 for none.
        topk_ids: (m, top_k) experts of each token, those of all devices.
    """
    loras = token_lora_mapping.repeat_interleave(shape.top_k)  # (rows,)
    return loras.masked_fill(topk_ids.reshape(-1) >= shape.num_experts, NO_LORA)


def _starts(counts: torch.Tensor) -> torch.Tensor:
    """Where each group starts if groups of these sizes follow each other along the last axis."""
    return counts.cumsum(-1) - counts


def _within(groups: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The number of each item within its group, from 0.

    Args:
        groups: (items,) group of each item, ascending.
        counts: (groups,) how many items each group has.
    """
    return torch.arange(len(groups), device=groups.device) - _starts(counts)[groups]
