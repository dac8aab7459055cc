"""What the search would not try, what no vLLM reads, and the limits of GPUs that are not here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import InputError
from autotune.export.check.entries import Entry, TunedFile, entry_findings
from autotune.export.check.limits import Limits, limits_of
from autotune.export.names import is_base_moe, parse_name, unread_reason
from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp, gpu_file_prefix
from autotune.launch.rules import WASTE_RULES
from autotune.launch.space import Grid, default_axes
from autotune.measure.kernels.defaults import default_config
from tests.export.check.test_examine import GPU, SHRINK, check, kinds, nested, shrink_file, write
from tests.export.examples import SHRINK_CONFIG, qkv_shrink, shapes

KIB = 1024

# ------------------------------------------------------------------ the search's own rules

TILE = {"block_m": 256, "block_n": 256, "block_k": 256, "split_k": 1}


def test_a_large_tile_with_one_step_needs_more_memory_than_there_is(tmp_path):
    report = check(shrink_file(tmp_path, "9/3/256/256/256", **TILE, num_warps=8, num_stages=2))
    (finding,) = [each for each in report.findings if each.is_error]
    assert finding.kind == "shared_memory"
    assert finding.message.startswith(
        "needs at least 262144 bytes of shared memory a block, and 232448 are there: vLLM would"
    )


@pytest.mark.parametrize(("num_warps", "error"), [(2, True), (4, True), (8, False), (16, False)])
def test_many_accumulators_a_thread_are_an_error(tmp_path, num_warps, error):
    values = TILE | {"block_k": 32, "num_warps": num_warps, "num_stages": 2}
    report = check(shrink_file(tmp_path, "9/3/256/4096/256", **values))
    assert kinds(report) == (["accumulators"] if error else [])


def test_blocks_with_nothing_to_do_are_a_warning(tmp_path):
    report = check(shrink_file(tmp_path, block_m=32, block_n=32, block_k=256, split_k=128))
    assert kinds(report) == []
    assert {"block_within_dimension", "split_within_depth"} <= set(kinds(report, "warning"))


@pytest.mark.parametrize("rank", [8, 64])
def test_vllms_own_default_is_no_waste(tmp_path, rank):
    shape = qkv_shrink(num_tokens=1, rank=rank)
    write(tmp_path, SHRINK=nested(f"9/3/1/4096/{rank}", default_config(shape).as_dict()))
    assert not WASTE_RULES & set(kinds(check(tmp_path), "warning"))


@pytest.mark.parametrize(("rank", "release", "error"), [
    (16, "0.33.0", False), (256, "0.33.0", True), (16, "0.15.1", True),
])  # fmt: skip
def test_a_moe_entry_is_checked_where_vllm_reads_all_of_it(tmp_path, rank, release, error):
    leaf = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 256, "NUM_WARPS": 1}
    write(tmp_path, FUSED_MOE_LORA_W2_SHRINK=nested(f"8/1/16/{rank}/2048/768", leaf))
    assert ("accumulators" in kinds(check(tmp_path, release=release))) is error


def test_a_value_that_no_machine_word_holds_is_one_line(tmp_path):
    report = check(shrink_file(tmp_path, num_stages=10**4000, group_size_m=10**4000))
    assert kinds(report) == ["cannot_run"] * 2
    assert all(len(str(finding)) < 400 for finding in report.findings)


@given(shapes(), st.data())
def test_an_entry_is_right_exactly_where_the_search_may_try_it(shape, data):
    axes = default_axes(shape.op)
    values = {name: data.draw(st.sampled_from(axes[name]), label=name) for name in axes}
    limits = Limits((8, 0), 163 * KIB)
    grid = Grid(shape=shape, axes=axes, shared_memory_bytes=limits.shared_memory_bytes)
    file = TunedFile(SHRINK, GPU, shape.op, {})
    entry = Entry(tuple(map(str, shape.lookup_key)), values)
    found = list(entry_findings(file, entry, limits=limits, release="0.33.0"))
    config = KernelConfig.from_mapping(shape.op, values)
    if config != default_config(shape):
        assert bool(found) is (grid.rejection(config) is not None)


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    "name",
    [
        f"{GPU}_SHRINK_tuned_1.json",
        f"{GPU}_SHRINK (1).json",
        f"{GPU}_SHRINK.JSON",
        f"{GPU}_EXPAND_TRUE_old.json",
        f"{GPU}_FUSED_MOE_LORA_W13.shrink.json",
        f"{GPU}_FUSED_MOE_LORA_W3_SHRINK.json",
        "SHRINK.json",
        "_SHRINK.json",
        "lora_expand.json",
    ],
)
def test_a_file_that_vllm_never_reads_is_an_error(tmp_path, name):
    shrink_file(tmp_path)
    (tmp_path / name).write_text("{}")
    report = check(tmp_path)
    assert [(each.kind, each.file) for each in report.findings if each.is_error] == [
        ("file_name", name)
    ]
    assert "would never read it" in next(each.message for each in report.findings if each.is_error)


@pytest.mark.parametrize(
    ("name", "today"),
    [
        ("FUSED_MOE_LORA_GATE_UP_SHRINK", "FUSED_MOE_LORA_W13_SHRINK"),
        ("FUSED_MOE_LORA_GATE_UP_EXPAND", "FUSED_MOE_LORA_W13_EXPAND"),
        ("FUSED_MOE_LORA_DOWN_SHRINK", "FUSED_MOE_LORA_W2_SHRINK"),
        ("FUSED_MOE_LORA_DOWN_EXPAND", "FUSED_MOE_LORA_W2_EXPAND"),
        ("V1_SHRINK", "SHRINK"),
        ("V1_EXPAND_FALSE", "EXPAND_FALSE"),
        ("V1_EXPAND", "EXPAND_TRUE"),
    ],
)
def test_an_old_ops_name_is_named_with_todays(tmp_path, name, today):
    (tmp_path / f"{GPU}_{name}.json").write_text(json.dumps(nested("9/3/16/4096/16", {})))
    (finding,) = check(tmp_path, qkv_shrink()).findings[:1]
    assert (finding.kind, finding.is_error) == ("file_name", True)
    assert "an op's name of old releases of vLLM" in finding.message
    assert f"the file's name is {GPU}_{today}.json today" in finding.message


@given(st.sampled_from(list(LoraOp)), st.text("ABab1 -_", min_size=1))
def test_no_name_that_vllm_reads_is_called_unread(op, gpu):
    for added in (True, False):
        name = op.file_name(gpu, add_inputs=added)
        assert parse_name(name) is not None
        assert unread_reason(name) is None


@pytest.mark.parametrize("name", ["config.json", f"{GPU}_provenance.json", "unexpanded.json"])
def test_other_files_are_passed_over(name):
    assert unread_reason(name) is None


@pytest.mark.parametrize(
    "name",
    [
        f"E=128,N=384,device_name={GPU}.json",
        f"E=8,N=1792,device_name={GPU},dtype=fp8_w8a8,block_shape=[128,128].json",
    ],
)
def test_files_of_base_layers_are_said_to_be_that(tmp_path, name):
    (tmp_path / name).write_text("{}")
    assert is_base_moe(name)
    with pytest.raises(InputError, match=r"no tuned file for LoRA: vLLM reads E=.* for the base M"):
        check(tmp_path)


# ------------------------------------------------------------------ what is no file


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path.parent)])
def test_a_folder_with_a_tuned_files_name_stops_vllm(tmp_path, make):
    make(tmp_path / SHRINK)
    report = check(tmp_path, qkv_shrink())
    assert kinds(report) == ["broken_file"]
    assert "Is a directory" in report.findings[0].message


def test_a_link_to_nothing_is_vllms_default(tmp_path):
    (tmp_path / SHRINK).symlink_to("nowhere")
    report = check(tmp_path, qkv_shrink())
    assert kinds(report) == ["link_to_nothing"]
    assert report.lookups[0].outcome == "default"


# ------------------------------------------------------------------ limits of GPUs

LIMITS_KIB = {
    227: (
        "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200",
        "NVIDIA H200 NVL", "NVIDIA H20", "NVIDIA H20-3e", "NVIDIA H800", "NVIDIA GH200 480GB",
        "NVIDIA GH200 144G HBM3e", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA B200",
        "NVIDIA GB200", "NVIDIA B300 SXM6 AC", "NVIDIA GB300",
    ),
    163: (
        "NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe", "NVIDIA A100-PCIE-40GB", "NVIDIA A30",
        "NVIDIA A800-SXM4-80GB", "NVIDIA A800 40GB Active",
    ),
    99: (
        "NVIDIA L40", "NVIDIA L40S", "NVIDIA L4", "NVIDIA A10", "NVIDIA A10G", "NVIDIA A40",
        "NVIDIA A16", "NVIDIA RTX A6000", "NVIDIA RTX A5000", "NVIDIA RTX 6000 Ada Generation",
        "NVIDIA RTX 4000 SFF Ada Generation", "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "NVIDIA GeForce RTX 5090",
        "NVIDIA GeForce RTX 5080", "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4080 SUPER", "NVIDIA GeForce RTX 4080", "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 4070 Laptop GPU", "NVIDIA GB10",
    ),
    96: ("Tesla V100-SXM2-32GB",),
    64: ("Tesla T4", "NVIDIA T4", "Quadro RTX 6000", "NVIDIA GeForce RTX 2080 Ti", "TITAN RTX"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("gpu", "kib"), [(gpu, kib) for kib, gpus in LIMITS_KIB.items() for gpu in gpus]
)
def test_the_limits_of_a_gpu_by_its_name_and_by_its_files(tmp_path, gpu, kib):
    known = limits_of(gpu)
    assert known is not None
    assert known == limits_of(gpu_file_prefix(gpu))
    assert known.shared_memory_bytes == kib * KIB
    entry: dict[str, Any] = SHRINK_CONFIG | TILE | {"block_m": 128, "block_n": 128, "num_warps": 8}
    name = LoraOp.SHRINK.file_name(gpu, add_inputs=True)
    # 512 KiB of shared memory, which none of them has
    (tmp_path / name).write_text(json.dumps(nested("9/1/128/4096/16", entry | {"num_stages": 5})))
    assert kinds(check(tmp_path, gpu=gpu)) == ["shared_memory"]


def test_a_gpu_that_is_not_known_gets_a_warning_that_it_was_not_checked(tmp_path):
    (tmp_path / "NVIDIA_X_SHRINK.json").write_text(
        json.dumps(nested("9/3/16/4096/16", SHRINK_CONFIG))
    )
    (told,) = [f for f in check(tmp_path, gpu="NVIDIA X").findings if f.kind == "limits_unknown"]
    assert not told.is_error
    assert told.message.startswith("NVIDIA_X: the limits of this GPU are not known here")
    assert "limits_unknown" not in kinds(check(shrink_file(tmp_path)), "error")
