"""From an answer of vLLM's to the layers that the table would give."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.errors import InputError
from autotune.launch.op import LoraOp
from autotune.plan.models import Adapter, LoraLayer, Server
from autotune.plan.models.asking.asked_layers import layers_of

CONFIG = {"architectures": ["NewForCausalLM"]}


def dense(path: str, split: str, reads: int, *writes: int, **more: Any) -> dict[str, Any]:
    """A layer of an answer."""
    known = {"computed": True, "is_linear": True, "parts": []}
    return {"path": path, "split": split, "reads": reads, "writes": list(writes), **known, **more}


def experts(path: str, reads: int, *writes: int, middle: int, **more: Any) -> dict[str, Any]:
    """Experts of an answer."""
    parts = ["experts.0.gate_proj", "experts.0.up_proj"]
    known = {"experts": 64, "local_experts": 64, "top_k": 4, "parts": parts}
    sizes = {"reads": reads, "writes": list(writes), "middle": middle}
    return {"path": path, "split": "experts", **sizes, **known, **more}


def answer(*layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    renamed: dict[str, Any] = {"renamed": [], "renamed_inside": []}
    return {"release": "0.33.0", "has_media": False, "layers": layers, **renamed, **more}


def server(**flags: Any) -> Server:
    return Server(max_loras=8, rank=16, **flags)


def attention(index: int) -> list[dict[str, Any]]:
    """What vLLM has of a decoder layer on one of two GPUs."""
    parts = ["q_proj", "k_proj", "v_proj"]
    return [
        dense(f"model.layers.{index}.attn.qkv", "column", 1024, 512, 128, 128, parts=parts),
        dense(f"model.layers.{index}.attn.out", "row", 512, 1024),
    ]


def by_name(layers: tuple[LoraLayer, ...]) -> dict[str, LoraLayer]:
    return {layer.name: layer for layer in layers}


def test_layers_are_counted_by_what_they_are_called_below_their_decoder_layer():
    found = layers_of(
        answer(
            *attention(0),
            *attention(1),
            dense("lm_head", "logits", 1024, 5000),
            dense("model.embed", "embedding", 0, 1024),
        ),
        CONFIG,
        server(tensor_parallel=2),
    )

    runs = {layer.name: layer.runs for layer in found}
    assert runs == {"attn.qkv": 2, "attn.out": 2, "lm_head": 1, "embed": 1}


def test_sizes_are_those_of_one_gpu_as_vllm_has_them():
    found = by_name(layers_of(answer(*attention(0)), CONFIG, server(tensor_parallel=2)))

    shrink, expand = found["attn.qkv"].shapes
    assert (shrink.hidden_size, shrink.num_slices) == (1024, 3)
    assert expand.slice_sizes == (512, 128, 128)
    shrink, expand = found["attn.out"].shapes
    assert (shrink.hidden_size, expand.slice_sizes) == (512, (1024,))


def test_fully_sharded_loras_divide_the_rank_and_what_vllm_says_they_divide():
    layers = [
        dense("model.layers.0.qkv", "column", 1024, 768),
        dense("model.layers.0.out", "row", 512, 512),
        dense("model.layers.0.gate", "replicated", 1024, 64),
    ]
    flags = server(tensor_parallel=2, fully_sharded=True)
    found = by_name(layers_of(answer(*layers), CONFIG, flags))

    shrinks = {name: layer.shapes[0].rank for name, layer in found.items()}
    expands = {name: layer.shapes[1].slice_sizes for name, layer in found.items()}
    assert shrinks == {"qkv": 8, "out": 16, "gate": 16}
    assert expands == {"qkv": (768,), "out": (512,), "gate": (64,)}


@pytest.mark.parametrize(
    ("writes", "slices"),
    [((96, 96), 2), ((192,), 1), ((96,), 1)],
    ids=["gate and up apart", "gate and up in one", "no gate"],
)
def test_experts_launch_four_kernels_of_their_padded_sizes(writes, slices):
    found = layers_of(
        answer(experts("model.layers.3.mlp.experts", 1024, *writes, middle=96)),
        CONFIG,
        server(tensor_parallel=4),
    )

    shapes = {shape.op: shape for shape in found[0].shapes}
    w13, w2 = shapes[LoraOp.W13_EXPAND], shapes[LoraOp.W2_SHRINK]
    assert (w13.num_slices, w13.intermediate_size, w13.hidden_size) == (slices, writes[0], 1024)
    assert (w2.num_slices, w2.intermediate_size, w2.top_k, w2.num_experts) == (1, 96, 4, 64)


def test_experts_that_are_dealt_out_are_whole_and_fewer():
    path, flags = "model.layers.3.mlp.experts", server(tensor_parallel=4, expert_parallel=True)
    layer = experts(path, 1024, 384, 384, middle=384, local_experts=16)
    (found,) = layers_of(answer(layer), CONFIG, flags)

    w13 = found.shapes[0]
    assert (w13.intermediate_size, w13.num_experts, w13.global_experts) == (384, 16, 64)
    with pytest.raises(InputError, match=r"has 20 of 64 experts of model\..* where 16 are known"):
        layers_of(answer(layer | {"local_experts": 20}), CONFIG, flags)


def test_an_embedding_has_no_shrink():
    (found,) = layers_of(answer(dense("model.embed", "embedding", 0, 1024)), CONFIG, server())

    assert [shape.op for shape in found.shapes] == [LoraOp.EXPAND]


def test_a_layer_that_vllm_never_calls_through_its_lora_is_left_out():
    layers = [
        dense("model.layers.0.attn.kv_b", "column", 512, 4096, computed=False),
        dense("model.layers.0.attn.out", "row", 512, 1024),
    ]

    assert set(by_name(layers_of(answer(*layers), CONFIG, server()))) == {"attn.out"}


def test_layers_of_one_name_that_differ_in_size_stay_apart():
    layers = [
        dense("model.layers.0.mlp.down", "row", 2048, 1024),
        dense("model.layers.1.mlp.down", "row", 512, 1024),
        dense("model.layers.2.mlp.down", "row", 512, 1024),
    ]

    found = layers_of(answer(*layers), CONFIG, server())
    assert [(each.shapes[0].hidden_size, each.runs) for each in found] == [(2048, 1), (512, 2)]


class TestTargets:
    LAYERS = (
        *attention(0),
        dense("lm_head", "logits", 1024, 5000, only_if_named=True),
        experts("model.layers.0.mlp.experts", 1024, 96, 96, middle=96),
    )

    @pytest.mark.parametrize(
        ("targets", "names"),
        [
            (None, {"attn.qkv", "attn.out", "mlp.experts"}),
            (("q_proj", "lm_head"), {"attn.qkv", "lm_head"}),
            (("experts",), {"mlp.experts"}),
        ],
    )
    def test_a_servers_targets_choose_among_the_layers(self, targets, names):
        found = layers_of(answer(*self.LAYERS), CONFIG, server(tensor_parallel=2), targets)

        assert set(by_name(found)) == names

    def test_a_target_that_is_in_no_layer_is_an_error(self):
        with pytest.raises(InputError, match="no LoRA layer of NewForCausalLM is called 'c_attn'"):
            layers_of(answer(*self.LAYERS), CONFIG, server(), ("c_attn",))

    @pytest.mark.parametrize(
        ("modules", "names"),
        [
            (("k_proj",), {"attn.qkv"}),
            (("gate_proj",), {"mlp.experts"}),
            (r"language_model\.layers\.0\.attn\.out", {"attn.out"}),
            (r"language_model\.layers\.0\.self_attn\.out", {"attn.out"}),
            ("all-linear", {"attn.qkv", "attn.out", "mlp.experts"}),
        ],
    )
    def test_an_adapter_names_layers_as_its_checkpoint_does(self, modules, names):
        adapter = Adapter(source="adapter", rank=16, target_modules=modules)
        renamed = {
            "renamed": [["language_model.", "model."]],
            "renamed_inside": [[".self_attn.", ".attn."]],
        }
        found = layers_of(answer(*self.LAYERS, **renamed), CONFIG, server(), adapter)

        assert set(by_name(found)) == names
