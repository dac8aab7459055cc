"""studies/moe_layer.py, as far as it goes without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from autotune.errors import InputError
from autotune.launch.op import MOE_OPS, LoraOp
from autotune.plan.study import StudyPlan
from tests.moe import DEFAULT, moe_table
from tests.patience import PATIENCE_S
from tests.studies.scripts import STUDIES, loaded

pytestmark = pytest.mark.slow

SCRIPT = STUDIES / "moe_layer.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("moe_layer")


def plan_of(tmp_path: Path, *ops: LoraOp, **changes: object) -> StudyPlan:
    """A study of such ops, in a file of its own."""
    tables = [moe_table(op, **changes) for op in ops]
    text = "".join(
        "[[shapes]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in each.items())
        for each in tables
    )
    path = tmp_path / "study.toml"
    path.write_text(text)
    return StudyPlan.read(path)


@pytest.mark.parametrize("study", ["qwen3-30b-a3b", "mixtral-8x7b", "gpt-oss-20b"])
def test_the_studies_of_moe_models_have_one_layer_a_token_count(script, study):
    plan = StudyPlan.read(STUDIES / f"{study}.toml").override(tokens=[1, 256])
    layers = script.layers_of(plan)
    assert list(layers) == [1, 256]
    for tokens, shapes in layers.items():
        assert {(op, shape.num_tokens) for op, shape in shapes.items()} == {
            (op, tokens) for op in MOE_OPS
        }


@pytest.mark.parametrize(
    ("ops", "changes", "message"),
    [
        (MOE_OPS[:3], {}, "has no w2_expand: all four ops are needed"),
        (MOE_OPS, {"fully_sharded": True}, "need several GPUs"),
    ],
)
def test_a_study_that_it_cannot_time_is_refused(script, tmp_path, ops, changes, message):
    with pytest.raises(InputError, match=message):
        script.layers_of(plan_of(tmp_path, *ops, **changes))


def write_entries(folder: Path, block_ms: dict[LoraOp, int]) -> None:
    folder.mkdir()
    for op, block_m in block_ms.items():
        table: dict[str, Any] = {
            "8": {"2" if op in MOE_OPS[:2] else "1": {"16": {"256": {"2048": {"768": {}}}}}}
        }
        leaf = table["8"][next(iter(table["8"]))]["16"]["256"]["2048"]
        leaf["768"] = DEFAULT | {"block_m": block_m}
        (folder / f"NVIDIA_X_{op.value.upper()}.json").write_text(json.dumps(table))


def test_the_tuned_configurations_are_those_that_vllm_finds(script, tmp_path):
    shapes = script.layers_of(plan_of(tmp_path, *MOE_OPS))[16]
    write_entries(tmp_path / "tuned", dict.fromkeys(MOE_OPS, 32))

    configs = script.tuned_configs(tmp_path / "tuned", shapes, "NVIDIA X")

    assert {op: config.block_m for op, config in configs.items()} == dict.fromkeys(MOE_OPS, 32)


def test_entries_that_vllm_could_not_run_together_are_refused(script, tmp_path):
    shapes = script.layers_of(plan_of(tmp_path, *MOE_OPS))[16]
    write_entries(tmp_path / "tuned", dict.fromkeys(MOE_OPS, 32) | {MOE_OPS[3]: 64})

    with pytest.raises(InputError, match="differ in block_m; see autotune check"):
        script.tuned_configs(tmp_path / "tuned", shapes, "NVIDIA X")


def test_the_table_has_what_was_timed_and_the_layers_sum_where_both_pairs_were(script):
    w13, w2 = script.PAIRS
    figures = {
        (1, w13): script.Figure(10.0, 5.0),
        (1, w2): script.Figure(20.0, 10.0),
        (2048, w13): script.Figure(1000.0, 800.0),
        (2048, "w2_shrink"): script.Figure(400.0, 400.0, "wrong"),
    }
    lines = list(script.table(script.with_sums(figures)))

    assert lines[0] == "| µs, default → tuned | 1 tokens | 2,048 tokens |"
    assert lines[2:] == [
        "| w2_shrink |  | 400.0 → 400.0 (1.00) |",
        "| w13 shrink + expand | 10.0 → 5.0 (2.00) | 1000.0 → 800.0 (1.25) |",
        "| w2 shrink + expand | 20.0 → 10.0 (2.00) |  |",
        "| layer, both pairs | 30.0 → 15.0 (2.00) |  |",
    ]


def test_what_there_is_no_time_for_is_left_out_and_counted(script, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def job() -> object:
        now[0] += 10.0
        return script.Figure(2.0, 1.0)

    figures, left = script.measured([(1, row, job) for row in "abcd"], 15.0)

    assert list(figures) == [(1, "a"), (1, "b")]
    assert left == 2
    assert capsys.readouterr().out.count("2.0 → 1.0 (2.00) numbers right") == 2


@pytest.mark.parametrize(
    ("study", "message"),
    [("qwen3-30b-a3b.toml", "no CUDA GPU here"), ("quickstart.toml", "has no MoE ops")],
)
def test_what_is_wrong_is_said_in_one_line(study, message, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, str(SCRIPT), "tuned", str(STUDIES / study), "--tokens", "1"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith("error: ")
    assert message in run.stderr
    assert run.stderr.count("\n") == 1
