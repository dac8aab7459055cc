"""The vllm kernel provider on the real kernels of each release, without a GPU."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from autotune.launch.op import LoraOp
from autotune.launch.release import FIRST_ONE_SHOT_RELEASE, is_since
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import assigns_naively
from autotune.measure.kernels.defaults import default_config
from tests.measure.kernels.cases import expand_shape, moe_shape, shrink_shape
from tests.profiles import some
from tests.vllm.conftest import need
from tests.vllm.process import Prepared
from tests.vllm.releases import NEWEST, RELEASES

pytestmark = pytest.mark.vllm

#: Sizes of every kind: one slice and several, equal and not, divided by the blocks and not.
SHAPES = [
    shrink_shape(num_tokens=16, hidden_size=256, rank=16, num_slices=3),
    shrink_shape(num_tokens=5, hidden_size=70, rank=8),
    expand_shape(num_tokens=16, slice_sizes=[128, 32, 32], rank=16),
    expand_shape(num_tokens=17, slice_sizes=[40], rank=8, add_inputs=False),
    expand_shape(num_tokens=1, slice_sizes=[64, 64], rank=32),
]

_LAYER = {"hidden_size": 64, "rank": 256, "num_experts": 2, "top_k": 2, "intermediate_size": 48}

#: The same of MoE ops: sorted blocks and naive ones, slices together and one.
MOE_SHAPES = [
    moe_shape(LoraOp.W13_SHRINK, **_LAYER, num_tokens=5),
    moe_shape(LoraOp.W13_EXPAND, **_LAYER, num_tokens=5),
    moe_shape(LoraOp.W2_SHRINK, **_LAYER | {"rank": 16}, num_tokens=5, fully_sharded=True),
    moe_shape(LoraOp.W2_EXPAND, **_LAYER, num_tokens=5),
    moe_shape(LoraOp.W13_SHRINK, **_LAYER | {"num_experts": 32}, num_tokens=1),
    moe_shape(LoraOp.W13_EXPAND, **_LAYER, num_tokens=3, num_slices=1),
]

_NAIVE = {"num_experts": 32, "num_tokens": 1}

#: Where vLLM has one kernel for a shrink and the expand after it: sorted, naive, and of the
#: smallest batches, for which there is another.
PAIR_SHAPES = [
    moe_shape(LoraOp.W13_SHRINK, **_LAYER | {"rank": 16}, num_tokens=5),
    moe_shape(LoraOp.W13_EXPAND, **_LAYER | {"rank": 8}, num_tokens=5, num_slices=1),
    moe_shape(LoraOp.W2_SHRINK, **_LAYER | {"rank": 128}, num_tokens=5),
    moe_shape(LoraOp.W2_EXPAND, **_LAYER | {"rank": 64, "hidden_size": 70}, num_tokens=5),
    moe_shape(LoraOp.W13_EXPAND, **_LAYER | _NAIVE | {"rank": 128}),
    moe_shape(LoraOp.W13_SHRINK, **_LAYER | _NAIVE | {"rank": 16}),
    moe_shape(LoraOp.W2_SHRINK, **_LAYER | _NAIVE | {"rank": 8}),
]

#: Of each kind one: what is asked of the releases before the newest.
FEW_PAIR_SHAPES = some(
    PAIR_SHAPES[::3], [each for each in PAIR_SHAPES if each not in PAIR_SHAPES[::3]]
)

#: Releases whose MoE functions are known.
MOE_RELEASES = tuple(each for each in RELEASES if is_since(each, "0.17"))

#: What every script starts with. ``compiled`` compiles a shape of each op for two targets. ``keys``
#: gives what Triton's cache key is made of, with real tensors and with those without memory.
START = """
import json, sys
from dataclasses import replace
from functools import cache
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import create_function_from_signature
from autotune.errors import KernelsUnusable
from autotune.measure.kernels import provider
from autotune.measure.kernels.inputs import inputs_without_memory, make_inputs
from autotune.launch.shape import KernelShape
from autotune.launch.space import KernelConfig
from tests.measure.kernels.cases import A100, H100, make_config

shapes = [KernelShape.from_mapping(each) for each in json.load(sys.stdin)]
try:
    kernels = provider("vllm")
except KernelsUnusable as error:
    print(json.dumps({"refused": str(error)}))
    sys.exit()

def refusal(shape):
    try:
        kernels.forced(shape, H100)
    except KernelsUnusable as error:
        return str(error)
    return ""

def compiled():
    answers = []
    for shape in (shapes[0], shapes[2], *shapes[5:7]):
        small = make_config(shape.op)
        for config, target in ((small, A100), (small, H100), (replace(small, num_warps=2), H100)):
            kernel = kernels.compile(shape, config, target)
            answers.append([kernel.registers, kernel.spills, kernel.fingerprint])
    return answers

