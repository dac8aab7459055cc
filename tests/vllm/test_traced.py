"""The plugin in each release: what vLLM's own callers look up is traced, and nothing changes.

``_lora_shrink``, ``_lora_expand`` and the callers of MoE look-ups are run as they stand in vLLM's
files, up to the kernels, which need a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from autotune.launch.op import LoraOp
from autotune.launch.release import is_since
from autotune.launch.shape import KernelShape
from autotune.plan.traced import Trace, read_trace
from autotune.trace.tensors import STARTS
from tests.measure.kernels.cases import expand_shape, moe_shape, shrink_shape
from tests.vllm.conftest import need
from tests.vllm.process import Prepared
from tests.vllm.releases import RELEASES, ROOT

pytestmark = pytest.mark.vllm

#: One slice and several, equal and not; two kernels that share a key.
DENSE = [
    shrink_shape(num_tokens=16, hidden_size=256, rank=16, num_slices=3),
    shrink_shape(num_tokens=5, dtype="bfloat16"),
    expand_shape(num_tokens=16, slice_sizes=[128, 32, 32], rank=16),
    expand_shape(num_tokens=16, slice_sizes=[128, 64, 64], rank=16),
    expand_shape(num_tokens=17, add_inputs=False),
]

_SHARDED = {"fully_sharded": True, "shards": 2, "hidden_size": 64}

EXPERTS = [
    *(moe_shape(op) for op in LoraOp if op.is_moe),
    moe_shape(LoraOp.W13_EXPAND, num_slices=1, num_tokens=3),
]

#: From 0.22 on: ranks and experts that several GPUs share.
SHARED_EXPERTS = [
    *(moe_shape(op, global_experts=8) for op in (LoraOp.W13_SHRINK, LoraOp.W2_SHRINK)),
    *(moe_shape(op, **_SHARDED, num_tokens=9) for op in (LoraOp.W13_SHRINK, LoraOp.W2_EXPAND)),
    *(moe_shape(op, shared_loras=True, hidden_size=96) for op in LoraOp if op.is_moe),
]

#: Runs the callers with the shapes of standard input, twice each, and prints what each passed on.
SCRIPT = """
import ast, functools, importlib, json, sys, types
from pathlib import Path
from types import SimpleNamespace
from autotune.trace.plugin import install
install()
install()
import torch
from autotune.launch.shape import KernelShape
from autotune.measure.kernels.inputs import inputs_without_memory, make_inputs
from vllm import envs
from vllm.lora.ops.triton_ops import lora_expand_op, lora_shrink_op, utils

gpu, shapes = json.load(sys.stdin)
torch.cuda.get_device_name = lambda *_: gpu
utils.async_tensor_h2d = lambda data, dtype, **_: torch.tensor(data, dtype=dtype)
passed = []

class Kernel:
    def __getitem__(self, grid):
        return lambda *given, **named: passed.append(
            [list(grid), [one for one in (*given, *named.values()) if isinstance(one, int)]]
        )

lora_shrink_op._lora_shrink_kernel = lora_expand_op._lora_expand_kernel = Kernel()

def dense(shape):
    inputs = make_inputs(shape, device="cpu", weight_sets=2, seed=0)
    is_shrink = shape.op.value == "shrink"
    module = lora_shrink_op if is_shrink else lora_expand_op
    wrapper = module._lora_shrink if is_shrink else module._lora_expand
    tokens = inputs.tokens
    for weights in inputs.weight_sets:
        given = {
            "inputs": inputs.x, "output_tensor": inputs.out,
            "lora_a_weights" if is_shrink else "lora_b_weights": list(weights),
            "token_lora_mapping": tokens.token_lora_mapping,
            "token_indices_sorted_by_lora_ids": tokens.token_indices_sorted_by_lora_ids,
            "num_tokens_per_lora": tokens.num_tokens_per_lora,
            "lora_token_start_loc": tokens.lora_token_start_loc,
            "lora_ids": tokens.lora_ids, "no_lora_flag_cpu": torch.tensor([False]),
            "num_active_loras": torch.tensor([shape.max_loras + 1], dtype=torch.int32),
            "scaling": 1.0, "offset_start": 0, "add_inputs": shape.add_inputs,
        }
        if wrapper.__annotations__.get("num_active_loras") is int:
            given["num_active_loras"] = shape.max_loras + 1
        code = wrapper.__wrapped__.__code__
        names = code.co_varnames[:code.co_argcount]
        wrapper(**{name: given[name] for name in names if name in given})
    return inputs  # the addresses of weights that are alive differ

