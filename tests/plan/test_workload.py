"""From kernels without a batch to shapes: how many there are, and which share an entry."""

from __future__ import annotations

import pytest

from autotune.errors import InputError
from autotune.launch.shape import KernelShape
from autotune.plan.workload import Kernel, Launched, Workload, one_an_entry

TOKENS = (1, 16, 64)


def workload(*kernels: Kernel, **options) -> Workload:
    return Workload.of(kernels, TOKENS, most_sampled=32, **options)


def kernel(layer: str, *slice_sizes: int, **more) -> Kernel:
    shape = expand(*slice_sizes).without_batch
    return Kernel(**{"place": layer, "layer": layer, "shape": shape, **more})


def expand(*slice_sizes: int) -> KernelShape:
    return KernelShape.from_mapping(
        {"op": "expand", "num_tokens": 16, "slice_sizes": slice_sizes, "rank": 16, "max_loras": 8}
    )


def test_kernels_that_are_alike_are_one_shape_with_all_their_layers_and_runs():
    found = workload(kernel("a", 512, runs=3), kernel("b", 512, runs=4))

    assert [each.shape.num_tokens for each in found.launched] == [1, 16, 64]
    assert {(each.names, each.runs) for each in found.launched} == {(("a", "b"), 7)}


def test_a_kernel_over_sampled_tokens_gets_at_most_one_a_sequence():
    found = workload(kernel("a", 512), kernel("b", 256, is_sampled=True))

    counts = [each.shape.num_tokens for each in found.launched if each.names == ("b",)]
    assert counts == [1, 16, 32]
    assert {shape.slice_sizes for shape in found.sampled} == {(256,)}


def test_a_shape_that_also_runs_over_all_tokens_is_not_sampled():
    found = workload(kernel("a", 512), kernel("b", 512, is_sampled=True))

    assert found.sampled == frozenset()
    assert [each.shape.num_tokens for each in found.launched] == [1, 16, 64, 32]


def test_a_kernel_with_a_batch_size_of_its_own_is_launched_at_no_other():
    found = workload(kernel("a", 512, shape=expand(512), has_own_batch=True), kernel("b", 256))

    counts = [each.shape.num_tokens for each in found.launched if each.names == ("a",)]
    assert counts == [16]


def test_a_kernel_without_a_layer_adds_no_name():
    found = workload(kernel("a", 512), kernel("", 512))

    assert {each.names for each in found.launched} == {("a",)}


def test_only_what_was_recorded_is_kept_on_request():
    found = workload(kernel("a", 512), recorded={expand(512), expand(64)})

    assert [each.shape for each in found.launched] == [expand(512)]
    assert found.notes == ("The recording holds 1 of the 3 shapes: the others are left out.",)
    with pytest.raises(InputError, match="the recording has none of the shapes"):
        workload(kernel("a", 512), recorded={expand(64)})


# ------------------------------------------------------------------ one key for two shapes


def test_two_kernels_with_one_entry_are_refused_unless_they_may_share_it():
    pair = [kernel("a", 512, 64, runs=1), kernel("b", 512, 256, runs=1)]

    with pytest.raises(
        InputError, match=r"b: vLLM looks it up as expand 9/2/1/16/512, like a, and"
    ):
        workload(*pair)
    shared = workload(*pair, may_share=True)
    assert {each.names for each in shared.launched} == {("b",)}
    assert len(shared.notes) == 1  # for three batch sizes


def test_of_two_layers_with_one_key_the_one_that_writes_more_is_tuned_and_a_line_says_so():
    small = Launched(shape=expand(512, 64), names=("a",), runs=10)  # 5,760 numbers a token
    large = Launched(shape=expand(512, 512), names=("b",), runs=8)  # 8,192
    other = Launched(shape=expand(256, 256), names=("c",), runs=99)

    kept, lines = one_an_entry([small, large, other])

    assert [each.names for each in kept] == [("b",), ("c",)]
    (line,) = lines
    assert line.startswith("vLLM has one entry for expand of b and of a, which differ: slice_sizes")