def compiled_pairs():
    answers = []
    for shape in filter(kernels.runs_pair, shapes):
        for block_m in (16, 32):
            config = replace(kernels.default(shape), block_m=block_m)
            answers.append(kernels.compile(shape, config, H100).fingerprint)
    return answers

def keys():
    found = []
    for shape in shapes:
        both, pair = [], kernels.runs_pair(shape)
        for inputs in (
            make_inputs(shape, device="cpu", weight_sets=1, seed=0, pair=pair),
            inputs_without_memory(shape, pair=pair),
        ):
            kernels._call_as_on(
                H100, inputs, make_config(shape.op),
                lambda kernel, grid, *given: both.append([grid, key(kernel, *given)]),
            )
        found.append(both)
    return found

def key(kernel, arguments, named):
    if hasattr(kernel, "values"):  # heuristics, around the kernel
        named = named | {
            name: value(dict(zip(kernel.arg_names, arguments)) | named)
            for name, value in kernel.values.items()
        }
        kernel = kernel.fn
    _, specialised, options = binder(kernel)(*arguments, **named)
    return repr((specialised, options))

@cache
def binder(kernel):
    return create_function_from_signature(
        kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32))
    )
"""

DESCRIBE = """
refusals = [refusal(shape) for shape in shapes]
shapes = [shape for shape, why in zip(shapes, refusals) if not why]
print(json.dumps({
    "version": kernels.version,
    "refusals": refusals,
    "defaults": [kernels.default(shape).as_dict() for shape in shapes],
    "forced": [[dict(kernels.forced(shape, t)) for t in (A100, H100)] for shape in shapes],
    "compiled": compiled(),
    "pairs": compiled_pairs(),
    "keys": keys(),
}))
"""

#: vLLM has found a GPU, and its platform for one needs compiled parts that are not there.
WITHOUT_COMPILED_PARTS = """
import json
import vllm.platforms as platforms
platforms.builtin_platform_plugins["cuda"] = lambda: "vllm.platforms.cuda.CudaPlatform"
from autotune.measure.kernels import provider
print(json.dumps(provider("vllm").version))
"""

#: Runs every shape twice, so that vLLM's tables of weights would be found again, on the CPU, each
#: time with other blocks. The interpreter goes through a MoE op's blocks one by one, so these are
#: large.
INTERPRET = """
import torch
from vllm.lora.ops.triton_ops import fused_moe_lora_op, utils
from autotune.measure.kernels.reference import check_result, expect
from autotune.measure.kernels.vllm_parts import answers_for

# What its MoE kernels ask of the device; without tensor memory accelerator, of which utils tells.
vars(fused_moe_lora_op).update(answers_for(H100))
# vLLM copies from pinned memory, which there is none of without a GPU.
for module in (utils, fused_moe_lora_op):
    module.async_tensor_h2d = lambda data, dtype, **_: torch.tensor(data, dtype=dtype)
problems = []
small, large = {"block_n": 64, "block_k": 32}, {"block_n": 128, "block_k": 64}
for is_again in (False, True):
    for shape in shapes:
        blocks = (small, large)[is_again] if shape.op.is_moe else ({}, {"block_n": 32})[is_again]
        pair = kernels.runs_pair(shape)
        inputs = make_inputs(shape, device="cpu", weight_sets=2, seed=0, pair=pair)
        config = make_config(shape.op, **blocks)
        kernels.launch(inputs, config, 0)
        check = check_result(
            lambda: kernels.launch(inputs, config, 1), inputs, expect(inputs, weight_set=1)
        )
        problems.append(check.problem)
