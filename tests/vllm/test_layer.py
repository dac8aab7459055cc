"""What vLLM's own MoE layer code finds in a tuned folder, with the arguments that it passes.

``add_lora_w13`` and ``add_lora_w2`` are run as they stand in vLLM's file, on tensors without memory
and up to the kernels. Only what they import beside the look-up is stood in for: importing it takes
a whole vLLM.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from autotune.choose.selection import Selection
from autotune.export import VllmExporter
from autotune.plan.study import StudyPlan
from tests.export.examples import H100
from tests.moe import moe_selection
from tests.vllm.conftest import need
from tests.vllm.releases import NEWEST, ROOT

pytestmark = pytest.mark.vllm

#: Prints, per shape given on standard input, the configuration that its op's kernel would get.
SCRIPT = """
import ast, importlib, json, sys, types
from pathlib import Path
import torch
from autotune.measure.kernels.inputs import inputs_without_memory
from autotune.measure.kernels.layout import pair_of
from autotune.launch.shape import KernelShape

gpu, shapes = json.load(sys.stdin)
torch.cuda.get_device_name = lambda *_: gpu
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
file = Path(importlib.import_module("vllm").__file__).parent / "lora/punica_wrapper/punica_gpu.py"
methods = [
    node for node in ast.walk(ast.parse(file.read_text()))
    if isinstance(node, ast.FunctionDef) and node.name in ("add_lora_w13", "add_lora_w2")
]
exec(compile(ast.Module(methods, []), str(file), "exec"))

class Wrapper:
    def moe_lora_align_block_size(self, *_, **__):
        return None, None, None, None

    def add_lora_fused_moe(self, *arguments, **_):
        self.configs = [each for each in arguments if isinstance(each, dict)]

for shape in map(KernelShape.from_mapping, shapes):
    # Made by the sizes that we allocate as vLLM does, so that they are what is asked for.
    pair = inputs_without_memory(shape, pair=True)
    weights, half = pair.weight_sets[0], shape.num_slices
    # The look-up does not read it.
    nothing = torch.empty(0, device="meta")
    given = {
        "y": pair.out.view(shape.num_tokens, shape.top_k, -1),
        "x": pair.x,
        "lora_a_stacked": weights[:half],
        "lora_b_stacked": weights[half:],
        "topk_ids": nothing, "topk_weights": nothing, "expert_map": None,
        "sorted_token_ids_lora": None, "expert_ids_lora": None,
        "num_tokens_post_padded_lora": None, "token_lora_mapping": None,
        "w1": nothing, "w2": nothing,
        "num_tokens": shape.num_tokens, "top_k_num": shape.top_k, "top_k": shape.top_k,
        "max_loras": shape.max_loras, "adapter_enabled": nothing,
        "local_num_experts": shape.num_experts, "num_slices": shape.num_slices,
        "fully_sharded": False, "tp_rank": 0, "use_tuned_config": True,
    }
    method = add_lora_w13 if "w13" in shape.op.value else add_lora_w2
    names = method.__code__.co_varnames[1:method.__code__.co_argcount]
    wrapper = Wrapper()
    method(wrapper, **{name: given[name] for name in names if name in given})
    print(json.dumps(wrapper.configs[pair_of(shape.op).index(shape.op)]))
"""


def numbered(selection: Selection, number: int) -> Selection:
    """The selection with a configuration that no other has."""
    own = replace(selection.config, group_size_m=number)
    samples = {own if c == selection.config else c: s for c, s in selection.samples_us.items()}
    return replace(selection, config=own, samples_us=samples)


@pytest.mark.parametrize("study", ["qwen3-30b-a3b", "mixtral-8x7b", "gpt-oss-20b"])
def test_vllms_moe_layer_finds_each_exported_entry(study, tmp_path, request, prepared):
    release = need(NEWEST, request.config)
    shapes = StudyPlan.read(ROOT / "studies" / f"{study}.toml").shapes
    selections = [
        numbered(moe_selection(shape, {32: 5.0}), number)
        for number, shape in enumerate(shapes, start=1)
    ]
    VllmExporter().export(selections, H100, tmp_path, merge=False)

    lines = prepared.run(
        SCRIPT,
        path=[release],
        given=[H100.gpu, [shape.as_dict() for shape in shapes]],
        variables={"VLLM_TUNED_CONFIG_FOLDER": str(tmp_path)},
    )

    found = [json.loads(line) for line in lines if line.startswith("{")]

    assert [each["GROUP_SIZE_M"] for each in found] == list(range(1, len(shapes) + 1))
    assert {each["BLOCK_SIZE_M"] for each in found} == {32}
