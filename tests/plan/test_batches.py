"""The batch sizes of a server: those that are captured, and those that are tuned."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import InputError
from autotune.plan.batches import Batches


def test_vllms_defaults_capture_its_documented_sizes():
    # 1, 2, 4, then every 8th up to 256, then every 16th up to 512.
    expected = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))

    assert Batches.of().captured == expected


def test_few_sequences_capture_up_to_twice_as_many():
    # 2 * 10 = 20: 1, 2, 4, 8, 16, and 10 itself, the largest batch of decoding.
    assert Batches.of(2048, 10).captured == (1, 2, 4, 8, 10, 16)


def test_no_batch_is_larger_than_the_server_allows():
    # 300 is no multiple of 16, and is captured since it is the largest there can be.
    batches = Batches.of(300)

    assert (batches.max_num_seqs, batches.captured[-3:]) == (300, (272, 288, 300))
    assert batches.grid[-1] == 300


def test_the_grid_is_thinned_and_goes_on_to_the_largest_prefill_step():
    assert Batches.of().grid == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    assert Batches.of(2048, 100).grid == (1, 2, 4, 8, 16, 32, 64, 128, 200, 400, 800, 1600, 2048)


@given(st.integers(1, 20_000), st.integers(1, 2000))
def test_a_grid_ascends_from_one_and_holds_the_largest_of_both(tokens, seqs):
    batches = Batches.of(max(tokens, seqs), seqs)

    grid, captured = batches.grid, batches.captured
    assert grid[0] == captured[0] == 1
    assert grid[-1] == batches.max_num_batched_tokens
    assert captured[-1] in grid
    assert set(grid) <= set(captured) | set(range(captured[-1], grid[-1] + 1))
    assert all(low < high for low, high in pairwise(grid))
    assert all(low < high for low, high in pairwise(captured))


def test_limits_that_vllm_refuses_are_refused():
    with pytest.raises(InputError, match="at least max_num_seqs: got 100 for 200"):
        Batches.of(100, 200)


# ------------------------------------------------------------------ what else the server is told


def test_drafted_tokens_are_decoded_with_each_sequence():
    """A step of decoding has a multiple of 4 tokens; the other sizes are for the rest."""
    batches = Batches.of(2048, 8, speculative_tokens=3)

    assert batches.captured == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
    assert batches.most_sampled == 32


def test_up_to_0_28_every_captured_size_is_a_multiple_of_what_a_sequence_decodes():
    batches = Batches.of(2048, 8, speculative_tokens=2, release="0.28.0")

    assert batches.captured == (3, 6, 9, 18, 24, 33, 42, 48)


def test_sizes_that_are_given_are_captured():
    assert Batches.of(64, 8, cudagraph_capture_sizes=(100, 8, 2)).captured == (2, 8)
    assert Batches.of(max_cudagraph_capture_size=20).captured == (1, 2, 4, 8, 16)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"cudagraph_capture_sizes": (1, 8), "max_cudagraph_capture_size": 16},
            "must be the largest of cudagraph_capture_sizes, or be left out: got 16 for 8",
        ),
        (
            {"max_num_batched_tokens": 4, "speculative_tokens": 9, "release": "0.22.1"},
            "max_num_batched_tokens must be at least 10, as speculative_tokens is 9: got 4",
        ),
        (
            {"max_num_batched_tokens": 4, "cudagraph_capture_sizes": (8,)},
            r"cudagraph_capture_sizes must have a size of at most 4, .*: got \[8\]; give a smaller",
        ),
        (
            {"cudagraph_capture_sizes": (1,), "speculative_tokens": 3, "release": "0.22.1"},
            r"cudagraph_capture_sizes must have a size of at least 4, .* is 3: got \[1\]",
        ),
        (
            {"max_cudagraph_capture_size": 1, "speculative_tokens": 3, "release": "0.22.1"},
            "max_cudagraph_capture_size must be at least 4, .* is 3: got 1; give a larger",
        ),
    ],
)
def test_what_leaves_nothing_to_capture_is_refused(flags, message):
    with pytest.raises(InputError, match=message):
        Batches.of(**flags)


@given(
    tokens=st.integers(1, 5000),
    seqs=st.integers(1, 600),
    drafts=st.integers(0, 8),
    release=st.sampled_from(["0.11.1", "0.15.1", "0.22.1", "0.28.0", "0.33.0"]),
)
def test_a_grid_of_any_release_ascends_to_the_largest_prefill_step(tokens, seqs, drafts, release):
    batches = Batches.of(
        max(tokens, seqs) + drafts, seqs, speculative_tokens=drafts, release=release
    )

    assert batches.grid[-1] == batches.max_num_batched_tokens
    assert all(low < high for low, high in pairwise(batches.grid))
    assert set(batches.grid) & set(batches.captured)
