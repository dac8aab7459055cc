"""Which layers an adapter has where plain names do not say it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import InputError
from autotune.plan.models import Adapter, LoraLayer, Server, lora_layers, read_adapter, read_config

MODELS = Path(__file__).parents[3] / "studies" / "models"


def layers_of(
    model: str, adapter: Adapter | list[Adapter] | None = None, **change: Any
) -> dict[str, LoraLayer]:
    config = dict(read_config(str(MODELS / f"{model}.json"))) | change
    return {
        layer.name: layer for layer in lora_layers(config, Server(max_loras=8, rank=16), adapter)
    }


@pytest.fixture
def read(tmp_path):
    """Reads an adapter's config of these fields."""

    def read(**fields: Any) -> Adapter:
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 16} | fields))
        return read_adapter(str(path))

    return read


ALL = ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"]


@pytest.mark.parametrize(
    "pattern",
    [
        r"^(language_model|model\.language_model)(?=\.).*\.(q|o|up|down)_proj$",
        r"model.language_model.layers.[\d]+.(mlp|cross_attn|self_attn).(up|down|gate|q|k|v|o)_proj",
        r"language_model\.model\.layers\.\d+\..*_proj",
        r"model\.layers\.\d+\..*_proj",
    ],
)
def test_every_spelling_of_a_language_model_among_media_is_found(read, pattern):
    assert list(layers_of("gemma-3-4b", read(target_modules=pattern))) == ALL


def test_names_of_a_vision_tower_are_passed_over(read):
    names = ["q_proj", "o_proj", "fc1", "fc2", "out_proj"]

    assert list(layers_of("gemma-3-4b", read(target_modules=names))) == ALL[:2]
    path = "vision_tower.vision_model.encoder.layers.0.self_attn.whatever"
    assert list(layers_of("gemma-3-4b", read(target_modules=["o_proj", path]))) == ALL[1:2]


def test_a_name_of_an_adapter_that_the_model_lacks_is_passed_over_unless_it_is_the_only_one(read):
    # PEFT gives it no weights, so that vLLM never sees it.
    assert list(layers_of("llama-3.1-8b", read(target_modules=["q_proj", "fc1"]))) == ALL[:1]
    with pytest.raises(InputError, match="is called 'fc1'"):
        layers_of("llama-3.1-8b", read(target_modules=["fc1", "fc2"]))


@pytest.mark.parametrize(
    ("excluded", "names"),
    [
        (["o_proj", "mlp.up_proj", "gate_proj"], ["self_attn.qkv_proj", "mlp.down_proj"]),
        # One slice is enough for the module that it is packed in.
        (["q_proj", "v_proj"], ALL),
        (r".*\.mlp\..*", ALL[:2]),
    ],
)
def test_excluded_modules_have_no_lora(read, excluded, names):
    found = read(target_modules="all-linear", exclude_modules=excluded)

    assert list(layers_of("llama-3.1-8b", found)) == names


def test_all_linear_stands_for_no_parameters_which_are_named_by_themselves(read):
    assert list(layers_of("gpt-oss-120b", read(target_modules="all-linear"))) == ALL[:2]
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    found = read(target_modules="all-linear", target_parameters=parameters)
    assert list(layers_of("gpt-oss-120b", found)) == [*ALL[:2], "mlp.experts"]


@pytest.mark.parametrize("pattern", [None, "", [], "layers", ["h", "layers"]])
def test_layers_to_transform_are_the_only_ones(read, pattern):
    found = read(target_modules=["o_proj"], layers_to_transform=[0, 5, 31], layers_pattern=pattern)

    assert layers_of("llama-3.1-8b", found)["self_attn.o_proj"].runs == 3


def test_no_layers_to_transform_are_all(read):
    found = read(target_modules=["o_proj"], layers_to_transform=[])

    assert layers_of("llama-3.1-8b", found)["self_attn.o_proj"].runs == 32


def test_parameters_are_transformed_in_every_layer(read):
    """PEFT reads ``layers_to_transform`` for modules alone."""
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    found = read(target_modules=[], target_parameters=parameters, layers_to_transform=[0, 1])

    assert layers_of("gpt-oss-120b", found)["mlp.experts"].runs == 36


