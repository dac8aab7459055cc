"""``autotune check``: a folder that is right, and one test for each kind of damage."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autotune as package
from tests.cli.command import Command, Ended
from tests.recordings import write_recording

STUDIES = Path(__file__).parents[2] / "studies"

RECORDING = Path(package.__file__).parent / "recordings" / "llama-3.1-8b_h100.jsonl.gz"
SHRINK = "NVIDIA_H100_80GB_HBM3_SHRINK.json"
EXPAND = "NVIDIA_H100_80GB_HBM3_EXPAND_TRUE.json"
MOE = "NVIDIA_H100_80GB_HBM3_FUSED_MOE_LORA_{}.json"
PLACE = f"error: {SHRINK} at 9/3/16/4096/16: "

REPLAY = ("--replay", RECORDING, "--tokens", "1,16")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The quick-start study's files for two batch sizes, of few trials each."""
    folder: Path = tmp_path_factory.mktemp("exported")
    ended = Command(folder)("run", *REPLAY, "--trials", 3)
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def tuned(autotune, exported) -> Path:
    """A copy of the exported files, where the command runs, to be damaged."""
    folder: Path = autotune.folder / "tuned"
    shutil.copytree(exported / "tuned", folder)
    return folder


@pytest.fixture
def change(tuned) -> Callable[..., None]:
    """Edits a tuned file: the function changes its table, which is then written."""

    def edit(how: Callable[[Any], object], name: str = SHRINK) -> None:
        table = json.loads((tuned / name).read_text())
        how(table)
        (tuned / name).write_text(json.dumps(table))

    return edit


@pytest.fixture
def check(autotune, tuned) -> Callable[..., Ended]:
    assert tuned.is_dir()
    return lambda *flags: autotune("check", "tuned", *(flags or REPLAY))


def entry(table: Any) -> dict[str, Any]:
    leaf: dict[str, Any] = table["9"]["3"]["16"]["4096"]["16"]
    return leaf


def errors(ended: Ended) -> list[str]:
    return [line for line in ended.out.splitlines() if line.startswith("error: ")]


def warnings(ended: Ended) -> list[str]:
    return [line for line in ended.out.splitlines() if line.startswith("warning: ")]


def the_error(ended: Ended) -> str:
    """The one error of a check that failed."""
    assert ended.code == 3, ended.out + ended.err
    (line,) = errors(ended)
    return line


# ------------------------------------------------------------------ what is right


@pytest.mark.slow
def test_a_folder_that_is_right_passes_and_every_shape_is_found(check):
    ended = check()
    assert (ended.code, ended.err, errors(ended)) == (0, "", [])
    rows = [line for line in ended.out.splitlines() if line.startswith(("shrink", "expand"))]
    assert len(rows) == 14
    assert all(row.split()[-1] == "exact" for row in rows)
    assert ended.out.splitlines()[-1] == (
        "Checked tuned for vLLM 0.33.0: 14 shapes looked up: "
        "14 exact, 0 nearest, 0 default, 0 stops; 0 errors, 2 warnings"
    )


def test_what_an_ordinary_dense_folder_lacks_is_told_once_with_when_it_matters(check):
    dual_stream, moe = warnings(check())
    assert (
        "EXPAND_FALSE.json: is not there: vLLM opens it with VLLM_LORA_ENABLE_DUAL" in dual_stream
    )
    assert "its MoE files are not there: nothing to do for a dense model" in moe


def test_with_no_shapes_the_files_alone_are_checked(autotune, tuned):
    ended = autotune("check", tuned)
    assert ended.code == 0, ended.out
    assert "shapes looked up" not in ended.out


def test_the_shapes_may_come_from_a_study_file_or_from_flags(autotune, tuned):
    (autotune.folder / "study.toml").write_text(
        '[[shapes]]\nop = "shrink"\nhidden_size = 4096\nnum_slices = 3\n'
        "rank = 16\nmax_loras = 8\nnum_tokens = 16\n"
    )
    assert "1 shape looked up: " in autotune("check", tuned, "study.toml").out
    assert "28 shapes looked up: " in autotune("check", tuned, "--rank", 16).out
    assert "28 shapes looked up: " in autotune("check", tuned, "--max-num-seqs", 64).out


def test_the_shapes_may_come_from_the_database(autotune, exported, tuned):
    ended = autotune("check", tuned, "--storage", f"sqlite:///{exported}/autotune.db")
    assert ended.code == 0
    assert "14 shapes looked up: 14 exact" in ended.out


