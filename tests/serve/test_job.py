"""What engines are started with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autotune.plan.study import StudyPlan
from autotune.serve.job import Load, ServedModel
from tests.serve.double import write_model

GIB = 2**30


def room(tmp_path: Path, requests: int, **fields: object) -> int:
    """The bytes for keys and values of an engine that shares a GPU with others.

    A request has 160 tokens, which are three blocks of 64.
    """
    model = write_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    tensor_parallel = int(str(fields.pop("tensor_parallel", 1)))
    (model / "config.json").write_text(json.dumps(config | fields))
    plan = StudyPlan.of_model(str(model)).with_model({"tensor_parallel": tensor_parallel}, {})
    load = Load(requests=(1, requests), inputs=(64,), outputs=(96,), repeats=1, at_once=True)
    served = ServedModel.of(plan.override(rank=8, max_loras=1), tmp_path, load)
    flags = list(served.common)
    assert flags[-2:] == ["--gpu-memory-utilization", "0.05"]
    return int(flags[flags.index("--kv-cache-memory-bytes") + 1])


def test_a_small_model_gets_the_least(tmp_path):
    assert room(tmp_path, 4) == GIB


@pytest.mark.parametrize(
    ("fields", "token_bytes"),
    [
        ({"num_hidden_layers": 64}, 64 * 2 * 2 * 64 * 2),
        ({"num_hidden_layers": 64, "torch_dtype": "float32"}, 64 * 2 * 2 * 64 * 4),
        ({"num_hidden_layers": 64, "tensor_parallel": 2}, 64 * 2 * 1 * 64 * 2),
        ({"num_hidden_layers": 64, "num_key_value_heads": None}, 64 * 2 * 4 * 64 * 2),
        ({"num_hidden_layers": 64, "head_dim": 128}, 64 * 2 * 2 * 128 * 2),
    ],
)
def test_the_room_is_that_of_all_requests_and_a_quarter_more(tmp_path, fields, token_bytes):
    assert room(tmp_path, 8192, **fields) == 1.25 * 8192 * 192 * token_bytes


def test_engines_that_have_a_gpu_each_in_turn_take_what_there_is(tmp_path):
    plan = StudyPlan.of_model(str(write_model(tmp_path / "model"))).override(rank=8, max_loras=1)
    load = Load(requests=(8,), inputs=(64,), outputs=(96,), repeats=1)
    assert "--kv-cache-memory-bytes" not in ServedModel.of(plan, tmp_path, load).common
