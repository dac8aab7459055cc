"""Commands that take a model: its shapes, a run, the check of what it wrote, and bad input."""

from __future__ import annotations

import gzip
import http.server
import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.launch.shape import KernelShape
from tests.cli.command import Command, Ended
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
#: What ``shapes --json`` adds to a shape's own fields.
ADDED = {"layer", "runs", "file", "key"}

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
            shape = {name: value for name, value in row.items() if name not in ADDED}
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
    assert re.fullmatch(r"24 studies of up to 200 trials: about 1 min on an H100 .*", text)


def test_every_shape_has_its_key_once(autotune, model):
    rows = listed(autotune, "--model", model, *SERVER)

    keys = {(row["file"], *row["key"]) for row in rows}
    assert len(keys) == len(rows)
    assert {row["num_tokens"] for row in rows} == {*(2**n for n in range(14))}
    (w13,) = {r["rank"] for r in rows if r["op"] == "fused_moe_lora_w13_expand"}
    assert w13 == 8


def test_the_json_is_every_shapes_own_table_with_its_layers_and_its_key(autotune, model):
    rows = listed(autotune, "--model", model, *SERVER, "--tokens", 16)

    tables = [{name: value for name, value in row.items() if name not in ADDED} for row in rows]
    shapes = [KernelShape.from_mapping(table) for table in tables]
    assert [shape.as_dict() for shape in shapes] == tables
    for row, shape in zip(rows, shapes, strict=True):
        assert row.keys() >= ADDED
        assert (row["file"], tuple(row["key"])) == (shape.file_name("{gpu}"), shape.lookup_key)
    of_o_proj = [row for row in rows if row["layer"] == "self_attn.o_proj"]
    assert of_o_proj[0] == {
        "op": "shrink",
        "num_tokens": 16,
        "hidden_size": 128,
        "rank": 16,
        "num_slices": 1,
        "max_loras": 2,
        "active_loras": 2,
        "dtype": "bfloat16",
        "layer": "self_attn.o_proj",
        "runs": 2,
        "file": "{gpu}_SHRINK.json",
        "key": [3, 1, 16, 128, 16],
    }


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


@pytest.mark.slow
def test_check_finds_every_shape_in_a_folder_tuned_for_the_model_and_nothing_else(
    autotune, model, tmp_path
):
    flags = ("--model", model, *SERVER, "--tokens", "16")
    rows = listed(autotune, *flags)
    recording = write_recording(tmp_path / "r.jsonl.gz", rows)

    ran = autotune("run", "--replay", recording, *flags, "--trials", 10, "--sampler", "random")
    passes = ran.out.partition("All LoRA kernels of one forward pass, in milliseconds:\n")[2]
    assert passes.splitlines()[0].split("  ") == ["tokens", "default ms", "tuned ms", "ratio"]
    assert re.match(r"^ *16 .* \d\.\d{3} +\d\.\d{3} +\d+\.\d\dx$", passes.splitlines()[1])
    assert ran.code == 0, ran.out + ran.err
    ended = autotune("check", "tuned", *flags, "--json")

    assert ended.code == 0, ended.out
    report = json.loads(ended.out)
    assert {lookup["outcome"] for lookup in report["shapes"]} == {"exact"}
    assert len(report["shapes"]) == len(rows)
    assert not [f for f in report["findings"] if f["kind"] == "matches_no_layer"]
    asked = {(row["file"].removeprefix("{gpu}"), *map(str, row["key"])) for row in rows}
    assert entries(autotune) == asked


# ------------------------------------------------------------------ batch sizes


def crossing(path: Path, counts: list[int]) -> Path:
    """A recording of one shrink, whose best ``num_warps`` is 2 below 20 tokens and 8 from there."""
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


REFINED = ("run", "--replay", "r.jsonl.gz", "--tokens", "auto")


