"""The kernels of each provider on a real GPU, and compiling them in a process without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure.cuda.gpu import describe_device
from autotune.measure.kernels import KernelProvider
from autotune.measure.kernels.defaults import default_config
from autotune.measure.kernels.inputs import make_inputs
from autotune.measure.kernels.reference import Check, check_result, error_bound, expect
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]

#: Per case: tokens, hidden size, rank, slices, and the configuration; None is vLLM's default.
SHRINKS: dict[str, tuple[int, int, int, int, tuple[int, ...] | None]] = {
    "one token, vLLM's default": (1, 4096, 16, 1, None),
    "decode, vLLM's default": (16, 4096, 64, 3, None),
    "prefill, vLLM's default": (2048, 4096, 64, 3, None),
    "no split": (16, 2048, 8, 1, (16, 16, 64, 1, 8, 4, 3)),
    "deep split": (64, 14336, 16, 1, (16, 16, 128, 16, 8, 2, 4)),
    "k that no block divides": (33, 2000, 32, 2, (32, 32, 64, 4, 1, 4, 2)),
    "wide rank": (257, 4096, 256, 2, (64, 128, 64, 2, 4, 8, 3)),
    "grouped": (1000, 1024, 128, 1, (64, 64, 32, 8, 4, 4, 4)),
}

#: Per case: tokens, slice sizes, rank, whether it adds, and the configuration.
EXPANDS: dict[str, tuple[int, tuple[int, ...], int, bool, tuple[int, ...] | None]] = {
    "one token, vLLM's default": (1, (4096,), 16, True, None),
    "qkv decode, vLLM's default": (16, (4096, 1024, 1024), 64, True, None),
    "prefill, vLLM's default": (2048, (14336, 14336), 64, True, None),
    "overwriting": (128, (4096, 4096), 16, False, (32, 64, 16, 4, 2)),
    "n that no block divides": (33, (1000, 200, 72), 32, True, (16, 128, 32, 4, 3)),
    "rank that no block divides": (16, (2048,), 8, False, (16, 64, 16, 2, 2)),
    "wide rank": (257, (4096,), 256, True, (64, 128, 64, 8, 2)),
    "many stages": (1000, (2048, 2048), 128, True, (64, 64, 32, 4, 4)),
}

DTYPES = ["bfloat16", "float16"]

each_dtype = pytest.mark.parametrize("dtype", DTYPES)


#: Runs in a process that sees no GPU: compiles the jobs on standard input for a target.
COMPILE = """
import json, sys
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Target
from autotune.launch.shape import KernelShape
from autotune.measure.kernels import provider

name, jobs, (capability, *others) = json.load(sys.stdin)
target = Target(
    capability=tuple(capability), multiprocessors=others[0], shared_memory_bytes=others[1]
)
kernels = provider(name)
for shape, config in jobs:
    shape = KernelShape.from_mapping(shape)
    config = KernelConfig.from_mapping(shape.op, config)
    kernels.compile(shape, config, target)
"""

#: Runs in a process with the GPU: launches the same jobs and checks their numbers.
LAUNCH = """
import json, sys
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure.kernels import provider
from autotune.measure.kernels.inputs import make_inputs
from autotune.measure.kernels.reference import check_result, expect

name, jobs, _ = json.load(sys.stdin)
kernels = provider(name)
for shape, config in jobs:
    shape = KernelShape.from_mapping(shape)
    config = KernelConfig.from_mapping(shape.op, config)
    inputs = make_inputs(
        shape, device="cuda", weight_sets=1, seed=0, pair=kernels.runs_pair(shape)
    )

    def launch():
        kernels.launch(inputs, config, 0)
        kernels.collect(inputs, config)

    check = check_result(launch, inputs, expect(inputs))
    if check.problem:
        sys.exit(f"{shape.label}: {check.problem}")
