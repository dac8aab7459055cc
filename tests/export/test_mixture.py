"""A folder holds entries of one kind: those that may split k, or those that never do."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.choose.selection import Selection
from autotune.errors import ExportError, InputError
from autotune.export import VllmExporter
from autotune.export.check.examine import check_folder
from autotune.export.check.findings import Finding, Report
from autotune.export.check.surroundings import check_exported
from autotune.export.mixture import SPLITTING_OPS, of_one_kind, splits
from autotune.export.tuned_entry import TunedEntry
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from tests.export.examples import H100, SHRINK_CONFIG, qkv_expand, qkv_shrink, selection

NEVER = replace(H100, deterministic=True)
GPU = "NVIDIA_H100_80GB_HBM3"
SHRINK = f"{GPU}_SHRINK.json"


def free(*tokens: int) -> list[Selection]:
    return [selection(qkv_shrink(num_tokens=each)) for each in tokens]


def whole(*tokens: int) -> list[Selection]:
    return [selection(qkv_shrink(num_tokens=each), split_k=1) for each in tokens]


def export(folder: Path, selections: list[Selection], *, merge: bool = False) -> None:
    environment = H100 if selections[0].config.splits_k else NEVER
    VllmExporter().export(selections, environment, folder, merge=merge)


def test_deterministic_entries_are_not_written_beside_those_that_split(tmp_path):
    export(tmp_path, free(1, 16))
    before = (tmp_path / SHRINK).read_bytes()
    with pytest.raises(ExportError, match=r"SHRINK.json holds entries that split k, 1 of which"):
        export(tmp_path, whole(16))
    assert (tmp_path / SHRINK).read_bytes() == before


def test_nor_others_beside_deterministic_ones(tmp_path):
    export(tmp_path, whole(1, 16))
    with pytest.raises(
        ExportError, match=r"SHRINK.json holds entries that were chosen with --deterministic, 1 of"
    ):
        export(tmp_path, free(16))


@pytest.mark.parametrize(("first", "second"), [(free, whole), (whole, free)])
def test_all_of_them_anew_is_no_mixture(tmp_path, first, second):
    export(tmp_path, first(1, 16))
    export(tmp_path, second(1, 16, 32))


@pytest.mark.parametrize(("first", "second"), [(free, whole), (whole, free)])
def test_merge_keeps_both(tmp_path, first, second):
    export(tmp_path, first(1))
    export(tmp_path, second(16), merge=True)
    assert len(json.loads((tmp_path / SHRINK).read_text())["9"]["3"]) == 2


def test_a_file_of_another_op_that_splits_counts(tmp_path):
    export(tmp_path, free(1))
    with pytest.raises(ExportError, match="split k"):
        VllmExporter().export([selection(qkv_expand())], NEVER, tmp_path, merge=False)


def test_it_is_refused_before_the_work(tmp_path):
    export(tmp_path, free(1))
    refuse = VllmExporter().refuse_foreign
    shapes = [qkv_shrink(num_tokens=16)]
    with pytest.raises(ExportError, match="split k"):
        refuse(shapes, H100.gpu, tmp_path, merge=False, deterministic=True)
    refuse(shapes, H100.gpu, tmp_path, merge=True, deterministic=True)
    refuse(shapes, H100.gpu, tmp_path, merge=False)
    refuse([qkv_shrink(num_tokens=1)], H100.gpu, tmp_path, merge=False, deterministic=True)


def test_what_splits_beside_is_told_after_a_merge(tmp_path):
    export(tmp_path, free(1))
    export(tmp_path, whole(16), merge=True)
    report = check_exported(tmp_path, {H100.gpu: [qkv_shrink(num_tokens=16)]}, deterministic=True)
    (told,) = (each for each in report.findings if each.kind == "splits_k")
    assert told.severity == "warning"
    assert told.key == "9/3/1/4096/16"


# ------------------------------------------------------------------ a database with both


def test_of_a_database_with_both_kinds_one_is_kept():
    both = [(H100, "free"), (NEVER, "whole")]
    assert of_one_kind(both, deterministic=True) == ([(NEVER, "whole")], "")
    assert of_one_kind(both, deterministic=False) == ([(H100, "free")], "")
    kept, note = of_one_kind(both, deterministic=None)
    assert kept == [(H100, "free")]
    assert "--deterministic" in note


@pytest.mark.parametrize("environment", [H100, NEVER])
def test_the_only_kind_there_is_needs_no_flag(environment):
    assert of_one_kind([(environment, 1)], deterministic=None) == ([(environment, 1)], "")
    with pytest.raises(InputError, match=r"nothing here was chosen with --(no-)?deterministic"):
        of_one_kind([(environment, 1)], deterministic=not environment.deterministic)


@pytest.mark.parametrize("value", [1, 0, "yes", "", []])
def test_a_kind_that_is_neither_true_nor_false_is_named(value: Any):
    with pytest.raises(InputError, match=re.escape(f"must be true or false: got {value!r}")):
        of_one_kind([(H100, 1)], deterministic=value)


def test_a_deterministic_entry_is_not_for_the_collection(tmp_path):
    vllm = replace(NEVER, provider="vllm", provider_version="0.33.0")
    VllmExporter().export(whole(16), vllm, tmp_path, merge=False)
    provenance = json.loads((tmp_path / f"{GPU}_provenance.json").read_text())
    ((entry,),) = (of_file.values() for of_file in provenance["entries"].values())
    with pytest.raises(InputError, match="chosen with --deterministic"):
        TunedEntry.read(entry)


# ------------------------------------------------------------------ check --deterministic


def check(folder: Path, *shapes: KernelShape, release: str = "0.33.0") -> Report:
    return check_folder(
        folder,
        asked={H100.gpu: shapes},
        device=None,
        release=release,
        environ={},
        deterministic=True,
    )


def told(report: Report) -> list[Finding]:
    return [each for each in report.findings if each.kind == "splits_k"]


def test_each_entry_that_splits_is_an_error(tmp_path):
    export(tmp_path, [*free(1, 16), *whole(32)], merge=True)
    found = told(check(tmp_path))
    assert [each.key for each in found] == ["9/3/1/4096/16", "9/3/16/4096/16"]
    assert all(each.is_error and "split_k 16" in each.message for each in found)


def test_a_sound_folder_has_none(tmp_path):
    export(tmp_path, whole(1, 16))
    VllmExporter().export([selection(qkv_expand())], NEVER, tmp_path, merge=False)
    assert not told(check(tmp_path, qkv_shrink(num_tokens=8), qkv_expand()))


@pytest.mark.parametrize("release", ["0.11.1", "0.15.1", "0.22.1", "0.28.0", "0.33.0"])
def test_a_look_up_that_ends_at_a_default_that_splits_is_an_error(tmp_path, release):
    VllmExporter().export([selection(qkv_expand())], NEVER, tmp_path, merge=False)
    shapes = [qkv_shrink(), qkv_shrink(num_tokens=512), qkv_expand(add_inputs=False)]
    (found,) = told(check(tmp_path, *shapes, release=release))
    assert found.is_error
    assert found.file == SHRINK
    assert "for 2 of the shapes asked for: vLLM takes its default, which splits k" in found.message


def test_an_empty_file_ends_at_the_default_too(tmp_path):
    export(tmp_path, whole(16))
    (tmp_path / SHRINK).write_text("{}")
    assert any(each.is_error for each in told(check(tmp_path, qkv_shrink())))


def test_without_shapes_a_missing_shrink_file_is_worth_knowing(tmp_path):
    VllmExporter().export([selection(qkv_expand())], NEVER, tmp_path, merge=False)
    (found,) = told(check(tmp_path))
    assert not found.is_error


MOE: dict[str, Any] = {
    "op": "fused_moe_lora_w13_shrink",
    "num_tokens": 64,
    "hidden_size": 2048,
    "max_loras": 8,
}
MOE |= {"num_experts": 8, "top_k": 2, "intermediate_size": 768, "num_slices": 2}


@pytest.mark.parametrize(
    ("rank", "release", "changes", "severity"),
    [
        (16, "0.33.0", {}, "warning"),
        (16, "0.33.0", {"fully_sharded": True}, "error"),
        (256, "0.33.0", {}, "error"),
        (16, "0.15.1", {}, "error"),
    ],
)
def test_a_moe_entry_splits_where_vllm_reads_its_split(tmp_path, rank, release, changes, severity):
    shape = KernelShape.from_mapping(MOE | {"rank": rank} | changes)
    entry: dict[str, Any] = {"BLOCK_SIZE_M": 16, "block_n": 32, "block_k": 64, "SPLIT_K": 4}
    for key in reversed(shape.lookup_key):
        entry = {str(key): entry}
    (tmp_path / shape.file_name(H100.gpu)).write_text(json.dumps(entry))
    found = [each for each in told(check(tmp_path, shape, release=release)) if each.key]
    assert [each.severity for each in found] == [severity]


@given(st.sampled_from(list(LoraOp)), st.integers(1, 128))
def test_only_shrinks_split(op, split_k):
    entry = {"split_k": split_k, "block_m": 16}
    assert splits(op, entry) == (op in SPLITTING_OPS and split_k != 1)
    assert not splits(op, {"block_m": 16})


def test_the_usual_selection_splits():
    assert SHRINK_CONFIG["split_k"] > 1
