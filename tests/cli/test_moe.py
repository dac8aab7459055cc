"""A MoE layer at the command line: from a recording to files that a check accepts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from autotune.launch.op import MOE_OPS, LoraOp
from tests.moe import moe_lines, moe_table
from tests.search.cases import write_lines

GPU = "NVIDIA_Test_GPU"


def recorded(path: Path, ops: Sequence[LoraOp] = MOE_OPS, **changes: Any) -> Path:
    return write_lines(path, [line for op in ops for line in moe_lines(moe_table(op, **changes))])


@pytest.fixture
def recording(tmp_path) -> Path:
    return recorded(tmp_path / "moe.jsonl.gz")


@pytest.mark.slow
def test_a_run_tells_the_layers_choice_and_writes_four_files_that_agree(autotune, recording):
    ended = autotune("run", "--replay", recording, "--trials", 60)

    assert ended.code == 0, ended.out + ended.err
    assert "Not among" not in ended.out
    (line,) = [line for line in ended.out.splitlines() if line.startswith("MoE layer")]
    assert "m=16,rank=256,hidden=2048" in line
    assert "block_m 32 for its four ops, 1." in line
    assert len(autotune.files()) == 5
    assert "4 exact, 0 nearest, 0 default, 0 stops; 0 errors" in ended.out
    checked = autotune("check", "tuned", "--replay", recording)
    assert checked.code == 0, checked.out


@pytest.mark.slow
def test_an_export_from_the_database_chooses_the_same(autotune, recording):
    for op in MOE_OPS:
        ended = autotune("run", "--replay", recording, "--trials", 60, "--op", op.value)
        assert ended.code == 0, ended.out + ended.err
    ended = autotune("export", "--output", "again")

    assert ended.code == 0, ended.out + ended.err
    assert autotune.files("again") == autotune.files()
    table = json.loads(autotune.files()[f"{GPU}_FUSED_MOE_LORA_W2_SHRINK.json"])
    assert table["8"]["1"]["16"]["256"]["2048"]["768"]["block_m"] == 32


@pytest.mark.slow
def test_one_block_m_that_is_changed_fails_the_check(autotune, recording):
    autotune("run", "--replay", recording, "--trials", 40)
    path = autotune.folder / "tuned" / f"{GPU}_FUSED_MOE_LORA_W2_EXPAND.json"
    path.write_text(path.read_text().replace('"block_m": 32', '"block_m": 128'))
    ended = autotune("check", "tuned")

    assert ended.code == 3
    assert "give all four MoE files one block_m" in ended.out


def test_a_run_says_where_only_block_m_is_read_and_tunes_nothing_else(autotune, tmp_path):
    ended = autotune("run", "--replay", recorded(tmp_path / "r16.jsonl.gz", rank=16, num_tokens=64))

    assert ended.code == 0, ended.out + ended.err
    assert "vLLM 0.33.0 reads only block_m of MoE entries of rank 16" in ended.out
    assert ended.out.count(", 4 trials") == 4


@pytest.mark.slow
def test_a_run_says_which_ops_of_a_layer_are_missing(autotune, recording):
    ended = autotune("run", "--replay", recording, "--op", "fused_moe_lora_w2_shrink")

    assert ended.code == 0, ended.out + ended.err
    assert "Not among the shapes: w13_shrink, w13_expand, w2_expand of a MoE layer" in ended.out


@pytest.mark.slow
def test_an_op_that_cannot_agree_with_the_folder_is_refused_in_one_line(autotune, tmp_path):
    whole = recorded(tmp_path / "whole.jsonl.gz")
    autotune("run", "--replay", whole, "--trials", 60)
    alone = [
        line
        for line in moe_lines(moe_table(LoraOp.W2_SHRINK))
        if line["config"]["block_m"] != 32  # which is what the folder's other three have
    ]
    path = write_lines(tmp_path / "alone.jsonl.gz", alone)
    before = autotune.files()
    ended = autotune("run", "--replay", path, "--storage", "sqlite:///other.db")

    line = ended.has_failed_in_one_line()
    assert "must share block_m 32" in line
    assert "tune all four ops together" in line
    assert autotune.files() == before