"""


def shrink_case(name: str, dtype: str) -> tuple[KernelShape, KernelConfig]:
    num_tokens, hidden_size, rank, num_slices, values = SHRINKS[name]
    shape = KernelShape.from_mapping(
        {
            "op": "shrink",
            "num_tokens": num_tokens,
            "hidden_size": hidden_size,
            "rank": rank,
            "num_slices": num_slices,
            "max_loras": 4,
            "dtype": dtype,
        }
    )
    return shape, config_of(shape, values)


def expand_case(name: str, dtype: str) -> tuple[KernelShape, KernelConfig]:
    num_tokens, slice_sizes, rank, add_inputs, values = EXPANDS[name]
    shape = KernelShape.from_mapping(
        {
            "op": "expand",
            "num_tokens": num_tokens,
            "slice_sizes": slice_sizes,
            "rank": rank,
            "add_inputs": add_inputs,
            "max_loras": 4,
            "dtype": dtype,
        }
    )
    return shape, config_of(shape, values)


def config_of(shape: KernelShape, values: tuple[int, ...] | None) -> KernelConfig:
    if values is None:
        return default_config(shape)
    names = [name for name in shape.op.parameters if name != "num_ctas"]
    return KernelConfig.from_mapping(shape.op, dict(zip(names, values, strict=True)))


def with_idle_tokens(shape: KernelShape) -> torch.Tensor:
    """Adapters in turn, every fifth token without one, and one adapter without a token."""
    tokens = torch.arange(shape.num_tokens)
    return torch.where(tokens % 5 == 4, -1, tokens % (shape.max_loras - 1))


def check(
    kernels: KernelProvider,
    shape: KernelShape,
    config: KernelConfig,
    mapping: torch.Tensor | None = None,
) -> Check:
    inputs = make_inputs(shape, device="cuda", weight_sets=2, seed=11, token_lora_mapping=mapping)
    expected = expect(inputs, weight_set=1)
    kernels.launch(inputs, config, 0)
    return check_result(lambda: kernels.launch(inputs, config, 1), inputs, expected)


@each_dtype
@pytest.mark.parametrize("name", SHRINKS)
def test_shrink_is_right(kernels, name, dtype):
    shape, config = shrink_case(name, dtype)

    assert check(kernels, shape, config).problem == ""
    assert check(kernels, shape, config, with_idle_tokens(shape)).problem == ""


@each_dtype
@pytest.mark.parametrize("name", EXPANDS)
def test_expand_is_right(kernels, name, dtype):
    shape, config = expand_case(name, dtype)

    assert check(kernels, shape, config).problem == ""
    assert check(kernels, shape, config, with_idle_tokens(shape)).problem == ""


@each_dtype
@pytest.mark.parametrize("make_case", [shrink_case, expand_case])
def test_the_error_of_a_right_kernel_lies_well_below_its_bound(kernels, make_case, dtype):
    shape, config = make_case("prefill, vLLM's default", dtype)

    error = check(kernels, shape, config).relative_error

    assert 0 < error < error_bound(shape) / 3


@pytest.mark.parametrize("make_case", [shrink_case, expand_case])
def test_launches_captured_in_a_graph_replay_right(kernels, make_case):
    shape, config = make_case("one token, vLLM's default", "bfloat16")
    inputs = make_inputs(shape, device="cuda", weight_sets=1, seed=0)
    kernels.launch(inputs, config, 0)  # loads the kernel, which a capture cannot
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.launch(inputs, config, 0)

    assert check_result(graph.replay, inputs, expect(inputs)).problem == ""


def test_a_launch_finds_what_a_process_without_a_gpu_has_compiled(kernels, tmp_path):
    jobs = [
        make_case(name, dtype)
        for make_case, cases in ((shrink_case, SHRINKS), (expand_case, EXPANDS))
        for name in cases
        for dtype in DTYPES
    ]
    message = json.dumps(
        (
            kernels.name,
            [(shape.as_dict(), config.as_dict()) for shape, config in jobs],
            target_facts(),
        )
    )

    run_script(COMPILE, message, tmp_path, CUDA_VISIBLE_DEVICES="")
    compiled = cached_kernels(tmp_path)
    run_script(LAUNCH, message, tmp_path)

    assert len(compiled) == len(jobs)
    assert cached_kernels(tmp_path) == compiled


@pytest.mark.parametrize("make_case", [shrink_case, expand_case])
@pytest.mark.parametrize("flag", ["dual_stream", "specialize_active_lora"])
def test_a_servers_flags_leave_the_numbers_right_one_after_the_other(kernels, make_case, flag):
    """From Hopper on dependent launches overlap; captured, as a server replays them."""
    shape, config = make_case("prefill, vLLM's default", "bfloat16")
    shape = KernelShape.from_mapping(shape.as_dict() | {flag: True, "active_loras": 2})
    inputs = make_inputs(shape, device="cuda", weight_sets=2, seed=0)
    expected = expect(inputs, weight_set=1)
    kernels.launch(inputs, config, 0)  # loads the kernel, which a capture cannot
    kernels.launch(inputs, config, 1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        if not shape.add_inputs:  # what is overwritten may be written often
            for _ in range(5):
                kernels.launch(inputs, config, 0)
        kernels.launch(inputs, config, 1)

    assert check_result(graph.replay, inputs, expected).problem == ""


def target_facts() -> tuple[object, ...]:
    """The fields of this device's ``Target``."""
    return astuple(describe_device().target)


def run_script(script: str, message: str, cache: Path, **changes: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), **changes}
    run = subprocess.run(  # noqa: S603 - one of the scripts above
        [sys.executable, "-c", script],
        input=message,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def cached_kernels(cache: Path) -> set[Path]:
    return {path.relative_to(cache) for path in cache.rglob("*.cubin")}


def test_hopper_runs_expand_in_one_stage(kernels):
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("not a Hopper GPU")
    shape, config = expand_case("prefill, vLLM's default", "bfloat16")

    assert kernels.forced(shape, describe_device().target) == {"num_stages": 1}
    assert check(kernels, shape, config).problem == ""
