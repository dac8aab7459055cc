"""Study files that a fault or an enemy wrote: one line each, never another exception."""

from __future__ import annotations

import datetime
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import InputError, StudyFileError, shown
from autotune.launch.shape import LARGEST_SIZE, KernelShape
from autotune.plan.file import fields_of
from autotune.plan.study import StudyPlan
from tests.mutated import nested, places

_HUGE = int("f" * 5000, 16)  # more digits than Python writes

_MODEL = str(Path(__file__).parents[2] / "studies" / "models" / "llama-3.1-8b.json")


def _with_shapes() -> dict[str, Any]:
    """The content of a valid study file that gives every key but those of ``[model]``."""
    return {
        "lora": {"max_loras": 8, "rank": 16, "active_loras": 2, "dtype": "bfloat16"},
        "tokens": {"counts": [1, 16], "max_num_batched_tokens": 8192, "max_num_seqs": 64},
        "search": {
            "trials": 10,
            "effort": "quick",
            "sampler": "random",
            "time_budget": "10m",
            "seed": 3,
            "warm_start": "sqlite:///old.db",
            "space": {"shrink": {"block_m": [16, 32]}},
        },
        "run": {"kernels": "builtin", "storage": "sqlite:///x.db", "output": "out"},
        "shapes": [
            {"op": "shrink", "hidden_size": 4096, "num_slices": 3, "layer": "qkv"},
            {"op": "expand", "slice_sizes": [4096, 1024], "add_inputs": False},
            {
                "op": "fused_moe_lora_w13_shrink",
                "hidden_size": 2048,
                "num_tokens": 4,
                "num_experts": 8,
                "top_k": 2,
                "intermediate_size": 768,
                "routing": "hit=4",
                "fully_sharded": True,
                "shards": 2,
                "global_experts": 8,
                "rank": 8,
                "num_slices": 2,
            },
        ],
    }


def _with_model() -> dict[str, Any]:
    """The content of a valid study file of a model."""
    return {
        "lora": {"max_loras": 8, "rank": 16},
        "model": {
            "config": _MODEL,
            "tensor_parallel": 2,
            "fully_sharded": False,
            "expert_parallel": False,
            "target_modules": ["q_proj"],
        },
    }


_HOSTILE = st.one_of(
    st.sampled_from(
        [
            *(0, -1, 1, 2**31 - 1, 2**31, 2**63, -(2**63), _HUGE, -_HUGE),
            *(math.nan, math.inf, -math.inf, -0.0, 1.5, True, False, "", "1", "\x00", "\x1b[2J"),
            *("a\nb", "\u202e", "x" * 5000, "~nobody/x", "é", "auto", "uniform", "hit=999999"),
            *([], [[]], {}, {"": {}}, [{}], {"op": "shrink"}, [_HUGE], [1] * 1000),
            *(datetime.date(2026, 1, 1), datetime.time(1), nested(200)),
        ]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-2, 2**33), max_size=3),
)


def _put(content: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        content = content[key]
    content[place[-1]] = value


def _check_harmless(error: Exception) -> None:
    line = str(error)
    assert line.isprintable()
    assert len(line) < 1500


_ALL = [*((_with_shapes, p) for p in places(_with_shapes()))]
_ALL += [(_with_model, p) for p in places(_with_model())]


@given(where=st.sampled_from(_ALL), value=_HOSTILE)
def test_a_hostile_value_at_any_place_is_taken_or_refused_in_one_line(where, value):
    make, place = where
    content = make()
    _put(content, place, value)

    try:
        fields = fields_of("study.toml", content, Path())
        _ = StudyPlan(source="study.toml", **fields).shapes
    except InputError as error:
        _check_harmless(error)


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a study file."""

    def read(content: bytes) -> StudyPlan:
        path = tmp_path / "study.toml"
        path.write_bytes(content)
        return StudyPlan.read(path)

    return read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x=" + b"[" * 3000 + b"]" * 3000, "nested too deep"),
        (b"[search]\ntrials=" + b"9" * 5000, "a number is at most 2147483647"),
        (
            b"[search]\ntrials=0x" + b"f" * 5000,
            r"trials: must be 2147483647 or less: got a whole n",
        ),
        (b"[search]\ntrials=nan", r"\[search\] trials: must be a whole number .*: got nan"),
        (b'[search]\ntime_budget="999999999h"', "time_budget: must be 2147483647 seconds or less"),
        (b'[run]\noutput="\\u001b[2J"', r"output: must be a text without control .*: got '\\x1b\["),
        (b'"\\u001b"=1', r"unknown key '\\x1b'"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_study_file_that_cannot_be_meant_is_refused_in_one_line(read, content, message):
    with pytest.raises(StudyFileError, match=message) as info:
        read(content)
    _check_harmless(info.value)
    assert "study.toml" in str(info.value)


def test_a_pipe_or_a_folder_in_place_of_a_study_file_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(StudyFileError, match="pipe: not a file but a pipe or a device"):
        StudyPlan.read(tmp_path / "pipe")
    with pytest.raises(StudyFileError, match="Is a directory"):
        StudyPlan.read(tmp_path)
    with pytest.raises(StudyFileError, match=r"cannot read the study file .x00"):
        StudyPlan.read(Path("\0"))


@pytest.mark.parametrize("name", ["num_tokens", "hidden_size", "max_loras"])
def test_a_size_of_more_than_32_bits_is_refused_wherever_a_shape_is_read(name):
    table = {"op": "shrink", "num_tokens": 1, "hidden_size": 64, "rank": 16, "max_loras": 1}

    KernelShape.from_mapping(table | {name: LARGEST_SIZE})
    with pytest.raises(InputError, match=f"{name} must be 2147483647 or less: got 2147483648"):
        KernelShape.from_mapping(table | {name: LARGEST_SIZE + 1})
    with pytest.raises(InputError, match="num_slices must be 64 or less: got 2147483647"):
        KernelShape.from_mapping(table | {"op": "expand", "num_slices": LARGEST_SIZE})


@given(value=_HOSTILE)
def test_every_value_is_shown_short_and_on_one_line(value):
    assert shown(value).isprintable()
    assert len(shown(value)) < 800
