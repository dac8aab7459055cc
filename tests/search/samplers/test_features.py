from __future__ import annotations

import numpy as np
import pytest

from autotune.launch.config import KernelConfig
from autotune.launch.listing import columns
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.search.samplers.features import NAMES, RAW, between_shapes, features, scaled
from autotune.testing.landscape import configs, shrink

CONFIG = KernelConfig(
    block_m=32, block_n=16, block_k=64, split_k=8, group_size_m=8, num_warps=4, num_stages=3
)
SHAPES = [
    shrink(),
    shrink(num_tokens=1),
    KernelShape.from_mapping(
        {"op": "expand", "num_tokens": 64, "slice_sizes": [4096, 1024], "rank": 16, "max_loras": 8}
    ),
    *(
        KernelShape.from_mapping(
            {"op": op.value, "num_tokens": tokens, "hidden_size": 2048, "rank": 256}
            | {"max_loras": 4, "num_experts": 64, "top_k": 6, "intermediate_size": 768}
            | {"routing": routing}
        )
        for op in LoraOp
        if op.is_moe
        for tokens in (1, 512)
        for routing in ("uniform", "zipf", "hit=8")
    ),
]


def figure(shape: KernelShape, name: str, config: KernelConfig = CONFIG) -> float:
    return float(features(shape, columns([config]))[0, NAMES.index(name)])


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.label)
def test_every_figure_of_every_kind_of_shape_is_finite(shape):
    raw = features(shape, columns([CONFIG, *configs()[::100]]))
    assert raw.shape == (42, len(NAMES))
    assert np.isfinite(raw).all()
    assert scaled(raw).shape == raw.shape


def test_raw_parameters_are_logarithms_but_for_the_stages():
    assert features(shrink(), columns([CONFIG]))[0, :RAW].tolist() == [5, 4, 6, 3, 3, 2, 3]


def test_a_shape_with_twice_the_depth_and_split_loops_as_long():
    twice = KernelConfig(**CONFIG.as_dict() | {"split_k": 16})
    assert figure(shrink(hidden_size=4096), "steps") == 3
    assert figure(shrink(hidden_size=8192), "steps", twice) == 3


def test_blocks_are_those_with_work_to_do():
    # 8 adapters of 32 tokens each, 4 columns of tiles, 8 parts of k.
    assert figure(shrink(num_tokens=256), "blocks") == 8
    # One token has one adapter.
    assert figure(shrink(num_tokens=1), "blocks") == 5


def test_rows_that_only_pad_are_counted():
    assert figure(shrink(num_tokens=256), "row_padding") == 0
    assert figure(shrink(num_tokens=64), "row_padding") == 2


def test_stages_of_a_masked_loop_make_no_difference():
    # 14336 is no multiple of 64 x 128, and the compiler pipelines no masked loop.
    masked = [{"block_k": 64, "split_k": 128, "num_stages": stages} for stages in (2, 3, 5)]
    shape = shrink(hidden_size=14336)
    ours = [KernelConfig(**CONFIG.as_dict() | each) for each in masked]
    rows = features(shape, columns(ours))
    assert (rows == rows[0]).all()
    even = [KernelConfig(**CONFIG.as_dict() | each | {"split_k": 32}) for each in masked]
    assert len(np.unique(features(shape, columns(even)), axis=0)) == 3


def test_registers_are_short_from_some_accumulators_a_thread_on():
    fits = KernelConfig(**CONFIG.as_dict() | {"block_m": 64, "block_n": 64})  # 32 of 128 threads
    spills = KernelConfig(**CONFIG.as_dict() | {"block_m": 128, "block_n": 128})
    assert figure(shrink(), "register_excess", fits) == 0
    assert figure(shrink(), "register_excess", spills) == pytest.approx(1.5)


def test_between_shapes_the_sizes_count_and_within_one_they_do_not():
    shapes = [shrink(num_slices=slices) for slices in (1, 2)]
    here, there = (between_shapes(each, features(each, columns(configs()[:9]))) for each in shapes)
    within = scaled(features(shrink(), columns(configs()[:9])))
    apart = np.linalg.norm(here[0] - here[1:], axis=1)
    assert np.allclose(apart, np.linalg.norm(within[0] - within[1:], axis=1))
    assert (np.linalg.norm(here - there, axis=1) > 2).all()
