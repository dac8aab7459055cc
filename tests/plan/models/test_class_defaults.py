"""Fields that a config leaves out: they have the default of the config's class, as in vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.errors import InputError
from autotune.plan.models.table import ARCHITECTURES
from autotune.plan.models.table.class_defaults import CLASS_DEFAULTS, FIELDS, USUAL_TYPE
from tests.plan.models.test_served_models import config_of, layers_of


def without(model: str, *fields: str, **changes: Any) -> dict[str, Any]:
    config = config_of(model) | changes
    return {key: value for key, value in config.items() if key not in fields}


def written(config: dict[str, Any], layer: str) -> tuple[int, ...]:
    """What the expand of a layer writes."""
    (shape,) = (each for each in layers_of(config)[layer].shapes if each.op.value == "expand")
    return shape.slice_sizes


def test_heads_have_the_size_and_number_of_the_class():
    """As vLLM 0.33.0 built them, asked with ``--ask-vllm``."""
    qwen = without("qwen3-8b", "head_dim", model_type="qwen3", hidden_size=1024)
    qwen |= {"num_attention_heads": 16, "num_key_value_heads": 8}
    assert written(qwen, "self_attn.qkv_proj") == (2048, 1024, 1024)
    qwen = without("qwen3-8b", "num_key_value_heads", head_dim=128, num_attention_heads=64)
    assert written(qwen, "self_attn.qkv_proj") == (8192, 4096, 4096)
    text = without("mistral-nemo-12b", "num_key_value_heads", "architectures")
    for kind in ({}, {"model_type": "mistral"}, {"model_type": "ministral3"}):
        config = {
            "architectures": ["Mistral3ForConditionalGeneration"],
            "text_config": text | kind,
        }
        assert written(config, "self_attn.qkv_proj") == (4096, 1024, 1024)


def test_a_class_without_a_default_takes_what_follows_from_other_fields():
    llama = without("llama-3.1-8b", "head_dim", "num_key_value_heads", model_type="llama")
    assert written(llama, "self_attn.qkv_proj") == (4096, 4096, 4096)


def test_null_is_no_absence():
    """transformers takes it for heads that divide the hidden size, and for no low-rank q."""
    qwen = config_of("qwen3-8b") | {"head_dim": None, "num_attention_heads": 64}
    assert written(qwen, "self_attn.qkv_proj") == (4096, 512, 512)
    assert "self_attn.q_proj" in layers_of(config_of("deepseek-v3") | {"q_lora_rank": None})
    assert "self_attn.q_b_proj" in layers_of(without("deepseek-v3", "q_lora_rank"))


def test_the_first_layers_are_dense_as_the_class_says():
    layers = layers_of(without("deepseek-v3", "first_k_dense_replace", num_hidden_layers=8))
    assert (layers["mlp.gate_up_proj"].runs, layers["mlp.experts"].runs) == (3, 5)
    assert "mlp.shared_experts.gate_up_proj" in layers_of(
        without("deepseek-v3", "n_shared_experts")
    )


def test_a_list_of_kinds_says_the_same_as_the_number_or_is_refused():
    config = config_of("deepseek-v3") | {"num_hidden_layers": 4}
    kinds = ["dense"] * 3 + ["sparse"]
    assert layers_of(config | {"mlp_layer_types": kinds})["mlp.experts"].runs == 1
    for given in (config, without("deepseek-v3", "first_k_dense_replace", num_hidden_layers=4)):
        with pytest.raises(InputError, match="mlp_layer_types says sparse of layer 0, which is de"):
            layers_of(given | {"mlp_layer_types": ["sparse"] * 4})


def test_what_says_of_itself_that_it_is_two_models_is_refused():
    text = config_of("llama-3.1-8b") | {"model_type": "llama"}
    config = {"architectures": ["LlavaForConditionalGeneration"], "text_config": text}
    assert "lm_head" in layers_of(config)
    text["architectures"] = ["GPTNeoXForCausalLM"]
    with pytest.raises(InputError, match="is 'GPTNeoXForCausalLM' by its architectures"):
        layers_of(config)


@pytest.mark.parametrize("number", [8.0, "8", [8, 8], {"a": 8}, 8])
def test_a_dense_architecture_has_no_experts_however_they_are_written(number):
    with pytest.raises(InputError, match="not known with a mixture of experts"):
        layers_of(config_of("llama-3.1-8b") | {"num_experts": number})


def test_every_default_is_of_a_kept_field_and_every_type_is_used():
    assert all(set(fields) <= set(FIELDS) for fields in CLASS_DEFAULTS.values())
    assert set(USUAL_TYPE) <= set(ARCHITECTURES)
    assert set(USUAL_TYPE.values()) <= set(CLASS_DEFAULTS)
