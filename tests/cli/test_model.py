"""Commands that take a model: its shapes, a run, the check of what it wrote, and bad input."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.moe import moe_lines
from tests.recordings import ENVIRONMENT, lines

HAS_GPU = torch.cuda.is_available()
MODELS = Path(__file__).parents[2] / "studies" / "models"

#: A mixture of experts that is small enough to record: two layers.
TINY = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 1000,
}
SERVER = ("--max-loras", 2, "--rank", 16, "--tp", 2, "--fully-sharded")


@pytest.fixture
def model(autotune) -> Path:
    """The config of a small model, beside the command."""
    path: Path = autotune.folder / "config.json"
    path.write_text(json.dumps(TINY))
    return path


def listed(autotune, *arguments: object) -> list[dict[str, Any]]:
    ended = autotune("shapes", "--json", *arguments)
    assert ended.code == 0, ended.err
    rows: list[dict[str, Any]] = json.loads(ended.out)
    return rows


def write_recording(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A recording of shapes as ``autotune shapes --json`` lists them."""
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"schema": "autotune-recording/1", "environment": ENVIRONMENT}))
        for row in rows:
            shape = {k: v for k, v in row.items() if k not in {"layer", "file", "key", "runs"}}
            for line in moe_lines(shape) if "top_k" in shape else lines(shape):
                file.write("\n" + json.dumps(line))
    return path


# ------------------------------------------------------------------ shapes


def test_shapes_lists_layers_sizes_and_keys_and_says_how_long_it_will_take(autotune, model):
    ended = autotune("shapes", "--model", model, *SERVER, "--tokens", "16,64")

    assert ended.code == 0, ended.err
    table, _, text = ended.out.rstrip().rpartition("\n\n")
    assert table.split()[:6] == ["layer", "op", "runs", "slices", "hidden", "rank"]
    row = next(line for line in table.splitlines() if "qkv_proj" in line and "expand" in line)
    # 4 / 2 and 2 / 2 heads of 256 / 4; it runs in both layers.
    assert row.split()[1:6] == ["expand", "2", "3", "128", "16"]
    assert "128+64+64" in row
    assert "3/3/m/16/128" in row
    assert re.fullmatch(r"24 studies of up to 200 trials: about 3 min on an H100 .*", text)


def test_every_shape_has_its_key_once(autotune, model):
    rows = listed(autotune, "--model", model, *SERVER)

    keys = {(row["file"], *row["key"]) for row in rows}
    assert len(keys) == len(rows)
    assert {row["num_tokens"] for row in rows} == {*(2**n for n in range(14))}
    (w13,) = {r["rank"] for r in rows if r["op"] == "fused_moe_lora_w13_expand"}
    assert w13 == 8


# ------------------------------------------------------------------ a folder tuned for a model


def entries(autotune) -> set[tuple[str, ...]]:
    """Every path of every file in the folder, the file first."""

    def paths(table: dict[str, Any]) -> list[tuple[str, ...]]:
        if not all(isinstance(value, dict) for value in table.values()):
            return [()]
        return [(key, *rest) for key, below in table.items() for rest in paths(below)]

    return {
        (name.removeprefix("NVIDIA_Test_GPU"), *path)
        for name, content in autotune.files().items()
        if "provenance" not in name
        for path in paths(json.loads(content))
    }


def test_check_finds_every_shape_in_a_folder_tuned_for_the_model_and_nothing_else(
    autotune, model, tmp_path
):
    flags = ("--model", model, *SERVER, "--tokens", "1,16,64")
    rows = listed(autotune, *flags)
    recording = write_recording(tmp_path / "r.jsonl.gz", rows)

    ran = autotune("run", "--replay", recording, *flags, "--trials", 20, "--sampler", "random")
    assert ran.code == 0, ran.out + ran.err
    ended = autotune("check", "tuned", *flags, "--json")

    assert ended.code == 0, ended.out
    report = json.loads(ended.out)
    assert {lookup["outcome"] for lookup in report["shapes"]} == {"exact"}
    assert len(report["shapes"]) == len(rows)
    assert not [f for f in report["findings"] if f["kind"] == "matches_no_layer"]
    asked = {(row["file"].removeprefix("{gpu}"), *map(str, row["key"])) for row in rows}
    assert entries(autotune) == asked


def test_another_tensor_parallel_size_is_not_found_exactly(autotune, model, tmp_path):
    flags = ("--model", model, "--max-loras", 2, "--rank", 16, "--tokens", "16")
    recording = write_recording(tmp_path / "r.jsonl.gz", listed(autotune, *flags))
    autotune("run", "--replay", recording, *flags, "--trials", 10, "--sampler", "random")

    ended = autotune("check", "tuned", *flags, "--tp", 2)

    assert "matches_no_layer" in ended.out or "nearest" in ended.out
    assert "no shape asked for has" in ended.out


# ------------------------------------------------------------------ batch sizes


