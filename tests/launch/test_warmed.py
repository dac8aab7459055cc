"""The batch sizes that come after a server's start: those looked at stand for all."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from autotune.launch.binary import binary_of
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.warmed import WarmedSizes

SHRINK = KernelShape.from_mapping(
    {"op": "shrink", "num_tokens": 1, "hidden_size": 4096, "rank": 8, "max_loras": 8}
)
EXPAND = KernelShape.from_mapping(
    {"op": "expand", "num_tokens": 1, "slice_sizes": [4096, 1024], "rank": 1, "max_loras": 8}
)


def config(row: int) -> KernelConfig:
    """Another configuration for every row."""
    return KernelConfig(block_m=row, block_n=16, block_k=16, num_warps=4, num_stages=2)


def nearest(size: int, rows: list[int]) -> int:
    return min(sorted(rows), key=lambda row: abs(row - size))


ROWS = st.lists(st.integers(1, 900), min_size=1, max_size=12)
RANGES = st.lists(
    st.tuples(st.integers(1, 900), st.integers(0, 300)).map(lambda p: range(p[0], sum(p))),
    max_size=2,
)


@given(rows=ROWS, later=RANGES, kind=st.sampled_from([SHRINK, EXPAND]))
def test_the_sizes_of_a_row_need_every_kernel_that_a_later_size_needs(rows, later, kind):
    found = WarmedSizes((), tuple(later)).later_of_rows(rows)

    def binary(size: int, row: int) -> object:
        return binary_of(replace(kind, num_tokens=size), config(row))

    of_all = {binary(size, nearest(size, rows)) for sizes in later for size in sizes}
    assert {binary(size, row) for row, sizes in found.items() for size in sizes} == of_all
    assert all(nearest(size, rows) == row for row, sizes in found.items() for size in sizes)


def test_a_long_stretch_is_looked_at_by_its_ends_only():
    (sizes,) = WarmedSizes((), (range(513, 100_000),)).later_of_rows([512]).values()
    assert len(sizes) == 32