def test_json_has_every_shape_with_what_is_found_and_every_finding(check, change):
    change(lambda table: entry(table).pop("num_stages"))
    ended = check(*REPLAY, "--json")
    assert ended.code == 3
    report = json.loads(ended.out)
    assert (report["vllm"], report["errors"], report["warnings"]) == ("0.33.0", 1, 2)
    assert (report["findings"][0]["kind"], report["findings"][0]["key"]) == (
        "missing_parameter",
        "9/3/16/4096/16",
    )
    shape = report["shapes"][0]
    assert (shape["file"], shape["outcome"], shape["path"]) == (
        SHRINK,
        "exact",
        [9, 3, 1, 4096, 16],
    )
    assert shape["entry"]["num_warps"]


# ------------------------------------------------------------------ errors


def test_a_missing_number_of_slices(check, change):
    change(lambda table: table["9"].pop("3"))
    ended = check()
    assert ended.code == 3
    first, second = errors(ended)
    assert first.startswith(f"error: {SHRINK} at 9/3/1/4096/16: vLLM would stop: ")
    assert "no entry for num_slices 3, only 1, 2" in first
    assert "KeyError" in first
    assert " at 9/3/16/4096/16: " in second


def test_a_missing_parameter(check, change):
    change(lambda table: entry(table).pop("num_ctas"))
    assert the_error(check()).startswith(PLACE + "num_ctas missing: vLLM would stop with a KeyErr")


def test_a_parameter_that_is_no_integer(check, change):
    change(lambda table: entry(table).update(block_m="16"))
    line = the_error(check())
    assert line.startswith(f"{PLACE}block_m must be a whole number: got '16'; vLLM would stop")


def test_a_key_that_is_no_integer(check, change):
    change(lambda table: table.update(comment="tuned by hand"))
    line = the_error(check())
    assert line.startswith(f"error: {SHRINK} at comment: the max_loras key 'comment' is no integer")
    assert "ValueError" in line


def test_a_value_that_the_kernel_cannot_run(check, change):
    change(lambda table: entry(table).update(block_n=24))
    line = the_error(check())
    assert line.startswith(PLACE + "block_n must be a power of two of at least 8: got 24; vLLM ")


def test_more_shared_memory_than_the_gpu_has(check, change):
    change(
        lambda table: entry(table).update(
            block_m=128, block_n=256, block_k=128, split_k=1, num_stages=4, num_warps=8
        )
    )
    line = the_error(check())
    assert line.startswith(
        PLACE + "needs at least 294912 bytes of shared memory a block, and 232448"
    )


def test_a_block_m_that_differs_between_the_moe_files(check, tuned):
    names = ("W13_SHRINK", "W13_EXPAND", "W2_SHRINK", "W2_EXPAND")
    for name, block_m in zip(names, (32, 32, 64, 64), strict=True):
        slices = "2" if "W13" in name else "1"
        table = {"8": {slices: {"16": {"16": {"2048": {"768": {"BLOCK_SIZE_M": block_m}}}}}}}
        (tuned / MOE.format(name)).write_text(json.dumps(table))
    line = the_error(check())
    assert line.startswith(
        f"error: {MOE.format('W13_SHRINK')} at 8/2/16/16/2048/768: block_m is 32 "
    )
    assert f"64 in {MOE.format('W2_SHRINK')} at 8/1/16/16/2048/768" in line
    assert "wrong numbers" in line


def test_a_name_that_no_gpus_name_would_give(check, tuned):
    (tuned / SHRINK).rename(tuned / "NVIDIA-H100-80GB-HBM3_shrink.json")
    line = the_error(check())
    assert line.startswith(
        "error: NVIDIA-H100-80GB-HBM3_shrink.json: no GPU's name gives this file"
    )
    assert SHRINK in line


def test_a_name_that_this_gpus_name_would_not_give(check, tuned):
    (tuned / SHRINK).rename(tuned / SHRINK.replace("H100", "H200"))
    line = the_error(check())
    assert line.startswith(f"error: {SHRINK.replace('H100', 'H200')}: this GPU's files begin with")


def test_files_of_another_gpu_with_a_provenance_of_their_own_are_in_place(check, tuned):
    for path in list(tuned.iterdir()):
        shutil.copy(path, tuned / path.name.replace("H100", "H200"))
    assert check().code == 0


def test_a_file_that_is_no_json(check, tuned):
    (tuned / SHRINK).write_text('{"9": {')
    line = the_error(check())
    assert line.startswith(f"error: {SHRINK}: vLLM would stop when it opens it")


