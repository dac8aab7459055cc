"""Checking a folder: what a person at the command line does not easily get to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.export import VllmExporter
from autotune.export.check import Report
from autotune.export.check.examine import check_folder
from autotune.export.check.limits import limits_of
from autotune.export.names import meant_name, parse_name
from autotune.launch.environment import Device
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from tests.export.examples import EXPAND_CONFIG, H100, SHRINK_CONFIG, qkv_shrink, selection

GPU = "NVIDIA_H100_80GB_HBM3"
SHRINK = f"{GPU}_SHRINK.json"
EXPAND = f"{GPU}_EXPAND_TRUE.json"

#: Larger than any GPU's shared memory, and no single rule's otherwise.
HUGE = {"block_m": 128, "block_n": 256, "block_k": 128, "split_k": 1, "num_stages": 5}
HUGE |= {"num_warps": 8}


#: Larger than the dimensions of the usual key, and fit for any GPU.
LARGER = {"block_m": 256, "block_n": 128, "num_stages": 2, "num_warps": 16}


def moe_file(name: str) -> str:
    return f"{GPU}_FUSED_MOE_LORA_{name}.json"


def nested(path: str, leaf: Any) -> dict[str, Any]:
    for key in reversed(path.split("/")):
        leaf = {key: leaf}
    return dict(leaf)


def check(
    folder: Path,
    *shapes: KernelShape,
    gpu: str = H100.gpu,
    device: Device | None = None,
    release: str = "0.33.0",
    **environ: str,
) -> Report:
    return check_folder(
        folder, asked={gpu: shapes}, device=device, release=release, environ=environ
    )


def kinds(report: Report, severity: str = "error") -> list[str]:
    return [each.kind for each in report.findings if each.severity == severity]


def write(folder: Path, **tables: Any) -> Path:
    """Write tuned files by the end of their name."""
    for name, table in tables.items():
        (folder / f"{GPU}_{name}.json").write_text(json.dumps(table))
    return folder


def shrink_file(folder: Path, path: str = "9/3/16/4096/16", /, **changes: Any) -> Path:
    return write(folder, SHRINK=nested(path, SHRINK_CONFIG | changes))


# ------------------------------------------------------------------ dense files


@pytest.mark.parametrize("name", ["_provenance.json", "_provenance.json.gz"])
@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\x1f\x8b\x08\x00cut"])
def test_a_provenance_file_that_cannot_be_read_is_told_and_breaks_nothing(tmp_path, name, content):
    (shrink_file(tmp_path) / f"{GPU}{name}").write_bytes(content)
    report = check(tmp_path)
    (told,) = (each for each in report.findings if each.kind == "provenance_unread")
    assert (told.severity, told.file) == ("warning", f"{GPU}{name}")
    assert "\n" not in str(told)
    assert not report.has_errors


def test_what_the_exporter_writes_is_right(tmp_path):
    VllmExporter().export([selection(qkv_shrink())], H100, tmp_path, merge=False)

    report = check(tmp_path, qkv_shrink())

    assert not report.has_errors
    (lookup,) = report.lookups
    assert (lookup.outcome, lookup.path) == ("exact", (9, 3, 16, 4096, 16))
    assert lookup.entry == SHRINK_CONFIG


def test_group_size_m_may_be_left_out_as_vllm_has_a_default_for_it(tmp_path):
    leaf = {name: value for name, value in SHRINK_CONFIG.items() if name != "group_size_m"}
    assert kinds(check(write(tmp_path, SHRINK=nested("9/3/16/4096/16", leaf)))) == []


def test_a_configuration_larger_than_its_dimensions_runs(tmp_path):
    assert kinds(check(shrink_file(tmp_path, **LARGER))) == []


def test_a_key_that_is_no_integer_is_an_error_for_the_shape_whose_look_up_meets_it(tmp_path):
    table = nested("9/3/16/4096/16", SHRINK_CONFIG)
    write(tmp_path, SHRINK={"comment": {}, **table})
    there, absent = check(tmp_path, qkv_shrink()), check(tmp_path, qkv_shrink(max_loras=4))
    assert kinds(there) == ["key_not_integer"]
    assert there.lookups[0].outcome == "exact"
    assert sorted(kinds(absent)) == ["key_not_integer", "lookup_stops"]
    assert absent.lookups[0].outcome == "stops"


def test_a_number_of_slices_that_is_no_integer_is_never_asked_for(tmp_path):
    table = nested("9/3/16/4096/16", SHRINK_CONFIG)
    table["9"]["three"] = {}
    report = check(write(tmp_path, SHRINK=table))
    assert kinds(report) == []
    assert "key_spelling" in kinds(report, "warning")


def test_a_key_with_a_leading_zero_is_found_by_nearness_only(tmp_path):
    report = check(shrink_file(tmp_path, "9/3/016/4096/16"))
    assert "key_spelling" in kinds(report, "warning")


@pytest.mark.parametrize("below", [[], "x", {}, 7])
def test_a_level_that_is_no_object_or_empty_stops_vllm(tmp_path, below):
    report = check(write(tmp_path, SHRINK=nested("9/3/16", below)), qkv_shrink())
    assert "structure" in kinds(report)
    assert report.lookups[0].outcome == "stops"


def test_an_empty_file_is_vllms_default(tmp_path):
    report = check(write(tmp_path, SHRINK={}), qkv_shrink())
    assert kinds(report) == []
    assert "empty_file" in kinds(report, "warning")
    assert report.lookups[0].outcome == "default"


def test_a_shape_without_a_file_gets_vllms_default(tmp_path):
    report = check(
        write(tmp_path, EXPAND_TRUE=nested("9/3/16/16/4096", EXPAND_CONFIG)), qkv_shrink()
    )
    assert report.lookups[0].outcome == "default"
    assert [f.file for f in report.findings if f.kind == "no_file"] == [SHRINK]


def test_a_folder_for_another_gpu_is_reported_even_if_no_shape_is_asked_for(tmp_path):
    shrink_file(tmp_path)
    (tmp_path / f"{GPU}_provenance.json").write_text("{}")
    report = check(tmp_path, gpu="NVIDIA H200")
    assert kinds(report) == []
    assert "no_file" in kinds(report, "warning")


@pytest.mark.parametrize("value", ["16", 16.0, True, None])
def test_a_parameter_is_a_whole_number(tmp_path, value):
    (finding,) = [f for f in check(shrink_file(tmp_path, num_ctas=value)).findings if f.is_error]
    assert finding.kind == "parameter_not_integer"
    assert f"num_ctas must be a whole number: got {value!r}; " in finding.message


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("block_m", 8, "block_m must be a power of two of at least 16: got 8"),
        ("block_k", 96, "block_k must be a power of two of at least 16: got 96"),
        ("num_warps", 3, "num_warps must be a power of two of at least 1: got 3"),
        ("num_warps", 64, "num_warps must be at most 32: got 64"),
        ("split_k", 0, "split_k must be 1 or more: got 0"),
        ("num_stages", -1, "num_stages must be 1 or more: got -1"),
    ],
)
def test_a_value_that_no_kernel_runs_with_is_an_error(tmp_path, name, value, reason):
    (finding,) = [f for f in check(shrink_file(tmp_path, **{name: value})).findings if f.is_error]
    assert (finding.kind, finding.key) == ("cannot_run", "9/3/16/4096/16")
    assert finding.message.startswith(reason)


# ------------------------------------------------------------------ shared memory


def test_shared_memory_is_checked_for_the_gpu_in_the_files_name(tmp_path):
    assert kinds(check(shrink_file(tmp_path, **HUGE))) == ["shared_memory"]


def test_shared_memory_of_a_gpu_that_is_not_known_is_not_checked(tmp_path):
    (tmp_path / "NVIDIA_X_SHRINK.json").write_text(
        json.dumps(nested("9/3/16/4096/16", SHRINK_CONFIG | HUGE))
    )
    assert kinds(check(tmp_path, gpu="NVIDIA X")) == []


def test_the_gpu_that_is_here_gives_its_own_limits(tmp_path):
    device = Device(
        name=H100.gpu,
        capability=(9, 0),
        multiprocessors=132,
        shared_memory_bytes=1_000_000,
        l2_bytes=1,
        memory_bytes=1,
        uuid="",
    )
    assert kinds(check(shrink_file(tmp_path, **HUGE), device=device)) == []


def test_an_expand_on_hopper_has_no_pipeline_whatever_its_stages_say(tmp_path):
    leaf = EXPAND_CONFIG | {"block_n": 256, "block_k": 256, "num_stages": 5}
    write(tmp_path, EXPAND_TRUE=nested("9/3/16/512/4096", leaf))
    assert kinds(check(tmp_path)) == []
    (tmp_path / EXPAND).rename(tmp_path / "NVIDIA_B200_EXPAND_TRUE.json")
    assert kinds(check(tmp_path, gpu="NVIDIA B200")) == ["shared_memory"]


@pytest.mark.parametrize(
    ("gpu", "limit"),
    [
        ("NVIDIA A100-SXM4-80GB", 166_912),
        ("NVIDIA H100 80GB HBM3", 232_448),
        ("NVIDIA_H200", 232_448),
        ("NVIDIA L4", 101_376),
        ("NVIDIA L40S", 101_376),
        ("NVIDIA A10", 101_376),
        ("NVIDIA GeForce RTX 4090", 101_376),
    ],
)
def test_the_limits_of_well_known_gpus(gpu, limit):
    known = limits_of(gpu)
    assert known is not None
    assert known.shared_memory_bytes == limit


def test_a_gpu_that_is_not_in_the_table_has_no_limits():
    assert limits_of("NVIDIA T1000") is None


# ------------------------------------------------------------------ MoE


def moe_folder(folder: Path, **block_m: Any) -> Path:
    """Four MoE files, or those that are given."""
    for name, value in block_m.items():
        slices = 2 if name.startswith("W13") else 1
        write(
            folder,
            **{f"FUSED_MOE_LORA_{name}": nested(f"8/{slices}/16/16/2048/768", {"block_m": value})},
        )
    return folder


ALIKE = {"W13_SHRINK": 64, "W13_EXPAND": 64, "W2_SHRINK": 64, "W2_EXPAND": 64}


def test_four_moe_files_of_one_block_m_are_right(tmp_path):
    assert kinds(check(moe_folder(tmp_path, **ALIKE))) == []


def test_a_shrink_and_an_expand_that_differ_trip_an_assert(tmp_path):
    (finding,) = check(moe_folder(tmp_path, **ALIKE | {"W2_EXPAND": 32})).findings[:1]
    assert (finding.kind, finding.file) == ("moe_block_m", moe_file("W2_SHRINK"))
    assert "assert" in finding.message


def test_a_moe_file_that_is_not_there_counts_with_vllms_default(tmp_path):
    report = check(moe_folder(tmp_path, W13_SHRINK=32, W13_EXPAND=32))
    assert kinds(report) == ["moe_block_m"]
    assert "not there" in report.findings[0].message


def test_a_block_m_that_is_left_out_counts_as_64_in_either_case(tmp_path):
    moe_folder(tmp_path, **ALIKE)
    leaf = {"BLOCK_SIZE_N": 64, "NUM_WARPS": 4}
    write(tmp_path, FUSED_MOE_LORA_W13_EXPAND=nested("8/2/16/16/2048/768", leaf))
    assert kinds(check(tmp_path)) == []


def test_entries_that_meet_by_nearness_only_are_compared_as_vllm_would(tmp_path):
    moe_folder(tmp_path, **ALIKE)
    table = nested("8/2/16/16/2048/768", {"block_m": 64})
    table["8"]["2"]["64"] = nested("16/2048/768", {"block_m": 128})
    write(tmp_path, FUSED_MOE_LORA_W13_SHRINK=table)
    assert kinds(check(tmp_path)) == ["moe_block_m"] * 2


def test_w13_and_w2_of_another_intermediate_size_are_not_one_launch(tmp_path):
    moe_folder(tmp_path, **ALIKE | {"W2_SHRINK": 32, "W2_EXPAND": 32})
    for name in ("W2_SHRINK", "W2_EXPAND"):
        table = nested("8/1/16/16/2048/384", {"block_m": 32})
        write(tmp_path, **{f"FUSED_MOE_LORA_{name}": table})
    assert kinds(check(tmp_path)) == []


def test_a_moe_file_without_its_sixth_level_stops_vllm(tmp_path):
    write(tmp_path, FUSED_MOE_LORA_W13_SHRINK=nested("8/2/16/16/2048", {"BLOCK_SIZE_M": 64}))
    (finding,) = [each for each in check(tmp_path).findings if each.is_error]
    assert (finding.kind, finding.key) == ("missing_level", "8/2/16/16/2048")
    assert "the level of i keys is missing, there is BLOCK_SIZE_M" in finding.message


@pytest.mark.parametrize(
    ("release", "rank", "told"),
    [("0.33.0", 16, True), ("0.22.1", 128, True), ("0.15.1", 16, False), ("0.33.0", 256, False)],
)
def test_moe_values_are_bypassed_up_to_rank_128_since_0_22(tmp_path, release, rank, told):
    write(
        tmp_path,
        FUSED_MOE_LORA_W2_EXPAND=nested(f"8/1/16/{rank}/2048/768", {"block_m": 64}),
    )
    assert ("bypassed" in kinds(check(tmp_path, release=release), "warning")) is told


# ------------------------------------------------------------------ names and environment


@pytest.mark.parametrize(
    ("name", "op"),
    [
        (SHRINK, LoraOp.SHRINK),
        (EXPAND, LoraOp.EXPAND),
        (moe_file("W13_SHRINK"), LoraOp.W13_SHRINK),
        (moe_file("W2_EXPAND"), LoraOp.W2_EXPAND),
    ],
)
def test_a_name_gives_its_gpu_and_its_op_moe_or_dense(name, op):
    parsed = parse_name(name)
    assert parsed is not None
    assert (parsed.prefix, parsed.op) == (GPU, op)
    assert meant_name(name) is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("NVIDIA H100_SHRINK.json", "NVIDIA_H100_SHRINK.json"),
        ("NVIDIA_H100_expand_true.json", "NVIDIA_H100_EXPAND_TRUE.json"),
        ("NVIDIA_H100_EXPAND.json", "NVIDIA_H100_EXPAND_TRUE.json"),
        ("NVIDIA_H100_SHRINK_FALSE.json", "NVIDIA_H100_SHRINK.json"),
        ("NVIDIA-H100_FUSED_MOE_LORA_W2_SHRINK.json", "NVIDIA_H100_FUSED_MOE_LORA_W2_SHRINK.json"),
        ("NVIDIA_H100_provenance.json", None),
        ("config.json", None),
    ],
)
def test_a_wrong_name_is_corrected_to_the_one_that_was_meant(name, meant):
    assert meant_name(name) == meant


def test_a_gpu_with_a_slash_in_its_name_has_its_files_deeper(tmp_path):
    (tmp_path / "Quadro_T1000").mkdir()
    (tmp_path / "Quadro_T1000" / "PCIe_SHRINK.json").write_text("no JSON")
    report = check(tmp_path, qkv_shrink(), gpu="Quadro T1000/PCIe")
    assert kinds(report) == ["broken_file"]
    assert report.lookups[0].outcome == "stops"


def test_with_dual_stream_the_missing_file_is_the_one_that_vllm_opens(tmp_path):
    write(tmp_path, EXPAND_TRUE=nested("9/3/16/16/4096", EXPAND_CONFIG))
    (finding,) = [
        each
        for each in check(tmp_path, VLLM_LORA_ENABLE_DUAL_STREAM="1").findings
        if each.kind == "expand_file_missing"
    ]
    assert "since VLLM_LORA_ENABLE_DUAL_STREAM is set" in finding.message


@pytest.mark.parametrize(("release", "lacks"), [("0.19.1", False), ("0.20.0", True)])
def test_a_release_without_a_second_stream_lacks_no_file_for_it(tmp_path, release, lacks):
    write(tmp_path, EXPAND_TRUE=nested("9/3/16/16/4096", EXPAND_CONFIG))
    report = check(tmp_path, release=release)
    assert ("expand_file_missing" in kinds(report, "warning")) == lacks


@pytest.mark.parametrize(("value", "told"), [("1", True), ("0", False), ("", False)])
def test_batch_invariance_is_reported_if_it_is_on(tmp_path, value, told):
    report = check(shrink_file(tmp_path), VLLM_BATCH_INVARIANT=value)
    assert ("batch_invariant" in kinds(report, "warning")) is told
