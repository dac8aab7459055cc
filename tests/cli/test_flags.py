"""The flags that choose the shapes, and the commands that take them."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from autotune.cli import commands
from autotune.cli.shape_flags import ShapeFlags
from autotune.launch.op import LoraOp
from autotune.plan.study import StudyPlan

CONFIG = Path(__file__).parents[2] / "studies" / "models" / "qwen3-8b.json"

#: A value of every flag, by the name of its field.
VALUES: dict[str, Any] = {
    "max_loras": 4,
    "rank": 32,
    "active_loras": 2,
    "tokens": (1, 16),
    "ops": [LoraOp.SHRINK],
    "config": str(CONFIG),
    "tensor_parallel": 2,
    "fully_sharded": True,
    "expert_parallel": True,
    "target_modules": ("q_proj",),
    "mixed_moe_lora_format": True,
    "moe_shared_loras": True,
    "moe_backend": "marlin",
    "data_parallel": 2,
    "dual_stream": True,
    "specialize_active_lora": True,
    "vllm": "0.28.0",
    "ask_vllm": True,
    "adapter": ["adapter"],
    "max_num_batched_tokens": 4096,
    "max_num_seqs": 64,
    "speculative_tokens": 3,
    "cudagraph_capture_sizes": (1, 8),
    "max_cudagraph_capture_size": 128,
}
#: A server that a model is planned for.
MODEL: dict[str, Any] = {"config": str(CONFIG), "max_loras": 8, "rank": 16}


@pytest.mark.parametrize("name", VALUES)
def test_a_flag_is_found_in_the_plan(name):
    plan = ShapeFlags(**MODEL | {name: VALUES[name]}).plan()
    assert plan.model is not None
    found: dict[str, Any] = {
        **plan.lora,
        **plan.limits,
        **{each.name: getattr(plan.model, each.name) for each in fields(plan.model)},
        "tokens": plan.tokens,
        "ops": list(plan.ops or ()),
        "adapter": list(plan.model.adapter),
    }
    assert found[name] == VALUES[name]


def test_of_several_adapters_all_are_taken():
    plan = ShapeFlags(**MODEL, adapter=["one", "two"]).plan()

    assert plan.model is not None
    assert plan.model.adapter == ("one", "two")


def test_every_flag_but_the_study_and_the_trace_is_tested_here():
    """A trace is in place of a model: ``test_trace.py`` has it."""
    assert {each.name for each in fields(ShapeFlags)} == {"study", "trace", *VALUES}


def test_without_flags_the_plan_is_the_recordings_or_else_the_quick_start_study():
    assert ShapeFlags().given == {}
    quickstart = StudyPlan.quickstart().shapes
    assert ShapeFlags().plan().shapes == quickstart
    assert ShapeFlags().plan(quickstart[:2]).shapes == quickstart[:2]


@pytest.mark.parametrize("name", ["run", "record_spaces", "shapes", "bench", "check"])
def test_a_command_takes_every_flag_about_shapes(name):
    parameters = inspect.signature(getattr(commands, name)).parameters
    assert {each.name for each in fields(ShapeFlags)} <= set(parameters)
    assert "flags" not in parameters


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--vllm", "new", "must be a release of vLLM, such as 0.33.0: got 'new'"),
        ("--vllm", "0.10.2", "that autotune knows, 0.11.1 to 0.33.0: got '0.10.2'"),
        ("--cudagraph-capture-sizes", "1,x", "must be a whole number of at least 1: got 'x'"),
        ("--cudagraph-capture-sizes", "0", "must be a whole number of at least 1: got 0"),
        ("--dp", "0", "must be a whole number of at least 1: got '0'"),
    ],
)
def test_a_flag_that_cannot_be_is_a_usage_error_that_quotes_it(autotune, flag, value, message):
    said = autotune("shapes", "--model", CONFIG, flag, value).has_refused_its_usage()

    assert message in said


@pytest.mark.parametrize("flag", ["--max-loras", "--dp", "--max-num-seqs"])
def test_a_number_too_long_to_be_read_is_a_usage_error_with_its_length(autotune, flag):
    said = autotune("shapes", flag, "9" * 5000).has_refused_its_usage()

    assert "must be a whole number of at least 1: got 5000 characters" in said


def test_a_flag_that_the_release_lacks_is_one_line_that_names_it(autotune):
    flags = ["--max-loras", "8", "--rank", "16", "--vllm", "0.15.1", "--dual-stream"]

    line = autotune("shapes", "--model", CONFIG, *flags).has_failed_in_one_line()

    assert "vLLM 0.15.1 has no VLLM_LORA_ENABLE_DUAL_STREAM, 0.20 has" in line
