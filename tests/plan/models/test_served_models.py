"""Configs that do not say plainly what vLLM makes of them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import InputError
from autotune.launch.op import LookupKey, LoraOp
from autotune.launch.shape import KernelShape
from autotune.plan.models import LoraLayer, Server, lora_layers, read_config

MODELS = Path(__file__).parents[3] / "studies" / "models"


def config_of(model: str) -> dict[str, Any]:
    return dict(read_config(str(MODELS / f"{model}.json")))


def layers_of(config: dict[str, Any], **flags: Any) -> dict[str, LoraLayer]:
    server = Server(**{"max_loras": 8, "rank": 16, **flags})
    return {layer.name: layer for layer in lora_layers(config, server)}


# ------------------------------------------------------------------ the number of experts


@pytest.mark.parametrize(
    ("model", "old", "new"),
    [
        ("qwen3-30b-a3b", "num_experts", "num_local_experts"),
        ("qwen1.5-moe-a2.7b", "num_experts", "num_local_experts"),
        ("mixtral-8x7b", "num_local_experts", "num_experts"),
        ("deepseek-v3", "n_routed_experts", "num_local_experts"),
        ("gpt-oss-120b", "num_experts_per_tok", "experts_per_token"),
    ],
)
def test_a_field_is_found_by_the_name_that_another_release_of_transformers_writes(model, old, new):
    config = config_of(model)
    renamed = {key: value for key, value in config.items() if key != old} | {new: config[old]}

    assert layers_of(renamed) == layers_of(config)


def test_two_values_of_one_field_are_refused():
    config = config_of("qwen3-30b-a3b") | {"num_local_experts": 64}

    with pytest.raises(InputError, match="two values of one field: got num_experts 128 and num_l"):
        layers_of(config)


@pytest.mark.parametrize("model", ["qwen3-30b-a3b", "deepseek-v3", "mixtral-8x7b"])
def test_a_mixture_of_experts_that_does_not_say_how_many_is_not_taken_for_dense(model):
    names = {"num_experts", "num_local_experts", "n_routed_experts"}
    config = {key: value for key, value in config_of(model).items() if key not in names}

    with pytest.raises(InputError, match=r"experts.* whole number.*: got nothing"):
        layers_of(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_local_experts": 8}, "not known with a mixture of experts: .* num_local_experts 8"),
        ({"n_routed_experts": 8}, "not known with a mixture of experts: .* n_routed_experts 8"),
        ({"kv_lora_rank": 512}, "not known with multi-head latent attention: .* kv_lora_rank 512"),
        ({"text_config": []}, r"text_config must be an object: got \[\]"),
        (
            {"num_hidden_layers": 2**24},
            "num_hidden_layers, a whole number from 1 to 4096: got 1677",
        ),
        (
            {"num_hidden_layers": 10**9},
            "num_hidden_layers, a whole number from 1 to 4096: got 1000",
        ),
        ({"vocab_size": 10**15}, "vocab_size, a whole number from 1 to 16777216: got 1000000000"),
        (
            {"hidden_size": 2**24 + 1},
            "hidden_size, a whole number from 1 to 16777216: got 16777217",
        ),
        (
            {"num_key_value_heads": 0},
            "num_key_value_heads, a whole number from 1 to 16777216: got 0",
        ),
    ],
)
def test_a_config_that_its_architecture_cannot_be_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        layers_of(config_of("llama-3.1-8b") | change)


@pytest.mark.parametrize(
    ("model", "old", "new"),
    [
        ("qwen3-30b-a3b", "num_experts", "num_local_experts"),
        ("mixtral-8x7b", "num_local_experts", "num_experts"),
        ("deepseek-v3", "n_routed_experts", "num_local_experts"),
        ("gpt-oss-120b", "num_experts_per_tok", "experts_per_token"),
    ],
)
@pytest.mark.parametrize("value", [-1, "8", 1.5, True, [8], 10**9])
def test_messages_call_a_field_as_the_file_does(model, old, new, value):
    config = {key: each for key, each in config_of(model).items() if key != old} | {new: value}

    with pytest.raises(InputError, match=rf"must have {new}, a whole number .*: got "):
        layers_of(config)


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        ("LlamaForCausalLM", {"num_key_value_heads": 5}, "num_key_value_heads: got 32 and 5"),
        ("LlamaForCausalLM", {"num_key_value_heads": 64}, "num_key_value_heads: got 32 and 64"),
        ("Phi3ForCausalLM", {"num_key_value_heads": 7}, "num_key_value_heads: got [0-9]+ and 7"),
        ("ChatGLMModel", {"multi_query_group_num": 5}, "multi_query_group_num: got 16 and 5"),
        ("Qwen3NextForCausalLM", {"num_key_value_heads": 3}, "num_key_value_heads: got 16 and 3"),
        ("Qwen3NextForCausalLM", {"linear_num_value_heads": 20}, "key_heads: got 20 and 16"),
        ("NemotronHForCausalLM", {"n_groups": 7}, "n_groups: got [0-9]+ and 7"),
        ("FalconH1ForCausalLM", {"mamba_n_groups": 5}, "mamba_n_groups: got [0-9]+ and 5"),
    ],
)
@pytest.mark.parametrize("targets", [None, ["down_proj", "embed_tokens", "out_proj", "dense"]])
def test_heads_that_cannot_be_shared_evenly_are_refused(architecture, change, message, targets):
    config = made_by_vllm(architecture) | change

    with pytest.raises(InputError, match=rf"must have \w+, a multiple of \w*{message}; vLLM"):
        lora_layers(config, Server(max_loras=8, rank=16), targets)


@given(
    kv=st.integers(1, 40), per_kv=st.integers(1, 8), more=st.integers(0, 7), ways=st.integers(1, 8)
)
def test_heads_are_taken_where_vllm_can_build_attention(kv, per_kv, more, ways):
    heads = kv * per_kv + more
    sizes = {"hidden_size": 6720, "intermediate_size": 6720, "head_dim": 8}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": kv}
    # QKVParallelLinear and Attention of vLLM 0.33.0.
    is_divided = heads % ways == 0 and (kv % ways == 0 if kv > ways else ways % kv == 0)
    can_be_built = is_divided and heads // ways % max(1, kv // ways) == 0
    told = nullcontext() if can_be_built else pytest.raises(InputError, match="_heads")
    with told:
        layers_of(config_of("llama-3.1-8b") | sizes, tensor_parallel=ways)


def made_by_vllm(architecture: str) -> dict[str, Any]:
    """The config of an architecture in what vLLM was asked for."""
    lines = (Path(__file__).parent / "made_by_vllm.jsonl").read_text().splitlines()
    configs: list[dict[str, Any]] = [json.loads(line)["config"] for line in lines]
    return next(each for each in configs if each["architectures"] == [architecture])


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        (
            "OPTForCausalLM",
            {"word_embed_proj_dim": 512},
            "only with word_embed_proj_dim as hidden_size: its config has 512 and 768",
        ),
        (
            "Qwen3ForCausalLM",
            {"per_layer_config": {"3": {"head_dim": 64}}},
            "not known with layers that differ so: its config has per_layer_config",
        ),
        (
            "Gemma4ForCausalLM",
            {"per_layer_config": {"05": {"head_dim": 512}, "11": {"head_dim": 256}}},
            "not known with layers that differ so",
        ),
        (
            "Gemma4ForCausalLM",
            {"layer_types": ["full_attention"], "num_hidden_layers": 2},
            "a kind for each layer",
        ),
        (
            "Qwen3NextForCausalLM",
            {"layer_types": "full", "num_hidden_layers": 2},
            "a kind for each layer: got 'full'",
        ),
        ("NemotronHForCausalLM", {"hybrid_override_pattern": "M*X-"}, "one of M, [*], -, E"),
        ("LlamaForCausalLM", {"linear_num_value_heads": 32}, "not known with linear attention"),
        ("DeepseekV3ForCausalLM", {"index_n_heads": 64}, "not known with an indexer"),
    ],
)
def test_a_config_that_contradicts_its_architecture_is_refused(architecture, change, message):
    config = made_by_vllm(architecture) | change

    with pytest.raises(InputError, match=message) as info:
        layers_of(config)
    assert str(info.value).isprintable()


def test_layers_with_heads_of_their_own_are_read_as_either_release_writes_them():
    as_5_writes_it = made_by_vllm("Gemma4ForCausalLM")
    as_4_writes_it = {
        **{key: value for key, value in as_5_writes_it.items() if key != "per_layer_config"},
        "global_head_dim": 512,
    }

    assert layers_of(as_4_writes_it) == layers_of(as_5_writes_it)
    of_few = as_4_writes_it | {"attention_k_eq_v": True, "num_global_key_value_heads": 2}
    config = as_5_writes_it | {
        "per_layer_config": {"5": {"head_dim": 512, "num_key_value_heads": 2}}
    }
    assert layers_of(of_few) == layers_of(config)


# ------------------------------------------------------------------ several media


@pytest.mark.parametrize(
    ("architecture", "kind", "is_known"),
    [
        ("Mistral3ForConditionalGeneration", "mistral", True),
        ("Mistral3ForConditionalGeneration", "ministral3", True),
        ("Mistral3ForConditionalGeneration", "mistral4", False),
        ("Gemma3ForConditionalGeneration", "gemma3_text", True),
        ("Gemma3ForConditionalGeneration", "gemma4_text", False),
        ("Gemma3ForConditionalGeneration", ["gemma3_text"], False),
    ],
)
def test_the_language_model_among_media_is_one_that_is_known(architecture, kind, is_known):
    text = config_of("mistral-nemo-12b") | {"model_type": kind, "architectures": None}
    config = {"architectures": [architecture], "text_config": text}

    if is_known:
        assert "self_attn.qkv_proj" in layers_of(config)
    else:
        with pytest.raises(InputError, match="unknown language model in"):
            layers_of(config)


# ------------------------------------------------------------------ GPT-OSS


def gpt_oss(quantization: str = "mxfp4") -> dict[str, Any]:
    return config_of("gpt-oss-120b") | {"quantization_config": {"quant_method": quantization}}


def w13_and_w2(config: dict[str, Any], **flags: Any) -> tuple[KernelShape, KernelShape]:
    shapes = {shape.op: shape for shape in layers_of(config, **flags)["mlp.experts"].shapes}
    return shapes[LoraOp.W13_SHRINK], shapes[LoraOp.W2_SHRINK]


def keys_of(config: dict[str, Any], **flags: Any) -> list[tuple[str, LookupKey]]:
    layers = layers_of(config, **flags).values()
    return [(shape.file_name("gpu"), shape.lookup_key) for each in layers for shape in each.shapes]


@pytest.mark.parametrize("flag", ["mixed_moe_lora_format", "moe_shared_loras"])
def test_a_server_of_2d_loras_has_gate_and_up_apart(flag):
    w13, w2 = w13_and_w2(gpt_oss(), moe_backend="triton", **{flag: True})

    assert (w13.num_slices, w13.intermediate_size) == (2, 2880)
    assert (w2.num_slices, w2.intermediate_size) == (1, 2880)
    # Models whose experts are apart anyway are asked for alike.
    mixtral = config_of("mixtral-8x7b")
    assert keys_of(mixtral, **{flag: True}) == keys_of(mixtral)


@pytest.mark.parametrize(
    ("backend", "ways", "hidden", "w13", "w2"),
    [
        # 2880, 1440, 720 and 360, rounded up to 64; w13 has twice that.
        ("triton", 1, 2880, 5760, 2880),
        ("triton", 2, 2880, 2944, 1472),
        ("triton", 4, 2880, 1536, 768),
        ("triton", 8, 2880, 768, 384),
        # To 128, and the hidden size to 256.
        ("marlin", 1, 3072, 5888, 2944),
        ("marlin", 2, 3072, 3072, 1536),
        ("marlin", 4, 3072, 1536, 768),
        ("marlin", 8, 3072, 768, 384),
    ],
)
def test_experts_in_mxfp4_are_padded_on_each_gpu(backend, ways, hidden, w13, w2):
    first, second = w13_and_w2(gpt_oss(), tensor_parallel=ways, moe_backend=backend)

    assert (first.hidden_size, second.hidden_size) == (hidden, hidden)
    assert (first.intermediate_size, second.intermediate_size) == (w13, w2)


@pytest.mark.parametrize("quantization", [None, {}, {"quant_method": ""}, {"quant_method": "fp8"}])
def test_experts_that_are_not_in_mxfp4_are_not_padded(quantization):
    config = gpt_oss() | {"quantization_config": quantization}
    first, _ = w13_and_w2(config, tensor_parallel=2, moe_backend="marlin")

    assert (first.hidden_size, first.intermediate_size) == (2880, 2880)


def test_a_method_in_large_letters_is_the_same_one():
    assert keys_of(gpt_oss("MXFP4")) == keys_of(gpt_oss())


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ("mxfp4", "quantization_config must be an object: got 'mxfp4'"),
        (["mxfp4"], r"quantization_config must be an object: got \['mxfp4'\]"),
        (0, "quantization_config must be an object: got 0"),
        ({"quant_method": ["mxfp4"]}, r"quant_method must be a text: got \['mxfp4'\]"),
        ({"quant_method": None}, "quant_method must be a text: got None"),
        ({"quant_method": 4}, "quant_method must be a text: got 4"),
    ],
)
@pytest.mark.parametrize("model", ["gpt-oss-120b", "llama-3.1-8b", "gemma-3-4b"])
@pytest.mark.parametrize("place", ["", "text_config"])
def test_a_quantization_that_cannot_be_read_is_refused(model, place, quantization, message):
    config = config_of(model)
    outer = {"quantization_config": quantization}
    changes = {place: {**config.get(place, config), **outer}} if place else outer

    with pytest.raises(InputError, match=f"the config's .*{message}$"):
        layers_of(config | changes)
