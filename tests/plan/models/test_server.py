"""A server's flags: what they make of layers, which releases have them, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import InputError, StudyFileError
from autotune.launch.op import LoraOp
from autotune.launch.release import (
    NEWEST_RELEASE,
    SERVER_FLAGS,
    check_flag,
    installed_release,
    is_since,
)
from autotune.launch.shape import KernelShape
from autotune.plan.models import (
    LoraLayer,
    Server,
    language_model_of,
    lora_layers,
    made_otherwise,
    read_config,
)
from autotune.plan.models.older import check_has_lora
from autotune.plan.study import StudyPlan

MODELS = Path(__file__).parents[3] / "studies" / "models"


def config_of(model: str) -> dict[str, Any]:
    return dict(read_config(str(MODELS / f"{model}.json")))


def layers_of(model: str, **flags: Any) -> dict[str, LoraLayer]:
    server = Server(**{"max_loras": 8, "rank": 16, **flags})
    return {layer.name: layer for layer in lora_layers(config_of(model), server)}


def plan_of(model: str, *, tokens: Any = None, limits: Any = None, **table: Any) -> StudyPlan:
    plan = StudyPlan.of_model(str(MODELS / f"{model}.json")).with_model(table, limits or {})
    return plan.override(max_loras=8, rank=16, tokens=tokens)


def expands(layers: dict[str, LoraLayer]) -> dict[str, bool]:
    """By layer whether its expand adds to what the base layer wrote."""
    return {
        name: shape.add_inputs
        for name, layer in layers.items()
        for shape in layer.shapes
        if shape.op is LoraOp.EXPAND
    }


# ------------------------------------------------------------------ a stream of LoRA's own


@pytest.mark.parametrize(
    ("release", "several"), [("0.22.1", True), ("0.28.0", False), ("0.33.0", False)]
)
def test_layers_that_run_beside_their_lora_are_looked_up_in_another_file(release, several):
    """0.22.1 runs layers of several slices, such as q, k and v, one after the other.

    It is also the last of these in which the router's LoRA is launched.
    """
    adds = expands(layers_of("qwen3-30b-a3b", dual_stream=True, release=release))

    assert adds == {
        "self_attn.qkv_proj": several,
        "self_attn.o_proj": False,
        **({"mlp.gate": True} if several else {}),
        "embed_tokens": True,
        "lm_head": True,
    }


def test_experts_overwrite_where_they_run_beside_their_lora_unless_in_mxfp4():
    assert layers_of("qwen3-30b-a3b", dual_stream=True)["mlp.experts"].shapes[0].dual_stream
    assert not w2_in_mxfp4(dual_stream=True).dual_stream


def test_fully_sharded_loras_turn_it_off_and_that_is_said():
    flags = {"fully_sharded": True, "tensor_parallel": 2}
    without = layers_of("qwen3-8b", **flags)
    assert layers_of("qwen3-8b", **flags, dual_stream=True) == without

    plan = plan_of("qwen3-8b", tokens=[1], dual_stream=True, **flags)
    assert any("turns VLLM_LORA_ENABLE_DUAL_STREAM off" in line for line in plan.notes)


def test_what_a_timing_alone_cannot_show_is_said():
    plan = plan_of("qwen3-8b", tokens=[1], dual_stream=True)
    assert any("but alone on the GPU" in line for line in plan.notes)


# ------------------------------------------------------------------ active LoRAs


def test_one_entry_for_several_numbers_of_active_loras_is_a_warning_with_the_count():
    plan = plan_of("qwen3-8b", tokens=[1, 64], specialize_active_lora=True)

    (line,) = (each for each in plan.notes if "--specialize-active-lora" in each)
    assert line.startswith("warning: ")
    assert "8 of 16 entries serve launches" in line  # one token has one adapter
    assert "(1, 2, 4, 8, 9)" in line
    assert "tuned for 8;" in line


def test_another_number_may_be_tuned():
    plan = plan_of("qwen3-8b", tokens=[64], specialize_active_lora=True).override(active_loras=3)

    assert {shape.lora_slots for shape in plan.shapes} == {4}
    assert any("tuned for 4;" in line for line in plan.notes)


# ------------------------------------------------------------------ data parallelism


@pytest.mark.parametrize(
    ("flags", "experts", "intermediate"),
    [
        ({"data_parallel": 2}, 128, 384),
        ({"data_parallel": 2, "tensor_parallel": 2}, 128, 192),
        ({"data_parallel": 2, "expert_parallel": True}, 64, 768),
        ({"data_parallel": 2, "tensor_parallel": 2, "expert_parallel": True}, 32, 768),
    ],
)
def test_servers_that_share_experts_divide_them_as_more_gpus_would(flags, experts, intermediate):
    layers = layers_of("qwen3-30b-a3b", **flags)
    w2 = layers["mlp.experts"].shapes[2]

    assert (w2.num_experts, w2.global_experts, w2.intermediate_size) == (experts, 128, intermediate)
    # The other layers are those of one server.
    ways = {"tensor_parallel": flags.get("tensor_parallel", 1)}
    alone = layers_of("qwen3-30b-a3b", **ways)
    assert layers["self_attn.qkv_proj"] == alone["self_attn.qkv_proj"]


def batches(shapes: Any, *, moe: bool) -> set[int]:
    return {shape.num_tokens for shape in shapes if shape.op.is_moe == moe}


def test_experts_get_the_batches_of_all_servers_at_once():
    plan = plan_of("qwen3-30b-a3b", tokens=[1, 16], data_parallel=4)

    assert batches(plan.shapes, moe=False) == {1, 16}
    assert batches(plan.shapes, moe=True) == {4, 64}


def test_the_captured_batches_of_experts_are_those_of_all_servers():
    plan = plan_of("qwen3-30b-a3b", limits={"max_num_seqs": 8}, data_parallel=2)
    every = [*plan.shapes, *plan.between]
    small = [shape for shape in every if shape.num_tokens <= 32]

    assert batches(small, moe=False) == {1, 2, 4, 8, 16, 32}
    assert batches(small, moe=True) == {2, 4, 8, 16, 32}


def test_what_is_launched_at_the_start_and_later_is_of_all_servers_for_experts_alone():
    limits = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "speculative_tokens": 1}
    plan = plan_of("qwen3-30b-a3b", limits=limits, data_parallel=2)
    by_name = {name: kind.without_batch for kind, name in plan.layers.items()}

    dense, experts = (plan.warmed(by_name[name]) for name in ("self_attn.qkv_proj", "mlp.experts"))
    assert dense.warmed == (1, 2, 4, 8, 16, 24, 32, 64)
    assert experts.warmed == tuple(2 * size for size in dense.warmed)
    assert dense.later == (range(33, 65),)
    assert experts.later == (range(66, 129),)
    assert plan.warmed(by_name["lm_head"]).later == (range(1, 17),)


def test_a_batch_of_all_servers_is_not_said_to_be_too_large():
    plan = plan_of("qwen3-30b-a3b", tokens=[8192], data_parallel=8)
    assert not any("no server has a batch" in line for line in plan.notes)


def test_what_is_not_known_of_several_servers_is_refused_with_what_to_do():
    flags = {"data_parallel": 2, "fully_sharded": True, "tensor_parallel": 2}
    with pytest.raises(InputError, match=r"not known with data_parallel 2; give .* --trace FILE"):
        layers_of("qwen3-30b-a3b", **flags)
    assert layers_of("qwen3-8b", **flags)


# ------------------------------------------------------------------ shared experts


@pytest.mark.parametrize(("release", "slices"), [("0.28.0", 1), ("0.33.0", 2)])
def test_gate_and_up_in_one_are_apart_with_shared_loras_from_0_33_on(release, slices):
    layers = layers_of("gpt-oss-120b", moe_shared_loras=True, release=release)
    w13 = layers["mlp.experts"].shapes[0]

    assert (w13.num_slices, w13.shared_loras) == (slices, slices == 2)


@pytest.mark.parametrize(
    ("release", "backend", "hidden", "intermediate"),
    [
        ("0.11.1", None, 3072, 384),  # auto is Marlin
        ("0.13.0", None, 2880, 360),  # auto is Triton, from Hopper on
        ("0.14.0", None, 3072, 384),
        ("0.15.1", None, 3072, 384),
        ("0.15.1", "triton", 2880, 360),  # the experts are padded, their LoRA is not
        ("0.22.1", None, 3072, 384),
        ("0.22.1", "triton", 2880, 384),
        ("0.22.1", "marlin", 3072, 384),
        ("0.33.0", "flashinfer_trtllm", 3072, 384),
    ],
)
def test_experts_in_mxfp4_are_padded_as_the_release_does(release, backend, hidden, intermediate):
    w2 = w2_in_mxfp4(moe_backend=backend, tensor_parallel=8, release=release)

    assert (w2.hidden_size, w2.intermediate_size) == (hidden, intermediate)


@pytest.mark.parametrize(
    ("release", "backend"), [("0.11.1", "triton"), ("0.28.0", "flashinfer_trtllm")]
)
def test_kernels_of_mxfp4_that_have_no_lora_yet_are_refused(release, backend):
    with pytest.raises(InputError, match=f"vLLM {release} has no LoRA on .* MXFP4 kernels"):
        w2_in_mxfp4(moe_backend=backend, release=release)
    # Other experts are not padded, whatever the flag says.
    assert layers_of("qwen3-30b-a3b", moe_backend=backend, release=release)


@pytest.mark.parametrize(("release", "slices"), [("0.11.2", 2), ("0.12.0", 1), ("0.33.0", 1)])
def test_before_0_12_gate_and_up_are_apart_in_every_model(release, slices):
    layers = layers_of("gpt-oss-120b", release=release)

    assert layers["mlp.experts"].shapes[0].num_slices == slices


def w2_in_mxfp4(**flags: Any) -> KernelShape:
    config = config_of("gpt-oss-120b") | {"quantization_config": {"quant_method": "mxfp4"}}
    server = Server(**{"max_loras": 8, "rank": 16, **flags})
    (experts,) = (each for each in lora_layers(config, server) if each.name == "mlp.experts")
    return experts.shapes[2]


# ------------------------------------------------------------------ releases


@pytest.mark.parametrize("flag", [*SERVER_FLAGS])
def test_a_flag_that_a_release_lacks_is_refused_by_the_releases_name(flag):
    spelled, since = SERVER_FLAGS[flag]
    minor = int(since.partition(".")[2])
    for release in (since, f"{since}.0", NEWEST_RELEASE, "0.99.0", "dev"):
        check_flag(flag, release)
    for release in (f"0.{minor - 1}.9", "0.11.1", "0.10.0"):
        with pytest.raises(InputError, match=rf"vLLM {release} has no .*{spelled}.*--vllm"):
            check_flag(flag, release)


@pytest.mark.parametrize(
    "table",
    [
        {"dual_stream": True},
        {"specialize_active_lora": True},
        {"mixed_moe_lora_format": True},
        {"moe_shared_loras": True},
        {"expert_parallel": True, "tensor_parallel": 2},
        {"data_parallel": 2},
        {"target_modules": ("q_proj", "k_proj", "v_proj")},
    ],
)
def test_a_plan_for_an_older_release_refuses_them(table):
    plan = plan_of("qwen3-30b-a3b", tokens=[1], vllm="0.15.1", **table)
    with pytest.raises(StudyFileError, match=r"vLLM 0\.15\.1 has no "):
        _ = plan.shapes


def test_dense_models_may_be_served_by_several_servers_in_any_release():
    plan = plan_of("qwen3-8b", tokens=[1], vllm="0.11.1", data_parallel=2, expert_parallel=True)
    assert plan.shapes == plan_of("qwen3-8b", tokens=[1]).shapes


def test_without_a_release_it_is_the_installed_one_or_the_newest(tmp_path, monkeypatch):
    assert installed_release() == NEWEST_RELEASE
    info = tmp_path / "vllm-0.22.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.22.1\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert installed_release() == "0.22.1"
    with pytest.raises(StudyFileError, match=r"vLLM 0\.22\.1 has no --enable-moe-shared-loras"):
        _ = plan_of("qwen3-30b-a3b", tokens=[1], moe_shared_loras=True).shapes


@pytest.mark.parametrize("name", ["tensor_parallel", "data_parallel"])
def test_there_is_at_least_one_gpu(name):
    flags: dict[str, Any] = {name: 0}
    with pytest.raises(InputError, match=f"{name} must be 1 or more: got 0"):
        Server(rank=16, max_loras=8, **flags)


@given(
    flags=st.fixed_dictionaries(
        {name: st.booleans() for name in ("dual_stream", "specialize_active_lora")}
        | {name: st.booleans() for name in ("moe_shared_loras", "mixed_moe_lora_format")}
        | {"tensor_parallel": st.sampled_from([1, 2, 4]), "data_parallel": st.sampled_from([1, 2])}
    ),
    model=st.sampled_from(["qwen3-30b-a3b", "gpt-oss-120b", "qwen3-8b"]),
)
def test_any_flags_together_give_shapes_that_a_study_file_may_ask_for(flags, model):
    for layer in layers_of(model, **flags).values():
        for shape in layer.shapes:
            assert KernelShape.from_mapping(shape.as_dict()) == shape
            assert shape.lookup_key == KernelShape.from_mapping(shape.as_dict()).lookup_key


def test_layers_that_an_older_release_makes_otherwise_are_said():
    older = plan_of("olmo-2-7b", vllm="0.25.1")
    as_now = plan_of("olmo-2-7b", vllm="0.26.0")
    unasked = plan_of("olmo-2-7b", vllm="0.25.1", target_modules=("q_proj", "k_proj", "v_proj"))

    said = "The layers are those of vLLM 0.33.0: 0.25.1 makes embed_tokens of this model otherwise"
    assert any(said in note for note in older.notes)
    assert not any("otherwise" in note for each in (as_now, unasked) for note in each.notes)


def test_the_language_model_of_a_wrapper_is_told_by_what_it_is():
    config = config_of("gemma-3-4b")
    model = language_model_of(config)
    assert model.wrapper is not None
    assert "lm_head" in made_otherwise(model, "0.13.0")
    assert not made_otherwise(model, "0.14.0")


def test_logits_were_looked_up_by_more_than_the_vocabulary_before_0_12():
    said = "The layers are those of vLLM 0.33.0: 0.11.2 makes lm_head of this model otherwise"
    assert any(said in note for note in plan_of("llama-3.1-8b", vllm="0.11.2").notes)
    assert not any("otherwise" in note for note in plan_of("llama-3.1-8b", vllm="0.12").notes)


def test_a_layer_of_which_no_kernel_is_asked_is_not_said():
    plan = plan_of("olmo-2-7b", vllm="0.25.1").override(ops=[LoraOp.SHRINK])
    assert not any("otherwise" in note for note in plan.notes)


def test_a_model_that_a_release_has_no_lora_for_is_refused():
    with pytest.raises(InputError, match=r"vLLM 0\.14\.1 has no LoRA for MiniMaxM2ForCausalLM"):
        check_has_lora("MiniMaxM2ForCausalLM", "0.14.1")
    check_has_lora("MiniMaxM2ForCausalLM", "0.15.0")


def test_a_release_of_two_numbers_is_its_last_patch():
    assert is_since("0.20", "0.20.1")
    assert not is_since("0.20.0", "0.20.1")
    assert not is_since("0.19", "0.20.1")
    assert is_since("0.20.2", "0.20")


def test_a_release_that_is_newer_than_what_is_known_is_said():
    plan = plan_of("qwen3-30b-a3b", vllm="9.9.9")

    assert any("vLLM 9.9.9 is newer than what autotune knows" in note for note in plan.notes)