for name, attributes in {
    "vllm.lora.layers": {},
    "vllm.lora.layers.utils": {"try_get_optimal_moe_lora_config": None},
    "vllm.model_executor": {},
    "vllm.model_executor.layers": {},
    "vllm.model_executor.layers.fused_moe": {},
    "vllm.model_executor.layers.fused_moe.config": {"_get_config_dtype_str": lambda **_: None},
}.items():
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(attributes)

FusedMoE = None
CALLERS = ("add_lora_w13", "add_lora_w2", "_get_lora_moe_configs")
root = Path(utils.__file__).parents[2]
for file in (root / "layers/fused_moe.py", root / "punica_wrapper/punica_gpu.py"):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name in CALLERS:
            get_lora_op_configs = utils.get_lora_op_configs  # as 0.11.1 and 0.15.1 import it
            exec(compile(ast.Module([node], []), str(file), "exec"))

class Wrapper:
    def moe_lora_align_block_size(self, *_, **__):
        return None, None, None, None

    def add_lora_fused_moe(self, *arguments, **_):
        passed.extend(each for each in arguments if isinstance(each, dict))

    def _normalize_keys(self, config):
        return config

def experts(shape):
    pair = inputs_without_memory(shape, pair=True)
    weights, half = pair.weight_sets[0], shape.num_slices
    part = "w13" if "w13" in shape.op.value else "w2"
    nothing = torch.empty(0, device="meta")
    wrapper = Wrapper()
    if "add_lora_w13" not in globals():
        wrapper.fully_sharded = shape.fully_sharded
        setattr(wrapper, f"{part}_lora_a_stacked", weights[:half])
        setattr(wrapper, f"{part}_lora_b_stacked", weights[half:])
        layer = SimpleNamespace(
            hidden_size=shape.hidden_size, global_num_experts=shape.global_experts,
            intermediate_size_per_partition=shape.intermediate_size,
        )
        given = {
            "op_prefix": part, "num_loras": shape.max_loras, "rank": shape.rank,
            "num_slices": shape.num_slices, "M": shape.num_tokens, "layer": layer,
            "top_k": shape.top_k, "config_dtype": None,
            "lora_a_stacked": weights[0], "lora_b_stacked": weights[half],
        }
        method = _get_lora_moe_configs
    else:
        is_shared = shape.global_experts > shape.num_experts
        given = {
            "y": torch.empty(shape.num_tokens, shape.top_k, shape.hidden_size, device="meta"),
            "x": pair.x, "lora_a_stacked": weights[:half], "lora_b_stacked": weights[half:],
            "topk_ids": nothing, "topk_weights": nothing,
            "expert_map": torch.zeros(shape.global_experts) if is_shared else None,
            "sorted_token_ids_lora": None, "expert_ids_lora": None,
            "num_tokens_post_padded_lora": None, "token_lora_mapping": None,
            "w1": nothing, "w2": nothing,
            "num_tokens": shape.num_tokens, "top_k_num": shape.top_k, "top_k": shape.top_k,
            "max_loras": shape.max_loras, "adapter_enabled": nothing,
            "local_num_experts": shape.num_experts, "num_slices": shape.num_slices,
            "fully_sharded": shape.fully_sharded, "tp_rank": 0, "use_tuned_config": True,
        }
        method = add_lora_w13 if part == "w13" else add_lora_w2
    names = method.__code__.co_varnames[1:method.__code__.co_argcount]
    answer = method(wrapper, **{name: given[name] for name in names if name in given})
    passed.extend(each for each in answer or () if isinstance(each, dict))

def determine_available_memory(shape):
    return experts(shape) if shape.op.is_moe else dense(shape)