@pytest.fixture(scope="module")
def refined(tmp_path_factory) -> tuple[Command, Ended]:
    """The command in a folder where a run has refined its rows, and how that ended."""
    autotune = Command(tmp_path_factory.mktemp("refined"))
    counts = [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    crossing(autotune.folder / "r.jsonl.gz", counts)
    return autotune, autotune(*REFINED)


def test_auto_adds_rows_between_the_tuned_ones_and_says_what_that_is_worth(refined):
    autotune, ended = refined

    assert ended.code == 0, ended.err
    # 24 is as near to 16 as to 32, and vLLM takes the first.
    assert "100.0% before, 0.0% after; rows added: 1, merged: 0." in ended.out
    assert (
        "that the recording does not hold, and so neither timed nor given a row: 40." in ended.out
    )
    table = json.loads(autotune.files()["NVIDIA_Test_GPU_SHRINK.json"])["3"]["1"]
    assert list(table) == ["1", "2", "4", "8", "16", "24", "32", "40", "48", "56", "64"]
    assert table["24"]["256"]["16"]["num_warps"] == 8
    provenance = json.loads(autotune.files()["NVIDIA_Test_GPU_provenance.json"])
    (of_file,) = provenance["entries"].values()
    assert of_file["3/1/24/256/16"]["latency_us"] < of_file["3/1/24/256/16"]["default_latency_us"]


@pytest.mark.slow
def test_the_same_command_again_adds_the_same_rows(refined):
    autotune, first = refined
    files = autotune.files()

    again = autotune(*REFINED)

    assert (again.code, again.out) == (0, first.out)
    assert autotune.files() == files
    autotune("export", "--output", "again")
    assert autotune.files("again") == files


@pytest.mark.slow
def test_rows_are_merged_on_request(refined):
    autotune, _ = refined

    ended = autotune(*REFINED, "--rows-max", 2, "--output", "merged")

    assert ended.code == 0, ended.err
    assert "0.0% after; rows added: 1, merged: 6." in ended.out
    files = autotune.files("merged")
    assert len(json.loads(files["NVIDIA_Test_GPU_SHRINK.json"])["3"]["1"]) == 2


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        ({"hidden_size": None}, (), r"must have hidden_size, .*: got nothing; give its layers by"),
        ({"architectures": ["Rwkv"]}, (), r"unknown model: .*'Rwkv'.*--ask-vllm; .* by hand"),
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
def test_a_model_that_cannot_be_used_is_one_clear_line(autotune, model, change, flags, message):
    model.write_text(json.dumps(TINY | change))
    rank = () if "--rank" in flags else ("--rank", 16)
    command = "run" if "--rows-max" in flags else "shapes"

    line = autotune(
        command, "--model", model, "--max-loras", 2, *rank, *flags
    ).has_failed_in_one_line()

    assert re.search(message, line), line


def test_an_adapter_for_other_modules_is_one_clear_line(autotune, model):
    table = {"r": 8, "lora_alpha": 8, "target_modules": ["query_key_value"]}
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


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the Hugging Face hub does for a model that is missing or gated."""

    def do_HEAD(self) -> None:
        is_gated = "gated" in self.path
        self.send_response(403 if is_gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if is_gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing among the results of tests."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "reason"),
    [("no/model", "Repository Not Found for url"), ("gated/model", "Cannot access gated repo")],
)
def test_a_model_that_the_hub_refuses_is_one_line_with_the_hubs_reason(
    autotune, monkeypatch, model, reason
):
    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
        monkeypatch.setenv("HF_HOME", str(autotune.folder))
        # huggingface_hub reads these when it is imported.
        ended = autotune.in_a_new_process(
            "shapes", "--model", model, "--max-loras", 2, "--rank", 16
        )
        hub.shutdown()

    line = ended.has_failed_in_one_line()
    assert re.search(rf"{model}: config.json cannot be had .*: {reason}.*; check the name", line)


def test_a_study_of_shapes_and_a_model_is_never_both(autotune, model):
    (autotune.folder / "study.toml").write_text('[[shapes]]\nop = "shrink"\nhidden_size = 64\n')

    line = autotune("shapes", "study.toml", "--model", model).has_failed_in_one_line()

    assert "study.toml gives its shapes by hand" in line
