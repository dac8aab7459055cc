"""The installed vLLM is asked about real configs, and says what the table says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from autotune.errors import InputError
from autotune.launch.shape import KernelShape
from autotune.plan.models import LoraLayer, Server, lora_layers, read_config
from autotune.plan.models.asking import asked_layers

MODELS = Path(__file__).parents[2] / "studies" / "models"

#: What vLLM needs beside the fields that autotune reads, and the studies' configs leave out.
TYPES = {
    "LlamaForCausalLM": "llama",
    "MixtralForCausalLM": "mixtral",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}

pytestmark = [pytest.mark.installed_vllm, pytest.mark.slow]


def kernels(layers: tuple[LoraLayer, ...]) -> Counter[tuple[str, KernelShape]]:
    """How often a forward pass launches each kernel of each module."""
    found: Counter[tuple[str, KernelShape]] = Counter()
    for layer in layers:
        for shape in layer.shapes:
            found[layer.name.rpartition(".")[2], shape] += layer.runs
    return found


@pytest.fixture
def model(tmp_path):
    """Writes a study's config as vLLM needs it."""

    def write(name: str, **change: object) -> str:
        config = dict(read_config(str(MODELS / f"{name}.json"))) | change
        kind = TYPES.get(config["architectures"][0], "unknown")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **config}))
        return str(tmp_path)

    return write


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("llama-3.1-8b", {}),
        ("llama-3.1-8b", {"tensor_parallel": 4, "fully_sharded": True}),
        ("mixtral-8x7b", {"tensor_parallel": 2}),
        ("qwen3-30b-a3b", {"tensor_parallel": 4, "expert_parallel": True}),
    ],
)
def test_vllm_and_the_table_say_the_same(name, flags, model):
    folder, server = model(name), Server(max_loras=8, rank=16, **flags)
    asked = asked_layers(folder, server)

    assert kernels(asked.layers) == kernels(lora_layers(read_config(folder), server))
    assert asked.release


def test_targets_are_those_of_the_table(model):
    folder, server = model("mixtral-8x7b"), Server(max_loras=8, rank=16)
    targets = ("q_proj", "lm_head", "experts")

    asked = asked_layers(folder, server, targets)
    assert kernels(asked.layers) == kernels(lora_layers(read_config(folder), server, targets))


def test_a_config_that_vllm_refuses_is_told_in_vllms_words(model):
    folder = model("llama-3.1-8b", num_attention_heads=7)
    with pytest.raises(InputError, match=r"vLLM cannot say .*: .*; its log is /.*\.log$") as caught:
        asked_layers(folder, Server(max_loras=8, rank=16))

    assert "\n" not in str(caught.value)
