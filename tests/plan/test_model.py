"""A study's ``[model]``: the shapes of its layers, and the errors where there are none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from autotune.errors import StudyFileError
from autotune.launch.op import MOE_OPS, LoraOp
from autotune.plan.study import StudyPlan

STUDIES = Path(__file__).parents[2] / "studies"
MODELS = STUDIES / "models"


def plan_of(model: str, table=None, limits=None, **flags) -> StudyPlan:
    plan = StudyPlan.of_model(str(MODELS / f"{model}.json"))
    return plan.with_model(table or {}, limits or {}).override(max_loras=8, **flags)


@pytest.fixture
def read(tmp_path):
    """Reads a text as a study file beside a config.json of Llama-3.1-8B."""

    def read(text: str) -> StudyPlan:
        config = (MODELS / "llama-3.1-8b.json").read_text()
        (tmp_path / "config.json").write_text(config)
        (tmp_path / "study.toml").write_text(text)
        return StudyPlan.read(tmp_path / "study.toml")

    return read


LORA = "[lora]\nmax_loras = 8\nrank = 16\n"


# ------------------------------------------------------------------ shapes


def test_layers_that_launch_the_same_are_one_shape_that_says_how_often_it_runs():
    plan = plan_of("llama-3.1-8b", rank=16, tokens=[16])

    runs = {name: plan.runs[shape] for shape, name in plan.layers.items()}
    # 32 layers each, and once the embedding.
    assert runs["self_attn.o_proj, mlp.down_proj, embed_tokens"] == 32 + 32 + 1


def test_the_four_ops_of_experts_are_there_for_every_batch_size():
    plan = plan_of("qwen3-30b-a3b", rank=256, tokens=[1, 64])

    experts = [shape for shape in plan.shapes if shape.op.is_moe]
    assert {(s.op, s.num_tokens) for s in experts} == {(op, m) for op in MOE_OPS for m in (1, 64)}


def test_batch_sizes_of_a_model_are_those_of_the_server_where_none_are_given():
    plan = plan_of("qwen2.5-7b", rank=16)

    assert plan.is_auto
    assert sorted({shape.num_tokens for shape in plan.shapes}) == list(plan.batches.grid)


def test_captured_batch_sizes_without_a_row_are_looked_at_later_for_every_kernel():
    plan = plan_of("qwen2.5-7b", rank=16, limits={"max_num_seqs": 8})

    # 1, 2, 4, 8 and 16 are captured and on the grid; of 12 sequences 24 tokens are captured, too.
    assert plan.between == []
    twelve = plan.with_model({}, {"max_num_seqs": 12})
    assert {shape.num_tokens for shape in twelve.between} == {12}
    assert len(twelve.between) == len({shape.without_batch for shape in plan.shapes})
    assert twelve.override(tokens=[1, 24]).between == []


def test_logits_are_of_one_token_a_sequence():
    plan = plan_of("llama-3.1-8b", rank=16, limits={"max_num_seqs": 64})

    (logits,) = {s.without_batch for s, name in plan.layers.items() if s.hidden_size == 128256}
    counts = {s.num_tokens for s in plan.shapes if s.without_batch == logits}
    assert max(counts) == max(s.num_tokens for s in plan.captured(logits)) == 64
    others = {s.num_tokens for s in plan.shapes if s.without_batch != logits}
    assert max(others) == 8192


def test_a_part_of_the_rank_is_a_shape_where_loras_are_fully_sharded():
    plan = plan_of(
        "mixtral-8x7b", {"tensor_parallel": 4, "fully_sharded": True}, rank=16, tokens=[16]
    )

    by_op = {s.op: s for s in plan.shapes if s.op.is_moe}
    assert [by_op[op].rank for op in MOE_OPS] == [4, 4, 16, 16]
    assert {shape.server_rank for shape in by_op.values()} == {16}
    assert (3, 4) in {(s.num_slices, s.rank) for s in plan.shapes if s.op is LoraOp.SHRINK}


def test_flags_go_before_the_study_files_model(read):
    plan = read(f'[model]\nconfig = "config.json"\n{LORA}[tokens]\ncounts = [16]\n')

    assert max(s.hidden_size for s in plan.shapes) == 128256
    half = plan.with_model({"tensor_parallel": 2, "target_modules": ("gate_proj",)}, {})
    assert {s.slice_sizes for s in half.shapes} == {(), (7168, 7168)}


def test_a_config_beside_the_study_file_is_found_from_anywhere(read, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert read(f'[model]\nconfig = "config.json"\n{LORA}').shapes


def test_a_model_is_read_once(read, tmp_path):
    plan = read(f'[model]\nconfig = "config.json"\n{LORA}')
    shapes = plan.shapes

    # It may be on the hub, and what is asked for after hours of tuning must not need that again.
    (tmp_path / "config.json").unlink()
    assert plan.shapes == shapes
    assert plan.captured(shapes[0])


def test_only_the_ops_asked_for_are_kept():
    plan = plan_of("llama-3.1-8b", rank=16, tokens=[16], ops=[LoraOp.SHRINK])

    assert {shape.op for shape in plan.shapes} == {LoraOp.SHRINK}
    with pytest.raises(
        StudyFileError, match=r"no shape of fused_.*; it has shrink, expand"
    ) as info:
        _ = plan_of("llama-3.1-8b", rank=16, ops=[LoraOp.W13_SHRINK]).shapes
    assert str(info.value).startswith("--op: ")


# ------------------------------------------------------------------ one key for two shapes


def test_a_model_with_two_layers_of_one_key_can_be_tuned(tmp_path):
    # As wide as q is alone, k and v make 3 slices with the same largest one only where sizes
    # agree: latent attention's two, 1536 and 576, beside a shared expert's gate and up of 1536.
    config = json.loads((MODELS / "deepseek-v3.json").read_text())
    config |= {"moe_intermediate_size": 1536, "n_shared_experts": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))

    plan = StudyPlan.of_model(str(tmp_path)).override(max_loras=8, rank=16, tokens=[16])

    pairs = [s for s in plan.shapes if s.op is LoraOp.EXPAND and s.hidden_size == 1536]
    # 58 * (1536 + 1536) is more than 61 * (1536 + 576).
    assert [shape.slice_sizes for shape in pairs] == [(1536, 1536)]
    assert len(plan.notes) == 1
    keys = [(shape.file_name("gpu"), shape.lookup_key) for shape in plan.shapes]
    assert len(keys) == len(set(keys))


# ------------------------------------------------------------------ adapters


def adapter(folder: Path, **table) -> str:
    (folder / "adapter_config.json").write_text(
        json.dumps({"r": 12, "lora_alpha": 16, "target_modules": ["o_proj"], **table})
    )
    return str(folder)


def test_an_adapter_gives_layers_and_the_rank_that_it_is_served_with(tmp_path):
    plan = plan_of("llama-3.1-8b", {"adapter": (adapter(tmp_path),)}, tokens=[16])

    assert {shape.rank for shape in plan.shapes} == {16}
    assert list(plan.layers.values()) == ["self_attn.o_proj"] * 2
    # vLLM launches the other layers' kernels, too, unless it is told.
    (note,) = plan.notes
    assert "unless it is started with --lora-target-modules o_proj (0.19" in note


@pytest.mark.parametrize(
    ("table", "flags", "message"),
    [
        ({"r": 32}, {"rank": 16}, "rank is above the server's: got r 32 for 16; give --rank 32"),
        ({"r": 1024}, {}, "rank is above vLLM's largest: got r 1024; 512 is the most"),
        ({"target_modules": ["c_attn"]}, {}, "no LoRA layer of Llama.* is called 'c_attn'"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_one_line(tmp_path, table, flags, message):
    plan = plan_of("llama-3.1-8b", {"adapter": (adapter(tmp_path, **table),)}, **flags)

    with pytest.raises(StudyFileError, match=rf"^--adapter: .*{message}"):
        _ = plan.shapes


def test_an_adapter_of_a_study_file_is_named_there_unless_a_flag_gives_another(read, tmp_path):
    path = adapter(tmp_path, use_dora=True)
    plan = read(f"{LORA}[model]\nconfig = 'config.json'\nadapter = '{path}'\n")

    with pytest.raises(StudyFileError, match=r"study\.toml: \[model\] adapter: .*DoRA"):
        _ = plan.shapes
    with pytest.raises(StudyFileError, match=r"^--adapter: nowhere: no such file"):
        _ = plan.with_model({"adapter": ("nowhere",)}, {}).shapes


def test_a_rank_that_some_layers_have_is_said_where_it_decides(tmp_path):
    given = {"adapter": (adapter(tmp_path, r=8, rank_pattern={"o_proj": 64}),)}

    notes = plan_of("llama-3.1-8b", given).notes
    assert "its rank is 64, by rank_pattern['o_proj']: vLLM 0.33 refuses" in notes[0]
    assert len(plan_of("llama-3.1-8b", given, rank=64).notes) == len(notes) - 1
    with pytest.raises(StudyFileError, match=r"got rank_pattern\['o_proj'\] 64 for 8; give"):
        _ = plan_of("llama-3.1-8b", given, rank=8).shapes


def test_an_adapter_and_target_modules_contradict_each_other(tmp_path):
    plan = plan_of(
        "llama-3.1-8b", {"adapter": (adapter(tmp_path),), "target_modules": ("o_proj",)}, rank=16
    )

    with pytest.raises(StudyFileError, match="both say which layers have LoRA: got o_proj and"):
        _ = plan.shapes


# ------------------------------------------------------------------ what is refused


def test_what_the_model_of_a_study_file_lacks_is_told_with_its_keys_and_flags(tmp_path):
    (tmp_path / "s.toml").write_text(f'[model]\nconfig = "{MODELS / "phi-4.json"}"\n')
    plan = StudyPlan.read(tmp_path / "s.toml")

    told = r"the model has no max_loras and rank: add .*\[lora\].*, or give --max-loras and --rank"
    with pytest.raises(StudyFileError, match=told):
        _ = plan.shapes


def test_values_that_the_model_lacks_are_named_together_by_their_flags():
    plan = StudyPlan.of_model(str(MODELS / "phi-4.json"))

    both = r"^--model: a model needs --max-loras and --rank beside it: give .* or --adapter"
    with pytest.raises(StudyFileError, match=both):
        _ = plan.shapes
    with pytest.raises(StudyFileError, match=r"a model needs --rank beside it: .* or --adapter"):
        _ = plan.override(max_loras=8).shapes
    with pytest.raises(StudyFileError, match=r"a model needs --max-loras beside it: [^-]*$"):
        _ = plan.override(rank=8).shapes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\n", r"study.toml: \[model\]: has no config: give the path"),
        ("[model]\nconfg = 'x'\n", r"\[model\]: unknown key 'confg'; did you mean 'config'\?"),
        ("[model]\nconfig = 1\n", r"\[model\] config: must be a text .*: got 1"),
        ("[model]\nconfig = 'x'\ntensor_parallel = 0\n", r"tensor_parallel: must be .*: got 0"),
        ("[model]\nconfig = 'x'\nfully_sharded = 1\n", r"must be true or false: got 1"),
        ("[model]\nconfig = 'x'\ntarget_modules = 'q'\n", r"must be a list of names.*: got 'q'"),
        ("[tokens]\ncounts = 'all'\n", r"counts: must be a list .*, or auto: got 'all'"),
        ("[tokens]\nmax_num_seqs = 0\n", r"max_num_seqs: must be .* at least 1: got 0"),
    ],
)
def test_a_wrong_table_or_value_is_refused_with_its_place(read, text, message):
    with pytest.raises(StudyFileError, match=message) as caught:
        read(text if "[model]" in text else f'{text}[model]\nconfig = "config.json"\n')
    assert "\n" not in str(caught.value)


def test_limits_that_vllm_refuses_are_named(read):
    plan = read(
        f'[model]\nconfig = "config.json"\n{LORA}'
        "[tokens]\nmax_num_seqs = 64\nmax_num_batched_tokens = 32\n"
    )

    with pytest.raises(StudyFileError, match=r"\[tokens\]: max_num_batched_tokens .* 32 for 64"):
        _ = plan.shapes


def test_a_flag_that_leaves_nothing_to_capture_is_named_as_it_is_typed():
    plan = StudyPlan.of_model(str(MODELS / "llama-3.1-8b.json"))
    plan = plan.with_model({}, {"cudagraph_capture_sizes": (100_000,)})

    with pytest.raises(StudyFileError, match=r"^--cudagraph-capture-sizes must have .* \[100000\]"):
        _ = plan.override(max_loras=8, rank=16).shapes


def test_flags_of_a_model_need_one():
    with pytest.raises(StudyFileError, match="the quick-start study gives its shapes by hand"):
        StudyPlan.quickstart().with_model({"tensor_parallel": 2}, {})


def test_a_recording_without_any_of_the_batch_sizes_is_refused():
    plan = plan_of("llama-3.1-8b", rank=16).answered_by(plan_of("phi-4", rank=16).shapes)

    with pytest.raises(StudyFileError, match="the recording has none of the shapes"):
        _ = plan.shapes


# ------------------------------------------------------------------ the study files

#: ``fleet.toml`` is a list of models, and no study.
FILES = sorted(path.name for path in STUDIES.glob("*.toml") if path.name != "fleet.toml")


@pytest.mark.parametrize("name", FILES)
def test_a_study_file_gives_shapes_and_names_the_source_of_its_sizes(name):
    plan = StudyPlan.read(STUDIES / name)

    assert plan.shapes
    assert len({(s.file_name("gpu"), s.lookup_key) for s in plan.shapes}) == len(plan.shapes)
    text = (STUDIES / name).read_text()
    assert "Where the sizes come from: " in text
    if name not in {"quickstart.toml", "llama-3.1-8b.toml"}:
        assert "on the Hugging Face hub" in text


@pytest.mark.parametrize("name", [n for n in FILES if "[model]" in (STUDIES / n).read_text()])
def test_a_study_files_comment_says_what_its_config_does(name):
    text = (STUDIES / name).read_text()
    config = json.loads((MODELS / name.replace(".toml", ".json")).read_text())
    values = config.get("text_config", config)
    said = [line.removeprefix("#  ") for line in text.splitlines() if line.startswith("#   ")]
    pairs = [part.split() for part in " ".join(said[1:]).split(",")]

    assert len(pairs) >= 3
    assert {key: values[key] for key, _ in pairs} == {key: int(value) for key, value in pairs}
    assert f'config = "models/{name.removesuffix(".toml")}.json"' in text


def test_there_are_study_files_of_dense_models_and_of_mixtures():
    with_experts = {
        name
        for name in FILES
        if any(shape.op.is_moe for shape in StudyPlan.read(STUDIES / name).shapes)
    }

    assert len(with_experts) >= 5
    assert len(set(FILES) - with_experts) >= 8


def test_a_study_file_may_be_read_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = Path(os.path.relpath(STUDIES, tmp_path)) / "qwen3-8b.toml"

    assert StudyPlan.read(relative).shapes
