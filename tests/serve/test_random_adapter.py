"""Adapters of random weights, read back as their formats say."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest

from autotune.plan.models import Server, read_config
from autotune.plan.models.adapter_tensors import AdaptedLayer, adapted_layers
from autotune.serve.random_adapter import WEIGHTS, write_adapter
from tests.vllm.releases import ROOT

MODELS = ROOT / "studies" / "models"
SERVER = Server(rank=16, max_loras=2)


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file in the format of safetensors, as float32."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    tensors = {}
    for name, about in header.items():
        assert about["dtype"] == "BF16"
        begun, ended = about["data_offsets"]
        bits = np.frombuffer(body[begun:ended], dtype="<u2").astype(np.uint32) << 16
        tensors[name] = bits.view(np.float32).reshape(about["shape"])
    assert ended == len(body)
    return tensors


def test_an_adapter_has_both_matrices_of_every_layer(tmp_path):
    layers = [AdaptedLayer("model.layers.0.self_attn.q_proj", 256, 512)]
    folder = write_adapter(tmp_path / "a", layers, 8, seed=1)
    tensors = read(folder / WEIGHTS)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    a, b = tensors[name.format("A")], tensors[name.format("B")]
    assert (a.shape, b.shape) == ((8, 256), (512, 8))
    assert np.std(a) == pytest.approx(1 / 16, rel=0.1)
    assert np.std(b) == pytest.approx(1 / math.sqrt(8), rel=0.1)
    table = json.loads((folder / "adapter_config.json").read_text())
    assert table["target_modules"] == ["q_proj"]
    assert (table["r"], table["lora_alpha"]) == (8, 8)


def test_adapters_differ_by_their_seeds_alone(tmp_path):
    layers = [AdaptedLayer("q_proj", 64, 64)]
    files = [
        (write_adapter(tmp_path / name, layers, 8, seed=seed) / WEIGHTS).read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert files[0] == files[1] != files[2]


def test_adapters_may_share_their_tensors(tmp_path):
    layers = [AdaptedLayer("q_proj", 64, 64)]
    first = write_adapter(tmp_path / "a", layers, 8, seed=1)
    second = write_adapter(tmp_path / "b", layers, 8, seed=2, share=first)
    assert (second / WEIGHTS).samefile(first / WEIGHTS)


def test_packed_layers_are_what_checkpoints_have():
    layers = adapted_layers(read_config(str(MODELS / "llama-3.1-8b.json")), SERVER)
    sizes = {each.path: (each.reads, each.writes) for each in layers}
    assert len(layers) == 7 * 32 + 2
    assert sizes["model.layers.31.self_attn.k_proj"] == (4096, 1024)
    assert sizes["model.layers.0.mlp.down_proj"] == (14336, 4096)
    assert sizes["lm_head"] == (4096, 128256)
    (embedding,) = (each for each in layers if each.is_embedding)
    assert embedding.shapes(16) == {
        "base_model.model.model.embed_tokens.lora_embedding_A": (16, 128256),
        "base_model.model.model.embed_tokens.lora_embedding_B": (4096, 16),
    }


def test_every_expert_has_its_layers():
    layers = adapted_layers(read_config(str(MODELS / "qwen3-30b-a3b.json")), SERVER)
    sizes = {each.path: (each.reads, each.writes) for each in layers}
    assert sizes["model.layers.47.mlp.experts.127.gate_proj"] == (2048, 768)
    assert sizes["model.layers.47.mlp.experts.127.down_proj"] == (768, 2048)
    assert "model.layers.0.mlp.gate" not in sizes  # the experts call it themselves


def test_experts_in_one_tensor_lie_one_behind_the_other():
    layers = adapted_layers(read_config(str(MODELS / "gpt-oss-120b.json")), SERVER)
    (both, down) = (each for each in layers if each.path.startswith("model.layers.7.mlp.experts"))
    assert (both.path, both.reads, both.writes) == (
        "model.layers.7.mlp.experts.base_layer",
        2880,
        5760,
    )
    assert down.shapes(16) == {
        "base_model.model.model.layers.7.mlp.experts.lora_A.weight": (128 * 16, 2880),
        "base_model.model.model.layers.7.mlp.experts.lora_B.weight": (2880, 128 * 16),
    }


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.json")), ids=lambda path: path.stem)
def test_an_adapter_reads_and_writes_as_much_as_the_kernels_do(path):
    config = read_config(str(path))
    layers = adapted_layers(config, SERVER)
    assert len({each.path for each in layers}) == len(layers)
    assert all(each.reads > 0 and each.writes > 0 for each in layers)