def test_a_file_without_its_innermost_level(check, change):
    def flatten(table: Any) -> None:
        table["9"]["3"]["16"]["4096"] = entry(table)

    change(flatten)
    ended = check()
    assert ended.code == 3
    assert any("the level of n keys is missing" in line for line in errors(ended))


def test_a_folder_that_is_not_there_is_an_error_and_no_failed_check(autotune):
    line = autotune("check", "nowhere").has_failed_in_one_line()
    assert "there is no folder nowhere" in line


def test_a_folder_without_a_tuned_file_is_an_error_and_no_failed_check(autotune):
    assert "holds no tuned file" in autotune("check", ".").has_failed_in_one_line()


def test_a_recording_and_a_database_are_not_both_asked(check):
    ended = check("--replay", RECORDING, "--storage", "sqlite:///autotune.db")
    assert "--replay and --storage both" in ended.has_refused_its_usage()


# ------------------------------------------------------------------ warnings


def test_a_key_found_only_by_nearness_is_told_with_how_far(check):
    ended = check("--replay", RECORDING, "--tokens", "128", "--op", "shrink")
    assert ended.code == 0
    assert f"{SHRINK} at 9/3/128/4096/16: not there: vLLM takes the nearest, 9/3/16/4096/16: " in (
        ended.out
    )
    assert "m 16 in place of 128 (112 off)" in ended.out


@pytest.mark.slow
def test_sizes_that_match_no_layer_are_told(check):
    ended = check("--replay", RECORDING, "--rank", 64)
    assert ended.code == 0
    assert f"{SHRINK}: no shape asked for has k 4096 and n 16" in ended.out


def test_ops_that_read_no_tuned_file_are_told(check, monkeypatch):
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    ended = check()
    assert ended.code == 0
    assert any("VLLM_BATCH_INVARIANT is set" in line for line in warnings(ended))


def test_moe_values_that_this_release_bypasses_are_told(check, tuned):
    table = {"8": {"2": {"16": {"16": {"2048": {"768": {"block_m": 64}}}}}}}
    (tuned / MOE.format("W13_SHRINK")).write_text(json.dumps(table))
    ended = check()
    assert ended.code == 0, ended.out
    assert any("reads only block_m of the entries of rank 16" in line for line in warnings(ended))
    assert any("give all four MoE files or none: " in line for line in warnings(ended))


def test_the_release_that_is_named_or_traced_is_checked_for(check, tmp_path):
    model = ("--model", str(STUDIES / "models" / "llama-3.1-8b.json"))
    ended = check(*model, "--max-loras", "8", "--rank", "16", "--vllm", "0.15.1")
    assert "Checked tuned for vLLM 0.15.1: " in ended.out, ended.err
    real = STUDIES / "recordings" / "llama-3.1-8b_4-layers_vllm-0.26.0.trace.jsonl.gz"
    trace = tmp_path / "trace.jsonl"
    trace.write_bytes(gzip.decompress(real.read_bytes()))
    ended = check("--trace", str(trace))
    assert "Checked tuned for vLLM 0.26.0: " in ended.out, ended.err


# ------------------------------------------------------------------ after run and export


@pytest.mark.parametrize("command", ["run", "export"])
def test_run_and_export_end_with_a_check_of_what_they_wrote(autotune, tmp_path, command):
    recording = write_recording(tmp_path / "small.jsonl.gz")
    ended = autotune("run", "--replay", recording, "--trials", 5)
    ended = ended if command == "run" else autotune("export", "--output", "again")
    assert ended.code == 0, ended.err
    (checked,) = [line for line in ended.out.splitlines() if line.startswith("Checked ")]
    assert checked.endswith(
        "2 shapes looked up: 2 exact, 0 nearest, 0 default, 0 stops; 0 errors, 0 warnings"
    )
    assert "warning: " not in ended.out


@pytest.mark.slow
def test_an_error_in_the_folder_that_was_written_is_a_failed_check(autotune, tmp_path):
    recording = write_recording(tmp_path / "small.jsonl.gz")
    assert autotune("run", "--replay", recording, "--trials", 5).code == 0
    name = "NVIDIA_Test_GPU_FUSED_MOE_LORA_W2_SHRINK.json"
    (autotune.folder / "tuned" / name).write_text("no JSON")
    ended = autotune("export")
    assert ended.code == 3
    assert f"error: {name}: vLLM would stop when it opens it" in ended.out
