"""Study files: what they may say, and the errors of wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autotune.errors import InputError, StudyFileError
from autotune.launch.moe_layer import by_layer
from autotune.launch.op import MOE_OPS, LoraOp
from autotune.plan.file import parse_duration
from autotune.plan.study import StudyPlan

SHRINK = '[[shapes]]\nop = "shrink"\nhidden_size = 4096\n'
LORA = "[lora]\nmax_loras = 8\nrank = 16\n"
TOKENS = "[tokens]\ncounts = [1, 16]\n"
USUAL = LORA + TOKENS + SHRINK

_FOLDER = Path(__file__).parents[2]


@pytest.fixture
def read(tmp_path):
    """Reads a text as a study file."""

    def read(text: str) -> StudyPlan:
        path = tmp_path / "study.toml"
        path.write_text(text)
        return StudyPlan.read(path)

    return read


# ------------------------------------------------------------------ what a file may say


def test_a_short_file_takes_the_usual_values_for_the_rest(read):
    plan = read(USUAL)

    assert (plan.trials, plan.sampler, plan.time_budget_s, plan.seed) == (200, "adaptive", None, 0)
    assert (plan.kernels, plan.storage, plan.output) == ("auto", "sqlite:///autotune.db", "tuned")
    assert plan.axes == {op: {} for op in LoraOp}


def test_a_shape_is_made_for_every_token_count(read):
    plan = read(USUAL)

    assert [shape.num_tokens for shape in plan.shapes] == [1, 16]
    assert {(s.op, s.max_loras, s.rank, s.dtype) for s in plan.shapes} == {
        (LoraOp.SHRINK, 8, 16, "bfloat16")
    }


def test_a_shapes_own_values_go_before_those_of_the_tables(read):
    plan = read(USUAL + 'num_tokens = 7\nrank = 64\nmax_loras = 4\ndtype = "float16"\n')

    (shape,) = plan.shapes
    assert (shape.num_tokens, shape.rank, shape.max_loras, shape.dtype) == (7, 64, 4, "float16")


def test_every_table_is_read(read):
    plan = read(
        LORA + 'active_loras = 2\ndtype = "float16"\n' + TOKENS + SHRINK + "[search]\ntrials = 50\n"
        'sampler = "random"\ntime_budget = "1h30m"\nseed = 3\n'
        "[search.space.shrink]\nblock_m = [32, 16]\n"
        '[run]\nkernels = "builtin"\nstorage = "sqlite:///x.db"\noutput = "out"\n'
    )

    assert {(shape.active_loras, shape.dtype) for shape in plan.shapes} == {(2, "float16")}
    assert (plan.trials, plan.sampler, plan.time_budget_s, plan.seed) == (50, "random", 5400, 3)
    assert plan.axes == {op: {} for op in LoraOp} | {LoraOp.SHRINK: {"block_m": (16, 32)}}
    assert (plan.kernels, plan.storage, plan.output) == ("builtin", "sqlite:///x.db", "out")


def test_equal_shapes_are_tuned_once_under_both_names(read):
    plan = read(
        LORA
        + "[tokens]\ncounts = [16, 16]\n"
        + (SHRINK + 'layer = "o"\n')
        + (SHRINK + 'layer = "q"\n')
        + SHRINK
    )

    assert list(plan.layers.values()) == ["o, q"]
    assert plan.shapes == tuple(plan.layers)


def test_a_shape_without_a_layer_has_no_name(read):
    assert set(read(USUAL).layers.values()) == {""}


def test_shapes_that_are_known_already_make_a_plan():
    shapes = StudyPlan.quickstart().shapes

    assert StudyPlan.of_shapes(shapes).shapes == shapes


# ------------------------------------------------------------------ the quick-start study


def test_the_quick_start_study_is_llamas_dense_layers():
    plan = StudyPlan.quickstart()

    sizes = {(s.op.value, s.num_slices, s.hidden_size): name for s, name in plan.layers.items()}
    assert sizes == {
        ("shrink", 3, 4096): "qkv",
        ("expand", 3, 4096): "qkv",
        ("shrink", 1, 4096): "o",
        ("expand", 1, 4096): "o, down",
        ("shrink", 2, 4096): "gate_up",
        ("expand", 2, 14336): "gate_up",
        ("shrink", 1, 14336): "down",
    }
    assert len(plan.shapes) == 7 * 4
    assert {shape.num_tokens for shape in plan.shapes} == {1, 16, 128, 1024}
    assert {(s.max_loras, s.active_loras, s.rank) for s in plan.shapes} == {(8, 8, 16)}
    assert plan.trials == 200


def test_grouped_query_attention_gives_the_quick_start_slices_of_two_sizes():
    sizes = {shape.slice_sizes for shape in StudyPlan.quickstart().shapes if shape.num_slices == 3}
    assert sizes == {(), (4096, 1024, 1024)}


def test_the_quick_start_study_lies_among_the_study_files_too():
    link = _FOLDER / "studies" / "quickstart.toml"

    assert StudyPlan.read(link).shapes == StudyPlan.quickstart().shapes


@pytest.mark.parametrize(
    ("name", "rank", "hidden_size", "w13", "w2", "experts"),
    [
        ("qwen3-30b-a3b", 256, 2048, (2, 768), (1, 768), (128, 8)),
        ("mixtral-8x7b", 16, 4096, (2, 14336), (1, 14336), (8, 2)),
        ("gpt-oss-20b", 16, 2880, (1, 5760), (1, 2880), (32, 4)),
    ],
)
def test_the_moe_study_files_hold_the_four_ops_of_a_layer(
    name, rank, hidden_size, w13, w2, experts
):
    shapes = StudyPlan.read(_FOLDER / "studies" / f"{name}.toml").shapes

    assert [(s.op, s.num_tokens) for s in shapes] == [
        (op, m) for op in MOE_OPS for m in (1, 16, 256, 2048)
    ]
    assert {(s.rank, s.hidden_size, s.max_loras) for s in shapes} == {(rank, hidden_size, 8)}
    assert {(s.num_experts, s.top_k, s.routing) for s in shapes} == {(*experts, "uniform")}
    for shape in shapes:
        wanted = w13 if shape.op in MOE_OPS[:2] else w2
        assert (shape.num_slices, shape.intermediate_size) == wanted
    layers = by_layer(shapes, lambda shape: shape)
    assert [len(those) for those in layers.values()] == [4] * 4


def test_the_axes_of_a_moe_op_may_be_given(read):
    plan = read(USUAL + "[search.space.fused_moe_lora_w2_shrink]\nblock_m = [32, 16]\n")
    assert plan.axes[LoraOp.W2_SHRINK] == {"block_m": (16, 32)}


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[lora\n", r"study.toml: not TOML: Expected .*; correct it there"),
        (USUAL + "[serch]\n", r"study.toml: unknown key 'serch'; did you mean 'search'\?"),
        (USUAL + "[modl]\n", r"study.toml: unknown key 'modl'; did you mean 'model'\?"),
        (USUAL + "[model]\n", r"study.toml: has both \[model\] and \[\[shapes\]\]; leave one"),
        ("tokens = [1]\n" + LORA + SHRINK, r"\[tokens\]: must be a table: got \[1\]"),
        (LORA + "rnk = 16\n", r"\[lora\]: unknown key 'rnk'; did you mean 'rank'\?"),
        ("[lora]\nrank = 24\n", r"\[lora\] rank: must be one of 1, 8, 16, .*: got 24"),
        ("[lora]\nrank = true\n", r"\[lora\] rank: must be one of 1, 8, 16, .*: got True"),
        ("[lora]\nmax_loras = -1\n", r"\[lora\] max_loras: must be .* at least 1: got -1"),
        ("[lora]\nmax_loras = 2.5\n", r"\[lora\] max_loras: must be a whole number .*: got 2.5"),
        ('[lora]\ndtype = "int8"\n', r"\[lora\] dtype: must be one of bfloat16, .*: got 'int8'"),
        ('[lora]\ndtype = ["a"]\n', r"\[lora\] dtype: must be one of bfloat16, .*: got \['a'\]"),
        ("[tokens]\ncounts = []\n", r"\[tokens\] counts: must be a list .*\[1, 16\].*: got \[\]"),
        ("[tokens]\ncounts = [0]\n", r"\[tokens\] counts: must be .* at least 1: got 0"),
        ("[tokens]\ncounts = 16\n", r"\[tokens\] counts: must be a list .*: got 16"),
        ("[search]\ntrials = 0\n", r"\[search\] trials: must be .* at least 1: got 0"),
        (
            '[search]\nsampler = "cma"\n',
            r"\[search\] sampler: must be one of adaptive, .*: got 'cma'",
        ),
        ("[search]\ntime_budget = 600\n", r"\[search\] time_budget: must be .* 1h30m: got 600"),
        ("[search]\nseed = -1\n", r"\[search\] seed: must be .* at least 0: got -1"),
        ("[search]\nspace = 3\n", r"\[search\] space: must be a table: got 3"),
        ("[search.space.shrnk]\n", r"\[search.space\]: unknown key 'shrnk'; .*'shrink'\?"),
        ("[search.space]\nshrink = 1\n", r"\[search.space.shrink\]: must be a table: got 1"),
        (
            "[search.space.expand]\nsplit_k = [1]\n",
            r"\[search.space.expand\]: unknown key 'split_k'; known are block_m, .*num_ctas$",
        ),
        (
            "[search.space.shrink]\nblok_m = [16]\n",
            r"\[search.space.shrink\]: unknown key 'blok_m'; did you mean 'block_m'\?",
        ),
        (
            "[search.space.shrink]\nblock_m = []\n",
            r"\[search.space.shrink\]: axis block_m must be a list of values: got \[\]",
        ),
        ('[run]\nkernels = "mine"\n', r"\[run\] kernels: must be one of auto, .*: got 'mine'"),
        ('[run]\nstorage = ""\n', r"\[run\] storage: must be a text that is not empty: got ''"),
        ("[run]\noutput = 1\n", r"\[run\] output: must be a text .*: got 1"),
    ],
)
def test_a_wrong_table_or_value_is_refused_with_its_place(read, text, message):
    with pytest.raises(StudyFileError, match=message) as caught:
        read(text if "shapes" in text else text + SHRINK)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('op = "shrnk"', "unknown op: got 'shrnk'; use one of shrink, expand"),
        ("op = [1]", r"unknown op: got \[1\]; use one of"),
        ("hidden_size = 4096", "unknown op: got None; use one of"),
        ('op = "shrink"', "hidden_size must be a whole number: got nothing"),
        ('op = "shrink"\nhidden = 1', r"unknown key 'hidden'; did you mean 'hidden_size'\?"),
        ('op = "shrink"\nhidden_size = -1', "hidden_size must be 1 or more: got -1"),
        ('op = "shrink"\nhidden_size = "4k"', "hidden_size must be a whole number: got '4k'"),
        ('op = "shrink"\nhidden_size = 1\nrank = 24', "rank is not one .*: got 24; use 1, 8"),
        ('op = "shrink"\nhidden_size = 1\ndtype = []', r"unknown dtype: got \[\]; use bfloat16"),
        ('op = "shrink"\nhidden_size = 1\nactive_loras = 9', "active_loras .*: got 9 of 8"),
        ('op = "shrink"\nhidden_size = 1\nlayer = 3', "layer: must be a text .*: got 3"),
        ('op = "expand"\nslice_sizes = [4, 2]\nhidden_size = 3', "hidden_size contradicts .*got 3"),
    ],
)
def test_an_impossible_shape_is_refused_by_its_number(read, table, message):
    with pytest.raises(StudyFileError, match=rf"study.toml: \[\[shapes\]\] no. 2:? {message}"):
        read(USUAL + f"[[shapes]]\n{table}\n")


@pytest.mark.parametrize(
    ("text", "got"),
    [(LORA, r"\[\]"), ("shapes = []\n", r"\[\]"), ("[shapes]\nop = 1\n", "{'op': 1}")],
)
def test_a_file_without_shapes_is_refused(read, text, got):
    with pytest.raises(StudyFileError, match=rf"at least one \[\[shapes\]\] table: got {got}; add"):
        read(text)


def test_two_shapes_that_vllm_cannot_tell_apart_are_refused_by_their_numbers(read):
    expand = '[[shapes]]\nop = "expand"\nslice_sizes = '

    with pytest.raises(
        StudyFileError,
        match=r"no. 3: vLLM looks it up as expand 9/3/1/16/4096, like \[\[shapes\]\] no. 2, and "
        r"the two differ: slice_sizes \(4096, 1024, 1024\) and \(4096, 4096, 4096\); tune them in",
    ):
        read(USUAL + f"{expand}[4096, 1024, 1024]\n{expand}[4096, 4096, 4096]\n")


def test_the_two_expands_of_dual_stream_are_different_entries(read):
    expand = '[[shapes]]\nop = "expand"\nhidden_size = 4096\nnum_tokens = 1\nadd_inputs = '

    assert len(read(LORA + f"{expand}true\n{expand}false\n").shapes) == 2


def test_a_study_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StudyFileError, match=r"cannot read .*no.toml: No such file .*; check the"):
        StudyPlan.read(tmp_path / "no.toml")


def test_a_study_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "study.toml").write_bytes(b"\xff\xfe")

    with pytest.raises(StudyFileError, match=r"study.toml: not UTF-8"):
        StudyPlan.read(tmp_path / "study.toml")


# ------------------------------------------------------------------ flags


def test_flags_replace_what_the_file_says(read):
    plan = read(USUAL).override(
        max_loras=4,
        rank=64,
        tokens=(2, 3),
        trials=10,
        time_budget_s=60,
        sampler="gp",
        kernels="builtin",
        storage="sqlite:///y.db",
        output="there",
        seed=9,
    )

    assert [(s.max_loras, s.rank, s.num_tokens) for s in plan.shapes] == [(4, 64, 2), (4, 64, 3)]
    assert (plan.trials, plan.time_budget_s, plan.sampler, plan.seed) == (10, 60, "gp", 9)
    assert (plan.kernels, plan.storage, plan.output) == ("builtin", "sqlite:///y.db", "there")


@pytest.mark.parametrize(
    ("search", "flags", "expected"),
    [
        ("", {}, (200, "normal")),
        ("trials = 50", {}, (50, None)),
        ('effort = "instant"', {}, (6, "instant")),
        ('effort = "quick"', {}, (60, "quick")),
        ('effort = "quick"\ntrials = 50', {}, (50, "quick")),
        ("", {"trials": 50}, (50, None)),
        ('effort = "quick"', {"trials": 50}, (50, None)),
        ("trials = 50", {"effort": "thorough"}, (1000, "thorough")),
        ("", {"effort": "normal", "trials": 50}, (50, "normal")),
        ("trials = 50", {"sampler": "gp"}, (50, None)),
    ],
)
def test_trials_alone_are_made_all_and_an_effort_may_stop_before(read, search, flags, expected):
    plan = read(f"{USUAL}[search]\n{search}\n").override(**flags)
    assert (plan.trials, plan.effort) == expected


def test_flags_that_are_not_given_change_nothing(read):
    plan = read(USUAL)

    assert plan.override() == plan


def test_flags_go_before_what_a_single_shape_says(read):
    plan = read(USUAL + "num_tokens = 7\nrank = 64\n").override(rank=8, tokens=[5])

    assert [(shape.rank, shape.num_tokens) for shape in plan.shapes] == [(8, 5)]


def test_flags_may_give_what_the_file_lacks(read):
    plan = read(SHRINK)

    with pytest.raises(StudyFileError, match=r"no. 1 has no max_loras, rank and num_tokens: .*"):
        _ = plan.shapes
    with pytest.raises(
        StudyFileError, match=r"no. 1 has no rank and num_tokens: .* --rank and --tokens$"
    ):
        _ = plan.override(max_loras=8).shapes
    with pytest.raises(StudyFileError, match=r"no. 1 has no num_tokens: .*\[tokens\], .*--tokens$"):
        _ = plan.override(max_loras=8, rank=16).shapes
    assert len(plan.override(max_loras=8, rank=16, tokens=(1,)).shapes) == 1


def test_only_the_ops_asked_for_are_kept():
    plan = StudyPlan.quickstart().override(ops=[LoraOp.EXPAND])

    assert {shape.op for shape in plan.shapes} == {LoraOp.EXPAND}
    assert len(plan.shapes) == 3 * 4


def test_asking_for_an_op_that_is_not_there_says_what_there_is(read):
    with pytest.raises(StudyFileError, match=r"--op: no shape of expand in .*; it has shrink"):
        read(USUAL).override(ops=(LoraOp.EXPAND,))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ({"rank": 24}, "--rank: must be one of 1, 8, .*: got 24"),
        ({"max_loras": 0}, "--max-loras: must be .* at least 1: got 0"),
        ({"tokens": ()}, r"--tokens: must be a list of token counts.*: got \[\]"),
        ({"tokens": (0,)}, "--tokens: must be .* at least 1: got 0"),
        ({"trials": 0}, "--trials: must be .* at least 1: got 0"),
        ({"sampler": "cma"}, "--sampler: must be one of adaptive, tpe, gp, .*: got 'cma'"),
        ({"kernels": "mine"}, "--kernels: must be one of auto, .*: got 'mine'"),
        ({"output": ""}, "--output: must be a text that is not empty: got ''"),
        ({"seed": -1}, "--seed: must be .* at least 0: got -1"),
    ],
)
def test_a_wrong_flag_is_refused_with_its_value(read, flag: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyFileError, match=message):
        read(USUAL).override(**flag)


def test_a_flag_that_contradicts_the_file_is_refused(read):
    plan = read(LORA + "active_loras = 8\n" + TOKENS + SHRINK)

    with pytest.raises(StudyFileError, match=r"active_loras cannot exceed max_loras: got 8 of 4"):
        plan.override(max_loras=4)


# ------------------------------------------------------------------ durations


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2h", 7200), ("1m1s", 61)]
)
def test_a_duration_is_read_in_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "0s", "1.5h", "30m1h", "-1s", " 1s", "1 h", "1d"])
def test_a_wrong_duration_is_refused_with_examples(text):
    with pytest.raises(InputError, match=f"such as 90s, 10m or 1h30m: got '{text}'"):
        parse_duration(text)
