"""What a real vLLM computes, beside transformers in float32, and with a kernel that is wrong.

A vLLM for CPUs will do: a plugin stands in for a tuned entry that is wrong, as there are no tuned
files on CPUs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.plan.models import Server, read_config
from autotune.plan.models.adapter_tensors import adapted_layers
from autotune.plan.study import StudyPlan
from autotune.serve.child import program
from autotune.serve.installed import installed_at
from autotune.serve.job import Load, ServedModel
from autotune.serve.outputs import check_outputs
from autotune.serve.random_adapter import write_adapter
from autotune.serve.side_by_side import Setting
from tests.serve.double import write_model

pytestmark = [pytest.mark.installed_vllm, pytest.mark.slow]

#: A shrink that is wrong for four tokens, where there is a folder of tuned files.
_PLANTED = """
import os

def install():
    if not os.environ.get("VLLM_TUNED_CONFIG_FOLDER"):
        return
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
    right = PunicaWrapperCPU._apply_shrink

    def wrong(self, y, x, w_t_all, scale):
        right(self, y, x, w_t_all, scale)
        if x.shape[0] == 4:
            y.mul_(1.2)

    PunicaWrapperCPU._apply_shrink = wrong
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin of vLLM, on the path of every process."""
    folder = tmp_path / "plugin"
    about = folder / "planted-0.dist-info"
    about.mkdir(parents=True)
    (folder / "planted.py").write_text(_PLANTED)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[vllm.general_plugins]\nplanted = planted:install\n")
    path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{path}")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    return folder


@pytest.mark.usefixtures("planted")
def test_a_folder_that_is_wrong_for_one_number_of_requests_is_caught_there(tmp_path):
    installed = installed_at(sys.executable, tmp_path)
    if installed.platform != "cpu":
        pytest.skip("the fault is planted in vLLM's LoRA for CPUs")
    plan = StudyPlan.of_model(str(write_model(tmp_path / "model"))).override(rank=8, max_loras=2)
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    load = Load(requests=(1, 4), inputs=(8,), outputs=(8,), repeats=0)
    setting = Setting(installed=installed, folder=tuned, scratch=tmp_path, say=print)
    served = ServedModel.of(plan, tmp_path, load)
    found = check_outputs(plan, served, load, setting)
    assert {each.requests: each.verdict for each in found} == {1: "right", 4: "wrong"}
    assert all(each.effect > 20 * each.default for each in found)


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_an_adapter_of_zeros_changes_nothing_and_a_random_one_does(tmp_path, kind):
    config = dict(read_config(str(write_model(tmp_path / "model")))) | {"model_type": kind}
    if kind == "qwen3_moe":
        config |= {
            "architectures": ["Qwen3MoeForCausalLM"],
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 128,
            "head_dim": 64,
            "mlp_only_layers": [],
            "decoder_sparse_step": 1,
        }
    layers = adapted_layers(config, Server(rank=8, max_loras=2))
    adapters = [write_adapter(tmp_path / f"a{n}", layers, 8, seed=n) for n in range(2)]
    weights = adapters[0] / "adapter_model.safetensors"
    content = weights.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    weights.write_bytes(content[:header] + bytes(len(content) - header))
    checkpoint = tmp_path / "checkpoint"
    prompt = {"prompt": [5, 6, 7, 8], "tokens": [9, 10]}
    jobs: list[dict[str, Any]] = [
        {"make": {"config": config, "folder": str(checkpoint), "seed": 0}},
        {
            "judge": {
                "folder": str(checkpoint),
                "adapters": [str(each) for each in adapters],
                "sequences": [{"adapter": n, **prompt} for n in (0, 1, 0)],
            }
        },
    ]
    lines = []
    for job in jobs:
        log = tmp_path / "log"
        with program(sys.executable, "reference_program", name="float32", log=log) as child:
            child.give(job)
            lines += list(child.lines())
    told = {line["judged"]["index"]: line["judged"] for line in lines[1:]}
    assert lines[0] == {"made": {}}
    assert told[0]["logprobs"] == pytest.approx(told[0]["without"])
    assert told[2]["logprobs"] == pytest.approx(told[0]["logprobs"])
    assert told[1]["logprobs"] != pytest.approx(told[1]["without"], abs=0.05)
    names = json.loads((checkpoint / "config.json").read_text())
    assert names["architectures"] == config["architectures"]