def crossing(path: Path, counts: list[int]) -> Path:
    """One shrink, of which another ``num_warps`` is best from 20 tokens on."""
    shape = {"op": "shrink", "hidden_size": 256, "rank": 16, "max_loras": 2}
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"schema": "autotune-recording/1", "environment": ENVIRONMENT}))
        for count in counts:
            best = 2 if count < 20 else 8
            for num_warps in (2, 4, 8):
                us = 10 if num_warps == best else (14 if num_warps == 4 else 20)
                config = {"block_m": 16, "block_n": 16, "block_k": 64, "split_k": 1}
                line = {
                    "shape": shape | {"num_tokens": count},
                    "config": config | {"num_warps": num_warps, "num_stages": 2},
                    "outcome": "ok",
                    "samples_us": [round(us * (1 + 0.001 * (i % 3)), 4) for i in range(9)],
                    "is_default": num_warps == 4,
                }
                file.write("\n" + json.dumps(line))
    return path


def test_auto_adds_rows_between_the_tuned_ones_and_says_what_that_is_worth(autotune, tmp_path):
    recording = crossing(tmp_path / "r.jsonl.gz", [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64])

    ended = autotune("run", "--replay", recording, "--tokens", "auto")

    assert ended.code == 0, ended.err
    # 24 is as near to 16 as to 32, and vLLM takes the first.
    assert "1 got a row of their own" in ended.out
    assert "100.0% before, 0.0% after" in ended.out
    assert "40 captured batch sizes are not in the recording" in ended.out
    table = json.loads(autotune.files()["NVIDIA_Test_GPU_SHRINK.json"])["3"]["1"]
    assert list(table) == ["1", "2", "4", "8", "16", "24", "32", "64"]
    assert table["24"]["256"]["16"]["num_warps"] == 8
    provenance = json.loads(autotune.files()["NVIDIA_Test_GPU_provenance.json"])
    (of_file,) = provenance["entries"].values()
    assert of_file["3/1/24/256/16"]["latency_us"] < of_file["3/1/24/256/16"]["default_latency_us"]


def test_the_same_command_again_adds_the_same_rows(autotune, tmp_path):
    recording = crossing(tmp_path / "r.jsonl.gz", [16, 24, 32])
    flags = ("run", "--replay", recording, "--tokens", "auto")
    first, files = autotune(*flags), autotune.files()

    again = autotune(*flags)

    assert (again.code, again.out) == (0, first.out)
    assert autotune.files() == files
    autotune("export", "--output", "again")
    assert autotune.files("again") == files


def test_rows_are_merged_on_request(autotune, tmp_path):
    recording = crossing(tmp_path / "r.jsonl.gz", [1, 2, 4, 8, 16, 24, 32, 64])

    ended = autotune("run", "--replay", recording, "--tokens", "auto", "--rows-max", 2)

    assert ended.code == 0, ended.err
    assert "rows were merged into their neighbours" in ended.out
    table = json.loads(autotune.files()["NVIDIA_Test_GPU_SHRINK.json"])["3"]["1"]
    assert len(table) == 2


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        ({"hidden_size": None}, (), r"must have hidden_size, .*: got nothing; give its layers by"),
        ({"architectures": ["Rwkv"]}, (), r"unknown model: .*'Rwkv'.*; give its layers by hand"),
        ({}, ("--tp", 3), r"tensor_parallel must divide num_attention_heads of .*: got 3 for 4"),
        ({}, ("--rank", 1024), r"--rank: must be one of 1, 8, .*: got 1024"),
        ({}, ("--target-modules", "c_attn"), r"no LoRA layer .* called 'c_attn'; it has qkv_proj"),
        (
            {},
            ("--adapter", "nowhere"),
            r"nowhere: no such file .*; give the path of adapter",
        ),
        ({}, ("--rows-max", 2, "--tokens", 1), r"--rows-max is for --tokens auto.*: got 2; leave"),
        ({}, ("--tp", 2, "--fully-sharded", "--expert-parallel"), r"no fully-sharded .* expert"),
    ],
)
def test_a_model_that_cannot_be_is_one_clear_line(autotune, model, change, flags, message):
    model.write_text(json.dumps(TINY | change))
    rank = () if "--rank" in flags else ("--rank", 16)
    command = "run" if "--rows-max" in flags else "shapes"

    line = autotune(
        command, "--model", model, "--max-loras", 2, *rank, *flags
    ).has_failed_in_one_line()

    assert re.search(message, line), line


def test_an_adapter_for_other_modules_is_one_clear_line(autotune, model):
    table = {"r": 8, "target_modules": ["query_key_value"]}
    (autotune.folder / "adapter_config.json").write_text(json.dumps(table))

    line = autotune(
        "shapes", "--model", model, "--max-loras", 2, "--adapter", "."
    ).has_failed_in_one_line()

    assert "no LoRA layer of MixtralForCausalLM is called 'query_key_value'" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tp", 2), "the quick-start study gives its shapes by hand"),
        (("--model", "no/such/file"), "no/such/file: no such file or folder"),
        (("--model", "."), "the folder has no config.json"),
    ],
)
def test_a_model_that_is_not_there_is_one_clear_line(autotune, flags, message):
    line = autotune("shapes", *flags, "--max-loras", 2, "--rank", 16).has_failed_in_one_line()

    assert message in line


def test_a_study_of_shapes_and_a_model_is_never_both(autotune, model):
    (autotune.folder / "study.toml").write_text('[[shapes]]\nop = "shrink"\nhidden_size = 64\n')

    line = autotune("shapes", "study.toml", "--model", model).has_failed_in_one_line()

    assert "study.toml gives its shapes by hand" in line
