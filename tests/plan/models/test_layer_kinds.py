"""Of what kind the decoder layers are: what a config says of it, or a message that names it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from autotune.errors import InputError
from autotune.plan.models import Server, lora_layers
from tests.plan.models.test_made_by_vllm import MADE

#: A config of each architecture, by its name.
CONFIGS: dict[str, dict[str, Any]] = {
    case["config"]["architectures"][0]: case["config"] for case in reversed(MADE)
}

#: What says the kind of each layer, and the architectures whose layers differ in it.
LISTS = {
    "layer_types": [
        *("GraniteMoeHybridForCausalLM", "Gemma4ForCausalLM", "Lfm2ForCausalLM"),
        *("Lfm2MoeForCausalLM", "Qwen3NextForCausalLM", "Qwen3_5ForCausalLM"),
        *("Qwen3_5MoeForCausalLM", "NemotronHForCausalLM"),
    ],
    "layers_block_type": ["NemotronHForCausalLM"],
    "mlp_layer_types": ["ExaoneMoeForCausalLM", "Glm4MoeLiteForCausalLM", "Lfm2MoeForCausalLM"],
}
PAIRS = [(name, field) for field, names in LISTS.items() for name in names]


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(InputError) as info:
        lora_layers(config, Server(max_loras=4, rank=16))
    return str(info.value)


def config_of(name: str, **changes: object) -> dict[str, Any]:
    """A config of an architecture; without a field where its new value is None."""
    lists = dict.fromkeys(("layers_block_type", "hybrid_override_pattern", "layer_types"))
    changes = (lists if set(changes) & set(lists) else {}) | changes
    config = CONFIGS[name]
    if "text_config" in config:
        return config | {"text_config": _changed(config["text_config"], changes)}
    return _changed(config, changes)


def _changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (config | changes).items() if value is not None}


@pytest.mark.parametrize(("name", "field"), PAIRS)
@pytest.mark.parametrize("kind", ["fancy", "", "Full_attention", "a\nb", "x" * 5000])
def test_a_kind_that_the_architecture_lacks_is_refused(name, field, kind):
    config = config_of(name, num_hidden_layers=8, **{field: [kind] * 8})

    assert re.match(
        rf"the config's {field} must have one of \w+, .*: got '.*' for layer 0$", refusal(config)
    )


@pytest.mark.parametrize(("name", "field"), PAIRS)
@pytest.mark.parametrize("kinds", ["fancy", [1] * 8, [None] * 8, [["conv"]] * 8, {"0": "conv"}])
def test_kinds_that_are_no_list_of_words_are_refused(name, field, kinds):
    config = config_of(name, num_hidden_layers=8, **{field: kinds})

    assert f"the config's {field} must be a list with a kind for each layer" in refusal(config)


@pytest.mark.parametrize(
    ("name", "changes", "got"),
    [
        ("Qwen3NextForCausalLM", {"layer_types": ["linear_attention"] * 9}, "got 9 for"),
        ("Qwen3_5ForCausalLM", {"layer_types": ["full_attention"] * 9}, "got 9 for"),
        ("NemotronHForCausalLM", {"hybrid_override_pattern": "M-" * 28}, "got 56 for"),
        ("NemotronHForCausalLM", {"hybrid_override_pattern": "M-"}, "got 2 for"),
        ("NemotronHForCausalLM", {"layers_block_type": ["mamba"] * 56}, "got 56 for"),
    ],
)
def test_as_many_kinds_as_layers_are_asked_for(name, changes, got):
    message = refusal(config_of(name, num_hidden_layers=8, **changes))

    assert next(iter(changes)) in message
    assert f"must have a kind for each layer: {got} num_hidden_layers 8" in message


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("M*-X", "must have one of M, *, -, E for each layer: got 'X' for layer 3"),
        (["M"] * 4, "must have a letter for each layer: got ['M', 'M', 'M', 'M']"),
    ],
)
def test_a_pattern_with_another_letter_is_refused(pattern, message):
    config = config_of("NemotronHForCausalLM", num_hidden_layers=4, hybrid_override_pattern=pattern)

    assert refusal(config) == f"the config's hybrid_override_pattern {message}"


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("DeepseekV3ForCausalLM", "moe_layer_freq"),
        ("Qwen3MoeForCausalLM", "decoder_sparse_step"),
        ("Qwen3VLMoeForConditionalGeneration", "decoder_sparse_step"),
        ("Qwen3NextForCausalLM", "full_attention_interval"),
        ("Ernie4_5_MoeForCausalLM", "moe_layer_interval"),
        ("JambaForCausalLM", "attn_layer_period"),
        ("JambaForCausalLM", "expert_layer_period"),
        ("DeepseekV32ForCausalLM", "index_topk_freq"),
    ],
)
@pytest.mark.parametrize("step", [0, -1, True, 1.5, "2", [1]])
def test_a_step_between_layers_is_at_least_1(name, field, step):
    config = config_of(name, layer_types=None, num_hidden_layers=8, **{field: step})

    assert f"the config's {field} must be a whole number of at least 1: got" in refusal(config)


@pytest.mark.parametrize("step", [0, 1])
def test_llama_4_may_be_without_mixtures(step):
    config = CONFIGS["Llama4ForCausalLM"] | {"interleave_moe_layer_step": step}

    names = {each.name for each in lora_layers(config, Server(max_loras=4, rank=16))}

    assert ("feed_forward.experts" in names) == bool(step)


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        (70, "must leave a layer of each kind .*: got 70 of num_hidden_layers 8"),
        (8, "must leave a layer of each kind .*: got 8 of num_hidden_layers 8"),
        (3, "must leave a layer of each kind .*: got 3 of num_hidden_layers 8"),
        (-1, "must be a whole number of at least 0: got -1"),
        ("2", "must be a whole number of at least 0: got '2'"),
    ],
)
@pytest.mark.parametrize("layers", [8, None])
def test_keys_are_shared_with_a_layer_that_has_some(shared, message, layers):
    kinds = ["sliding_attention"] * 5 + ["full_attention"] * 3
    config = config_of(
        "Gemma4ForCausalLM",
        num_hidden_layers=layers,
        layer_types=kinds,
        num_kv_shared_layers=shared,
    )

    assert re.match(f"the config's num_kv_shared_layers {message}", refusal(config))


def test_gemma_4_lists_its_kinds_under_one_name():
    config = config_of(
        "Gemma4ForCausalLM",
        num_hidden_layers=4,
        layers_block_type=["full_attention"] * 4,
        num_kv_shared_layers=2,
    )

    assert "must have layer_types, a kind for each layer: got nothing" in refusal(config)


def test_layers_without_an_index_are_those_with_an_s():
    config = CONFIGS["DeepseekV32ForCausalLM"] | {"num_hidden_layers": 4}
    server = Server(max_loras=4, rank=16)

    for pattern in ("FSSF", ["F", "S", "S", "F"]):
        layers = lora_layers(config | {"index_topk_pattern": pattern}, server)
        assert {each.name: each.runs for each in layers}["self_attn.indexer.wq_b"] == 2
    for other in (1, {"0": "S"}, True):
        message = refusal(config | {"index_topk_pattern": other})
        assert "index_topk_pattern must have a letter for each layer: got" in message


def test_the_number_of_layers_follows_from_a_pattern():
    config = config_of(
        "NemotronHForCausalLM", num_hidden_layers=None, hybrid_override_pattern="M*M*-"
    )

    layers = lora_layers(config | {"intermediate_size": 1024}, Server(max_loras=4, rank=16))

    runs = {each.name: each.runs for each in layers}
    assert (runs["mixer.qkv_proj"], runs["mixer.up_proj"]) == (2, 1)


def test_dense_layers_beyond_the_last_are_passed_over():
    config = CONFIGS["Qwen3MoeForCausalLM"] | {"num_hidden_layers": 4}
    flags = Server(max_loras=4, rank=16)

    assert lora_layers(config | {"mlp_only_layers": [99]}, flags) == lora_layers(config, flags)