kept = [determine_available_memory(KernelShape.from_mapping(each)) for each in shapes]
print(json.dumps(passed))
"""


class Ran(NamedTuple):
    """What the callers passed on, and what was traced."""

    passed: Any
    trace: Path


def ran(
    prepared: Prepared,
    release: Path,
    shapes: Sequence[KernelShape],
    folder: Path,
    *,
    traced: bool,
) -> Ran:
    file = folder / "trace.jsonl"
    lines = prepared.run(
        SCRIPT,
        path=[release],
        given=["NVIDIA H100", [shape.as_dict() for shape in shapes]],
        variables={"VLLM_TUNED_CONFIG_FOLDER": str(folder)}
        | ({"AUTOTUNE_TRACE": str(file)} if traced else {}),
    )
    return Ran(json.loads(lines[-1]), file)


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> Path:
    return need(request.param, request.config)


class Case(NamedTuple):
    """A release that ran the callers of some shapes, with the plugin and without."""

    release: str
    shapes: Sequence[KernelShape]
    on: Ran
    off: Ran

    @property
    def trace(self) -> Trace:
        return read_trace(self.on.trace)


#: In older releases a MoE layer with LoRA is on one GPU.
_CASES = [(each, EXPERTS) for each in RELEASES] + [
    (each, SHARED_EXPERTS) for each in RELEASES if is_since(each, "0.16")
]


@pytest.fixture(
    scope="module",
    params=_CASES,
    ids=[f"{each}-{'own' if experts is EXPERTS else 'shared'}" for each, experts in _CASES],
)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, prepared: Prepared
) -> Case:
    version, experts = request.param
    release, shapes = need(version, request.config), [*DENSE, *experts]
    folder = tmp_path_factory.mktemp("traced")
    on, off = (ran(prepared, release, shapes, folder, traced=traced) for traced in (True, False))
    return Case(version, shapes, on, off)


def test_what_the_callers_pass_on_is_the_same_with_the_plugin(case):
    assert case.on.passed == case.off.passed
    assert len(case.on.passed) > len(case.shapes)


def beside(shapes: Iterable[KernelShape]) -> set[KernelShape]:
    """The shapes of a server that was seen to overwrite: LoRA has a stream of its own there."""
    return {replace(each, dual_stream=True) for each in shapes}


def test_every_look_up_is_traced_as_the_shape_that_it_is(case):
    trace = case.trace

    assert trace.gpu == "NVIDIA H100"
    assert {each.when for each in trace.asked} == {"start"}
    found = {each.shape for each in trace.asked}
    if not is_since(case.release, "0.12"):  # it looks up w2 with its two sizes the other way round
        assert found >= beside(DENSE)
        assert "its tensors would be looked up as" in trace.notes[0]
    else:
        assert found >= beside(case.shapes)
        assert trace.notes == ()


def test_layers_are_told_apart_by_their_weights(case):
    dense = [each for each in case.trace.asked if not each.shape.op.is_moe]

    assert {each.layers for each in dense} == {2}
    assert {each.count for each in dense} == {2}


#: Has vLLM load its plugins as each of its processes does, and prints what the look-up is.
LOAD = """
import json
from vllm.plugins import load_general_plugins
load_general_plugins()
load_general_plugins()
from vllm.lora.ops.triton_ops import lora_expand_op, lora_shrink_op, utils
modules = (utils, lora_expand_op, lora_shrink_op)
print(json.dumps([hasattr(each.get_lora_op_configs, "__autotune_trace__") for each in modules]))
"""


@pytest.mark.parametrize(
    ("variables", "is_traced"),
    [({"VLLM_PLUGINS": "mine,autotune_trace"}, True), ({"VLLM_PLUGINS": "mine"}, False)],
)
def test_vllm_loads_the_plugin_by_its_entry_point(
    release, variables, is_traced, tmp_path, prepared
):
    """As after an install: the entry points of ``pyproject.toml`` lie on the path."""
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    at = lines.index('[project.entry-points."vllm.general_plugins"]')
    name, _, target = lines[at + 1].partition("#")[0].partition(" = ")
    info = tmp_path / "lora_autotune-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lora-autotune\nVersion: 0\n")
    entry = f"{name} = {json.loads(target)}"
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{entry}\n")

    (answer,) = prepared.run(
        LOAD,
        path=[release, tmp_path],
        given=None,
        variables={"AUTOTUNE_TRACE": str(tmp_path / "t.jsonl")} | variables,
    )[-1:]

    assert json.loads(answer) == [is_traced] * 3


def test_the_worker_starts_by_the_functions_that_are_known(release):
    text = (release / "vllm/v1/worker/gpu_worker.py").read_text()

    assert all(f"def {name}(" in text for name in STARTS)


def test_whatever_module_binds_the_look_up_gets_it_from_its_home(release):
    """A module that defined a look-up of its own would not be seen."""
    definitions = [
        file
        for file in (release / "vllm").rglob("*.py")
        if "def get_lora_op_configs(" in file.read_text()
    ]
    assert [file.name for file in definitions] == ["utils.py"]