def test_layers_of_another_name_are_none(read):
    found = read(target_modules=["o_proj"], layers_to_transform=[0, 5, 31], layers_pattern="h")

    with pytest.raises(InputError, match=r"layers_pattern names .*: got \['h'\]; write layers"):
        layers_of("llama-3.1-8b", found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"target_modules": ["qkv_proj"]},
            r"'qkv_proj', .*; .* can be q_.*; .*'s qkv_proj is q_proj, k_proj, v_proj there",
        ),
        (
            {"target_modules": "q_proj"},
            "'q_proj', .*; a text is a pattern for whole paths: write names as a list",
        ),
        (
            {"target_modules": [], "target_parameters": ["experts.w1"]},
            "is called 'experts.w1', which target_parameters has; an adapter's can be none",
        ),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [99]},
            r"layers_to_transform has no decoder layer .*'q_proj': got \[99\]; give .* 0 to 31",
        ),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": 99, "layers_pattern": "h"},
            r"layers_to_transform has no decoder layer",
        ),
        (
            {"target_modules": ["embed_tokens"], "layers_to_transform": [0]},
            "layers_to_transform leaves out 'embed_tokens', which is in no decoder layer",
        ),
        (
            {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]},
            r"exclude_modules leaves out every layer .*: got \['q_proj'\]",
        ),
    ],
)
def test_the_field_that_leaves_no_layer_is_named(read, fields, message):
    with pytest.raises(InputError, match=rf"adapter_config\.json: .*{message}"):
        layers_of("llama-3.1-8b", read(**fields))


@pytest.mark.parametrize("field", ["lora_alpha", "target_modules"])
def test_an_adapter_that_lacks_what_vllm_needs_is_refused(tmp_path, field):
    fields = {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj"]}
    fields.pop(field)
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))

    with pytest.raises(InputError, match=f"no adapter without {field}"):
        read_adapter(str(tmp_path))


def test_experts_in_one_are_for_servers_that_take_them(read):
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    found = read(target_modules=["o_proj"], target_parameters=parameters)

    with pytest.raises(InputError, match=r"each expert by itself: got target_parameters \["):
        layers_of("qwen3-30b-a3b", found)
    config = read_config(str(MODELS / "qwen3-30b-a3b.json"))
    server = Server(max_loras=8, rank=16, mixed_moe_lora_format=True)
    names = [layer.name for layer in lora_layers(config, server, found)]
    assert names == ["self_attn.o_proj", "mlp.experts"]


def test_a_module_of_the_name_of_a_parameter_is_another(read):
    # GPT-OSS has no module of this name, only a parameter.
    found = read(target_modules=["o_proj", "down_proj"])

    assert list(layers_of("gpt-oss-120b", found)) == ["self_attn.o_proj"]


def test_several_adapters_have_the_layers_of_all(read):
    one, other = read(target_modules=["o_proj"]), read(target_modules=["up_proj", "o_proj"])

    assert list(layers_of("llama-3.1-8b", [one, other])) == ["self_attn.o_proj", ALL[2]]
    with pytest.raises(InputError, match="is called 'c_attn'"):
        layers_of("llama-3.1-8b", [one, read(target_modules=["c_attn"])])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "does not support DoRA: got use_dora True"),
        ({"bias": "all"}, "does not support an adapter's bias: got bias 'all'"),
        ({"bias": "lora_only"}, "does not support an adapter's bias"),
        ({"lora_bias": True}, "does not support LoRA bias"),
        ({"modules_to_save": ["lm_head", "score"]}, r"got modules_to_save \['lm_head'\]"),
        ({"layer_replication": [[0, 16], [8, 32]]}, "does not support layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the model's own: got init_lora_weights"),
        ({"alora_invocation_tokens": [1]}, "does not support Activated LoRA"),
        ({"use_bdlora": {"a": 1}}, "does not support block-diagonal LoRA"),
        ({"use_qalora": True}, "does not support QALoRA"),
        ({"rank_pattern": [1]}, "rank_pattern must be an object"),
        ({"target_parameters": "gate_up_proj"}, "target_parameters must be a list of names"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform must be a list of whole numbers"),
        ({"layers_pattern": 1, "layers_to_transform": 0}, "layers_pattern must be a list"),
        ({"lora_alpha": None}, "lora_alpha must be a number: got None"),
        ({"bias": None}, "does not support an adapter's bias: got bias None"),
        ({"trainable_token_indices": [1, 2]}, "does not support trained tokens"),
        ({"init_lora_weights": "PiSSA"}, "changed the model's own: got init_lora_weights 'PiSSA'"),
    ],
)
def test_what_vllm_refuses_is_refused_with_its_reason(read, fields, message):
    with pytest.raises(InputError, match=message) as info:
        read(target_modules=["q_proj"], **fields)
    assert str(info.value).isprintable()


def test_what_vllm_takes_is_taken(read):
    found = read(
        target_modules=["q_proj"], bias="none", modules_to_save=["score"], init_lora_weights="eva"
    )
    assert found.targets == ("q_proj",)


@pytest.mark.slow
def test_a_pattern_that_never_ends_names_its_adapter_and_field(read):
    found = read(target_modules=["q_proj"], exclude_modules="(.*)*(.*)*(.*)*(.*)*Z")

    with pytest.raises(InputError, match=r"adapter_config.json: exclude_modules is a pattern that"):
        layers_of("llama-3.1-8b", found)