print(json.dumps(problems))
"""


def run_with(
    prepared: Prepared,
    release: Path,
    script: str,
    cache: Path,
    *,
    shapes: Sequence[KernelShape] = SHAPES,
    start: str = START,
    **changes: str,
) -> Any:
    """What a script prints that is run with a release on its path."""
    lines = prepared.run(
        start + script,
        path=[release],
        given=[shape.as_dict() for shape in shapes],
        variables={"TRITON_CACHE_DIR": str(cache), **changes},
    )
    return json.loads(lines[-1])


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> Path:
    return need(request.param, request.config)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of compiled kernels, by their text: one that several releases have is compiled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def answer(
    release: Path, tmp_path_factory: pytest.TempPathFactory, prepared: Prepared, cache: Path
) -> Any:
    # A folder that is set does not change what the default is.
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "any_SHRINK.json").write_text("{}")
    return run_with(
        prepared,
        release,
        DESCRIBE,
        cache,
        shapes=asked_of(release),
        VLLM_TUNED_CONFIG_FOLDER=str(folder),
    )


def asked_of(release: Path) -> list[KernelShape]:
    """What a release is asked about."""
    pairs = PAIR_SHAPES if release.name == NEWEST else FEW_PAIR_SHAPES
    has_pairs = is_since(release.name, FIRST_ONE_SHOT_RELEASE)
    return SHAPES + MOE_SHAPES + (pairs if has_pairs else [])


def shapes_of(release: Path) -> list[KernelShape]:
    """What of that it can drive."""
    return asked_of(release) if release.name in MOE_RELEASES else SHAPES


@pytest.fixture
def newest(request: pytest.FixtureRequest) -> Path:
    return need(NEWEST, request.config)


def test_a_release_is_known_by_its_version(release, answer):
    assert answer["version"] == release.name


def test_what_a_release_forces_is_seen(release, answer):
    for shape, forced in zip(shapes_of(release), answer["forced"], strict=True):
        if shape in PAIR_SHAPES:
            default = answer["defaults"][shapes_of(release).index(shape)]
            unread = set(default) if assigns_naively(shape) else set(default) - {"block_m"}
            assert forced == [{name: default[name] for name in unread}] * 2
        elif shape.op is LoraOp.EXPAND:
            assert forced == [{}, {"num_stages": 1} if release.name == NEWEST else {}]
        elif shape.op.value.endswith("_expand"):
            assert forced == [{"split_k": 1}] * 2
        else:
            assert forced == [{}, {}]


def test_a_release_compiles_without_a_gpu(answer):
    assert all(registers > 0 and spills == 0 for registers, spills, _ in answer["compiled"])
    fingerprints = [fingerprint for _, _, fingerprint in answer["compiled"]]
    assert len(set(fingerprints)) == len(fingerprints)


def test_one_kernel_for_a_pair_is_compiled_for_every_block_m_that_it_is_launched_with(
    release, answer
):
    pairs = [shape for shape in shapes_of(release) if shape in PAIR_SHAPES]
    naive = sum(map(assigns_naively, pairs))
    # For naive blocks both values of block_m give one launch.
    assert len(set(answer["pairs"])) == 2 * (len(pairs) - naive) + naive
    assert len(answer["pairs"]) == 2 * len(pairs)


def test_what_is_compiled_ahead_is_what_is_launched(answer):
    for with_tensors, without in answer["keys"]:
        assert with_tensors == without


def test_a_release_computes_what_the_reference_does(release, tmp_path, interpreting):
    # Before 0.33 the two MoE kernels multiply in bfloat16, which the interpreter gets wrong.
    shapes = [one for one in shapes_of(release) if release.name == NEWEST or one not in MOE_SHAPES]
    problems = run_with(interpreting, release, INTERPRET, tmp_path, shapes=shapes)

    assert problems == [""] * len(shapes) * 2


def test_moe_ops_of_an_earlier_release_are_refused_by_name(release, answer):
    refused = [why for why in answer["refusals"] if why]
    assert len(refused) == len(asked_of(release)) - len(shapes_of(release))
    start = f"cannot drive the kernels of vLLM {release.name}: _fused_moe_lora"
    assert all(why.startswith(start) for why in refused)


def test_a_default_is_what_the_builtin_kernels_state(release, answer):
    if release.name == NEWEST:
        stated = [default_config(shape).as_dict() for shape in SHAPES]
        assert answer["defaults"][: len(SHAPES)] == stated


def test_a_wrapper_with_an_unknown_parameter_is_refused_by_name(newest, tmp_path, prepared):
    changed = tmp_path / "changed"
    shutil.copytree(newest, changed, copy_function=os.symlink)
    module = changed / "vllm/lora/ops/triton_ops/lora_shrink_op.py"
    text = module.read_text()
    module.unlink()
    module.write_text(text.replace("scaling: float,\n", "scaling: float, gain: float = 1,\n"))

    answer = run_with(prepared, changed, DESCRIBE, tmp_path)

    assert f"cannot drive the kernels of vLLM {NEWEST}" in answer["refused"]
    assert "_lora_shrink takes gain" in answer["refused"]


def test_batch_invariance_is_refused_since_it_reads_no_file(newest, tmp_path, prepared):
    answer = run_with(prepared, newest, DESCRIBE, tmp_path, VLLM_BATCH_INVARIANT="1")

    assert "VLLM_BATCH_INVARIANT" in answer["refused"]


@pytest.mark.parametrize("version", some([RELEASES[0], NEWEST], RELEASES[1:-1]))
def test_the_python_files_alone_will_do(version, request, tmp_path, prepared):
    release = need(version, request.config)

    assert run_with(prepared, release, WITHOUT_COMPILED_PARTS, tmp_path, start="") == version


def test_no_vllm_is_refused_with_what_to_do(tmp_path, prepared):
    answer = run_with(prepared, tmp_path, DESCRIBE, tmp_path)

    assert "cannot import vLLM" in answer["refused"]
    assert "--kernels builtin" in answer["refused"]
