"""Which launches share a compiled kernel, as Triton itself tells the kernels of each release apart.

Its key of a launch is made from the arguments that vLLM's own wrappers pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autotune.launch.binary import binary_of
from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from tests.measure.kernels.cases import H100, expand_shape, make_config, moe_shape, shrink_shape
from tests.vllm.conftest import need
from tests.vllm.process import Prepared
from tests.vllm.releases import NEWEST, RELEASES
from tests.vllm.test_provider import MOE_RELEASES, run_with

pytestmark = pytest.mark.vllm

#: Prints Triton's key of every launch: a configuration of a shape.
KEYS = """
found = []
for shape in shapes:
    inputs = inputs_without_memory(shape, pair=kernels.runs_pair(shape))
    for config in CONFIGS[shape.op.value]:
        kernels._call_as_on(
            H100, inputs, KernelConfig.from_mapping(shape.op, config),
            lambda kernel, grid, *given: found.append(kernel.fn.__name__ + key(kernel, *given)),
        )
print(json.dumps(found))
"""

#: One, multiples of 16, and others; small and large.
TOKENS = (1, 2, 4, 16, 24, 32, 33, 100, 512, 1000, 1024)

DENSE = [
    *(
        shrink_shape(num_tokens=m, **sizes)
        for m, sizes in itertools.product(
            TOKENS,
            (
                {"hidden_size": 256, "rank": 16},
                {"hidden_size": 512, "rank": 16},
                {"hidden_size": 256, "rank": 8, "num_slices": 2},
                {"hidden_size": 70, "rank": 1},
            ),
        )
    ),
    *(
        expand_shape(num_tokens=m, **sizes)
        for m, sizes in itertools.product(
            TOKENS,
            (
                {"slice_sizes": [64], "rank": 16},
                {"slice_sizes": [128], "rank": 16},
                {"slice_sizes": [70], "rank": 8},
                {"slice_sizes": [64, 64], "rank": 1},
                {"slice_sizes": [64, 32], "rank": 16},
                {"slice_sizes": [64], "rank": 16, "add_inputs": False},
            ),
        )
    ),
]

_LAYER = {"hidden_size": 64, "num_experts": 8, "top_k": 2, "intermediate_size": 48}

#: Of MoE ops every kernel at all batch sizes: the two kernels of an op, and the one of both.
MOE = [
    [moe_shape(op, **_LAYER | {"rank": rank}, num_tokens=m) for m in TOKENS]
    for op in LoraOp
    if op.is_moe
    for rank in (16, 128, 256)
]


def configs_of(op: LoraOp) -> list[KernelConfig]:
    changes: list[dict[str, int]] = [{}, {"block_n": 32}, {"block_k": 32}, {"num_warps": 2}]
    changes += [{"block_m": 32}, {"num_stages": 3}]
    changes += [] if op is LoraOp.EXPAND else [{"group_size_m": 4}, {"split_k": 2}]
    return [make_config(op, **each) for each in changes]


def launches(shapes: list[KernelShape]) -> Iterator[tuple[KernelShape, KernelConfig]]:
    yield from ((shape, config) for shape in shapes for config in configs_of(shape.op))


def keys(prepared: Prepared, release: Path, shapes: list[KernelShape], cache: Path) -> list[str]:
    configs = {op.value: [each.as_dict() for each in configs_of(op)] for op in LoraOp}
    script = f"CONFIGS = {configs}\n{KEYS}"
    found: list[str] = run_with(prepared, release, script, cache, shapes=shapes)
    return found


def classes(names: list[Any]) -> list[int]:
    """For each name the place of the first that equals it."""
    first: dict[Any, int] = {}
    return [first.setdefault(name, number) for number, name in enumerate(names)]


def differing(release: Path, shapes: list[KernelShape], found: list[str]) -> list[tuple[Any, ...]]:
    """The launches that the rule and Triton put with different earlier ones."""
    given = list(launches(shapes))
    ours = [binary_of(*each, release=release.name, target=H100) for each in given]
    return [
        (given[place], given[mine], given[theirs])
        for place, (mine, theirs) in enumerate(zip(classes(ours), classes(found), strict=True))
        if mine != theirs
    ]


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> Path:
    return need(request.param, request.config)


@pytest.mark.slow
def test_dense_launches_share_a_kernel_where_triton_says_so(release, tmp_path, prepared):
    found = keys(prepared, release, DENSE, tmp_path)

    assert differing(release, DENSE, found) == []


@pytest.mark.slow
def test_launches_of_a_moe_op_share_a_kernel_where_triton_says_so(release, tmp_path, prepared):
    if release.name not in MOE_RELEASES:
        pytest.skip("its MoE functions are not known")
    found = keys(prepared, release, [shape for kind in MOE for shape in kind], tmp_path)

    for shapes in MOE:
        count = sum(1 for _ in launches(shapes))
        assert differing(release, shapes, found[:count]) == []
        found = found[count:]


def test_both_halves_of_one_moe_kernel_are_one():
    halves = [moe_shape(op, **_LAYER) for op in (LoraOp.W13_SHRINK, LoraOp.W13_EXPAND)]
    binaries = {binary_of(each, make_config(each.op), release=NEWEST) for each in halves}
    assert len(binaries) == 1
