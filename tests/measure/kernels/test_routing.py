"""Experts of tokens, and the rows that each block works on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.measure.kernels.routing import NO_EXPERT, Alignment, align, pairs_hit, route
from autotune.measure.kernels.tokens import spread_tokens
from tests.measure.kernels.cases import moe_shape

ROUTINGS = ("uniform", "zipf", "hit=3")


def shape_of(**changes: Any) -> KernelShape:
    return moe_shape(LoraOp.W13_SHRINK, **changes)


def experts_hit(shape: KernelShape, seed: int = 0) -> Counter[int]:
    """How many rows each expert gets."""
    return Counter(route(shape, seed).topk_ids.flatten().tolist())


# ------------------------------------------------------------------ routing


@pytest.mark.parametrize("routing", ROUTINGS)
@given(seed=st.integers(0, 2**32), num_tokens=st.integers(1, 50), top_k=st.integers(1, 3))
def test_the_experts_of_a_token_are_all_different(routing, seed, num_tokens, top_k):
    shape = shape_of(num_tokens=num_tokens, num_experts=6, top_k=top_k, routing=routing)

    routed = route(shape, seed)

    assert routed.topk_ids.shape == routed.topk_weights.shape == (num_tokens, top_k)
    assert routed.topk_ids.dtype is torch.int32
    assert routed.topk_weights.dtype is torch.float32
    assert all(len(set(row)) == top_k for row in routed.topk_ids.tolist())
    assert routed.topk_ids.min() >= 0
    assert routed.topk_ids.max() < 6
    assert routed.topk_weights.min() > 0


@pytest.mark.parametrize("routing", ROUTINGS)
def test_the_seed_decides_the_routing(routing):
    shape = shape_of(num_tokens=50, num_experts=8, routing=routing)
    first, again, other = (route(shape, seed) for seed in (1, 1, 2))

    assert torch.equal(first.topk_ids, again.topk_ids)
    assert torch.equal(first.topk_weights, again.topk_weights)
    assert not torch.equal(first.topk_ids, other.topk_ids)


def test_uniform_routing_gives_every_expert_about_as_many_rows():
    counts = experts_hit(shape_of(num_tokens=8000, num_experts=8, top_k=2))

    assert all(1800 < counts[expert] < 2200 for expert in range(8))


def test_zipf_routing_halves_the_rows_of_the_second_most_popular_expert():
    counts = experts_hit(shape_of(num_tokens=20_000, num_experts=64, top_k=1, routing="zipf"))
    first, second, third, *_, last = (number for _, number in counts.most_common())

    assert first / second == pytest.approx(2, rel=0.15)
    assert first / third == pytest.approx(3, rel=0.15)
    assert first / last > 30


def test_zipf_routing_does_not_always_prefer_the_same_expert():
    shape = shape_of(num_tokens=500, num_experts=32, top_k=1, routing="zipf")

    assert len({experts_hit(shape, seed).most_common(1)[0][0] for seed in range(8)}) > 1


@pytest.mark.parametrize(("num_tokens", "hit"), [(100, 7), (1, 7), (3, 2), (100, 16)])
def test_hit_routing_uses_that_many_experts_if_there_are_enough_rows(num_tokens, hit):
    shape = shape_of(num_tokens=num_tokens, num_experts=16, routing=f"hit={hit}")
    counts = experts_hit(shape)

    assert len(counts) == min(hit, 2 * num_tokens)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("routing", ["uniform", "zipf", "hit=8"])
@pytest.mark.parametrize("seed", range(20))
def test_with_expert_parallelism_some_token_always_goes_to_an_expert_that_is_here(routing, seed):
    shape = shape_of(num_tokens=1, num_experts=2, top_k=8, global_experts=256, routing=routing)

    topk_ids = route(shape, seed).topk_ids

    assert (topk_ids < 2).any()
    assert len(set(topk_ids[0].tolist())) == 8


# ------------------------------------------------------------------ alignment


@st.composite
def batches(draw: st.DrawFn) -> tuple[KernelShape, torch.Tensor, torch.Tensor, int]:
    """A shape whose tokens are sorted, with experts and adapters of its tokens, and a block_m."""
    experts = draw(st.integers(1, 40))
    top_k = draw(st.integers(1, min(4, experts)))
    max_loras = draw(st.integers(1, 4))
    mapping = draw(st.lists(st.integers(-1, max_loras - 1), min_size=1, max_size=60))
    never_naive: list[dict[str, Any]] = [{"fully_sharded": True}, {"global_experts": 2 * experts}]
    shape = shape_of(
        num_tokens=len(mapping),
        num_experts=experts,
        top_k=top_k,
        max_loras=max_loras,
        **draw(st.sampled_from(never_naive)),
    )
    ids = [draw(st.permutations(range(shape.global_experts)))[:top_k] for _ in mapping]
    block_m = draw(st.sampled_from([16, 32, 64]))
    return shape, torch.tensor(ids), torch.tensor(mapping, dtype=torch.int32), block_m


def blocks_of(made: Alignment, lora: int, block_m: int) -> list[tuple[int, list[int]]]:
    """Expert and rows of each block of an adapter that a kernel would work on."""
    assert made.sorted_token_ids is not None
    assert made.num_tokens_post_padded is not None
    in_use = int(made.num_tokens_post_padded[lora])
    assert in_use % block_m == 0
    assert in_use <= made.sorted_token_ids.shape[1]
    rows = made.sorted_token_ids[lora, :in_use].tolist()
    return [
        (int(made.expert_ids[lora, block]), rows[block * block_m : (block + 1) * block_m])
        for block in range(in_use // block_m)
    ]


@given(batches())
def test_every_row_with_a_lora_is_once_in_a_block_of_its_own_adapter_and_expert(batch):
    shape, topk_ids, mapping, block_m = batch
    made = align(shape, topk_ids, mapping, block_m)
    no_row = topk_ids.numel()

    seen = [
        (row, lora, expert)
        for lora in range(shape.max_loras)
        for expert, rows in blocks_of(made, lora, block_m)
        for row in rows
        if row != no_row
    ]

    wanted = [
        (token * shape.top_k + place, lora, expert)
        for token, lora in enumerate(mapping.tolist())
        if lora >= 0
        for place, expert in enumerate(topk_ids[token].tolist())
        if expert < shape.num_experts
    ]
    assert sorted(seen) == sorted(wanted)


@given(batches())
def test_experts_follow_each_other_and_only_their_last_block_is_padded(batch):
    shape, topk_ids, mapping, block_m = batch
    made = align(shape, topk_ids, mapping, block_m)
    no_row = topk_ids.numel()

    for lora in range(shape.max_loras):
        blocks = blocks_of(made, lora, block_m)
        assert [expert for expert, _ in blocks] == sorted(expert for expert, _ in blocks)
        for number, (expert, rows) in enumerate(blocks):
            is_last = number + 1 == len(blocks) or blocks[number + 1][0] != expert
            filled = [row for row in rows if row != no_row]
            assert filled, "no block without rows"
            assert rows == filled + [no_row] * (block_m - len(filled))
            assert is_last or len(filled) == block_m


@given(batches())
def test_unused_places_hold_no_row_and_no_expert(batch):
    shape, topk_ids, mapping, block_m = batch
    made = align(shape, topk_ids, mapping, block_m)
    assert made.sorted_token_ids is not None
    assert made.num_tokens_post_padded is not None

    for lora, in_use in enumerate(made.num_tokens_post_padded.tolist()):
        assert (made.sorted_token_ids[lora, in_use:] == topk_ids.numel()).all()
        assert (made.expert_ids[lora, in_use // block_m :] == NO_EXPERT).all()


@pytest.mark.parametrize(
    ("num_tokens", "experts", "padded"),
    [
        (24, 4, 48 + 4 * 15),  # the rows, and for each expert what it may lack to a whole block
        (3, 8, 6 * 16),  # fewer rows than experts: a block for each
    ],
)
def test_alignments_have_the_sizes_that_vllm_allocates(num_tokens, experts, padded):
    shape = shape_of(num_tokens=num_tokens, num_experts=experts, max_loras=3)
    made = align(shape, route(shape, 0).topk_ids, spread_tokens(shape, 0), 16)

    assert made.sorted_token_ids is not None
    assert made.num_tokens_post_padded is not None
    assert made.sorted_token_ids.shape == (3, padded)
    assert made.expert_ids.shape == (3, -(-padded // 16))
    assert made.num_tokens_post_padded.shape == (3,)
    for each in (made.sorted_token_ids, made.expert_ids, made.num_tokens_post_padded):
        assert each.dtype is torch.int32
        assert each.is_contiguous()


@pytest.mark.parametrize(
    ("changes", "is_naive"),
    [
        ({"num_tokens": 4}, True),  # 8 rows * 8 <= 32 experts * 2 adapters
        ({"num_tokens": 5}, False),
        ({"num_tokens": 5, "max_loras": 3}, True),
        ({"num_tokens": 4, "fully_sharded": True}, False),
        ({"num_tokens": 4, "global_experts": 64}, False),
    ],
)
def test_few_rows_among_many_experts_are_a_block_each_and_not_sorted(changes, is_naive):
    shape = shape_of(**{"num_experts": 32, **changes})
    topk_ids = route(shape, 0).topk_ids
    made = align(shape, topk_ids, spread_tokens(shape, 0), 16)

    assert (made.sorted_token_ids is None) is is_naive
    assert (made.num_tokens_post_padded is None) is is_naive
    assert (made.expert_ids.tolist() == topk_ids.flatten().tolist()) is is_naive


@given(batches())
def test_the_pairs_that_are_hit_are_the_experts_with_a_block(batch):
    shape, _, mapping, block_m = batch
    made = align(shape, route(shape, 3).topk_ids, mapping, block_m)

    hit = {
        (lora, expert)
        for lora in range(shape.max_loras)
        for expert, _ in blocks_of(made, lora, block_m)
    }
    assert pairs_hit(shape, mapping, 3) == len(hit)
