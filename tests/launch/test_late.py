"""Kernels that a server compiles after its start."""

from __future__ import annotations

from autotune.launch.late import Compiled, ServedKernel
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.launch.warmed import WarmedSizes
from tests.measure.kernels.cases import make_config, shrink_shape

SMALL, LARGE = make_config(LoraOp.SHRINK), make_config(LoraOp.SHRINK, block_m=64)


def kernel(warmed: tuple[int, ...], *later: range, kind: KernelShape | None = None) -> ServedKernel:
    """A kernel with small tiles up to 100 tokens, and large ones beyond."""
    return ServedKernel(
        kind=kind or shrink_shape(rank=16),
        sizes=WarmedSizes(warmed, later),
        rows=(100, 101),
        config_at=lambda size: SMALL if size <= 100 else LARGE,
    )


def late(*kernels: ServedKernel) -> set[tuple[int, int]]:
    """The first batch size of every late kernel, and its ``block_m``."""
    return {
        (shape.num_tokens, config.block_m) for shape, config in Compiled.of(kernels).late.values()
    }


def test_a_configuration_of_the_start_is_late_at_the_other_kind_of_batch_size():
    steps = range(65, 513)
    assert late(kernel((1, 2, 16, 64, 512), steps)) == {(101, 64)}
    assert late(kernel((1, 2, 16, 64, 511, 512), steps)) == set()
    assert late(kernel((1, 2, 16, 64), steps)) == {(101, 64), (112, 64)}


def test_another_layers_start_launches_a_kernel_too():
    other = kernel((200, 208), kind=shrink_shape(rank=16, hidden_size=134))
    assert late(kernel((1, 2, 16), range(17, 300)), other) == set()


def test_without_graphs_one_token_is_a_kernel_of_its_own():
    assert late(kernel((64,), range(1, 65))) == {(1, 16), (2, 16)}


def test_a_size_at_which_vllm_stops_launches_nothing():
    stops = ServedKernel(
        kind=shrink_shape(),
        sizes=WarmedSizes((1,), (range(2, 9),)),
        rows=(1,),
        config_at=lambda _size: None,
    )
    assert Compiled.of([stops]) == Compiled({}, {})


def test_few_places_are_named_and_the_others_counted():
    kinds = [shrink_shape(rank=16, num_slices=n) for n in range(1, 7)]
    compiled = Compiled.of([kernel((), range(2, 16), kind=kind) for kind in kinds])
    text = compiled.late_text()
    assert text.startswith("shrink m=2,k=70,n=16,slices=1,")
    assert text.endswith("; and 2 more")
