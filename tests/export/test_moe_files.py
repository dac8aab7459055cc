"""Exporting MoE layers: no folder is left with two block_m for one layer."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.choose.selection import Selection
from autotune.errors import ExportError
from autotune.export import VllmExporter, look_up
from autotune.export.check import Report
from autotune.export.check.examine import check_folder
from autotune.launch.moe_layer import MoeLayer
from autotune.launch.op import MOE_OPS, LoraOp
from autotune.launch.shape import KernelShape
from tests.choose.test_couple import UNLIKE
from tests.export.examples import H100, qkv_shrink, selection
from tests.moe import layer_selections, moe_config, sets_of_studies
from tests.profiles import examples

W13_SHRINK, W13_EXPAND, W2_SHRINK, W2_EXPAND = MOE_OPS


def export(folder: Path, selections: list[Selection], *, merge: bool = False) -> tuple[Path, ...]:
    return VllmExporter().export(selections, H100, folder, merge=merge)


def check(folder: Path, *shapes: KernelShape) -> Report:
    return check_folder(folder, asked={H100.gpu: shapes}, device=None, release="0.33.0", environ={})


def errors(report: Report) -> list[str]:
    return [str(finding) for finding in report.findings if finding.is_error]


def file_of(op: LoraOp) -> str:
    return op.file_name(H100.gpu, add_inputs=False)


def entry(folder: Path, shape: KernelShape) -> Any:
    return look_up(json.loads((folder / file_of(shape.op)).read_text()), shape.lookup_key).leaf


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def change_block_m(folder: Path, shape: KernelShape) -> None:
    """Give one entry another block_m."""
    path = folder / file_of(shape.op)
    table = json.loads(path.read_text())
    leaf = look_up(table, shape.lookup_key).leaf
    leaf["block_m"] = 256 if leaf["block_m"] == 128 else 128
    path.write_text(json.dumps(table))


# ------------------------------------------------------------------ any set of studies


@pytest.mark.slow
@settings(max_examples=examples(60))
@given(sets_of_studies(whole=True))
def test_every_folder_of_whole_layers_passes_the_check_and_each_entry_is_found(selections):
    with tempfile.TemporaryDirectory() as name:
        export(Path(name), selections)
        shapes = [one.shape for one in selections]
        assert errors(check(Path(name))) == errors(check(Path(name), *shapes)) == []
        assert all(one.outcome == "exact" for one in check(Path(name), *shapes).lookups)
        taken: dict[MoeLayer, set[int]] = {}
        for shape in shapes:
            taken.setdefault(MoeLayer.of(shape), set()).add(entry(Path(name), shape)["block_m"])
        assert all(len(block_ms) == 1 for block_ms in taken.values())


@pytest.mark.slow
@settings(max_examples=examples(60))
@given(sets_of_studies(whole=True), st.data())
def test_a_folder_with_one_block_m_changed_fails_the_check(selections, data):
    with tempfile.TemporaryDirectory() as name:
        export(Path(name), selections)
        change_block_m(Path(name), data.draw(st.sampled_from(selections)).shape)
        found = check(Path(name)).findings
        assert "moe_block_m" in {finding.kind for finding in found if finding.is_error}


@pytest.mark.slow
@settings(max_examples=examples(100))
@given(st.lists(sets_of_studies(whole=False), min_size=1, max_size=3))
def test_any_studies_in_any_number_of_exports_leave_a_folder_that_passes_or_are_refused(runs):
    with tempfile.TemporaryDirectory() as name:
        for selections in runs:
            before = contents(Path(name))
            try:
                export(Path(name), selections)
            except ExportError:
                assert contents(Path(name)) == before
            if contents(Path(name)):
                assert errors(check(Path(name))) == []


@pytest.mark.slow
@settings(max_examples=examples(30))
@given(sets_of_studies(whole=True))
def test_neither_the_order_nor_a_second_export_changes_a_byte(selections):
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        export(Path(one), selections)
        export(Path(other), selections[::-1])
        assert contents(Path(one)) == contents(Path(other))
        export(Path(one), selections)
        assert contents(Path(one)) == contents(Path(other))


# ------------------------------------------------------------------ what is written


def test_a_layer_is_written_with_one_block_m_and_six_levels(tmp_path):
    paths = export(tmp_path, layer_selections(UNLIKE))

    assert [path.name for path in paths[:-1]] == sorted(map(file_of, MOE_OPS))
    leaf = moe_config(block_m=32, num_warps=8).as_dict()
    table = json.loads((tmp_path / file_of(W13_SHRINK)).read_text())
    assert table == {"8": {"2": {"16": {"256": {"2048": {"768": leaf}}}}}}


def test_the_provenance_says_that_block_m_was_chosen_for_the_layer(tmp_path):
    *_, provenance = export(tmp_path, layer_selections(UNLIKE, routing="zipf"))

    entries = json.loads(provenance.read_text())["entries"]
    told = entries[file_of(W2_EXPAND)]["8/1/16/256/2048/768"]
    assert told["shape"]["routing"] == "zipf"
    assert told["layer"]["block_m"] == 32
    assert told["layer"]["chosen_for"] == [op.value for op in MOE_OPS]
    assert told["layer"]["speedup"] == pytest.approx(20 / 6, abs=0.001)


def test_dense_entries_stand_beside_moe_ones_and_know_no_layer(tmp_path):
    *_, provenance = export(tmp_path, [selection(qkv_shrink()), *layer_selections(UNLIKE)])

    entries = json.loads(provenance.read_text())["entries"]
    assert len(entries) == 5
    assert all(
        "layer" not in told for told in entries["NVIDIA_H100_80GB_HBM3_SHRINK.json"].values()
    )


# ------------------------------------------------------------------ adding to what is there


def test_an_op_that_is_exported_alone_takes_the_block_m_of_the_entries_that_stay(tmp_path):
    export(tmp_path, layer_selections(UNLIKE))
    liked = {W13_EXPAND: {32: 6.0, 128: 1.0}}
    export(tmp_path, layer_selections(liked))

    (again,) = layer_selections(liked)
    assert entry(tmp_path, again.shape)["block_m"] == 32
    assert errors(check(tmp_path)) == []


@pytest.mark.parametrize("fused", [False, True])
def test_an_op_that_cannot_take_the_block_m_of_those_that_stay_is_refused(tmp_path, fused):
    export(tmp_path, layer_selections(UNLIKE, fused=fused))
    before = contents(tmp_path)

    with pytest.raises(
        ExportError,
        match=r"must share block_m 32 \(\S*W13_EXPAND.json at 8/\d/16/256/2048/\d+\) with its "
        "other ops, .*w2_shrink with 64/128; tune all four",
    ):
        export(tmp_path, layer_selections({W2_SHRINK: {128: 1.0}}, fused=fused))
    assert contents(tmp_path) == before


def test_a_whole_layer_exported_again_replaces_all_four(tmp_path):
    export(tmp_path, layer_selections(UNLIKE))
    again = layer_selections({op: {128: 2.0} for op in MOE_OPS})
    export(tmp_path, again)

    assert {entry(tmp_path, one.shape)["block_m"] for one in again} == {128}


def test_an_op_whose_layer_has_no_other_files_takes_the_block_m_of_vllms_default(tmp_path):
    alone = layer_selections({W13_SHRINK: {16: 1.0, 64: 10.0}})
    export(tmp_path, alone)

    assert entry(tmp_path, alone[0].shape) == moe_config(num_warps=8).as_dict()
    assert errors(check(tmp_path)) == []


def test_a_folder_that_disagrees_elsewhere_is_not_added_to(tmp_path):
    export(tmp_path, layer_selections(UNLIKE, num_tokens=64))
    change_block_m(
        tmp_path, layer_selections({W2_EXPAND: UNLIKE[W2_EXPAND]}, num_tokens=64)[0].shape
    )
    before = contents(tmp_path)

    with pytest.raises(ExportError, match=r"nothing was written, .*W2_SHRINK.json at 8/1/64/.*128"):
        export(tmp_path, layer_selections(UNLIKE))
    assert contents(tmp_path) == before


# ------------------------------------------------------------------ the check by layers


def test_a_fused_models_w13_and_w2_that_differ_are_found_if_their_shapes_are_given(tmp_path):
    selections = layer_selections(UNLIKE, fused=True)
    export(tmp_path, selections)
    for one in selections[2:]:  # both of w2, so that they agree with each other
        change_block_m(tmp_path, one.shape)

    assert errors(check(tmp_path)) == []
    (error,) = errors(check(tmp_path, *(one.shape for one in selections)))
    assert "vLLM takes block_m 32 for w13_shrink, 32 for w13_expand, 128 for w2_shrink" in error
    assert "m=16,rank=256,hidden=2048" in error


def test_a_layer_that_disagrees_is_reported_once(tmp_path):
    selections = layer_selections(UNLIKE)
    export(tmp_path, selections)
    change_block_m(tmp_path, selections[1].shape)

    assert len(errors(check(tmp_path, *(one.shape for one in selections)))) == 1


def test_moe_shapes_between_the_tuned_ones_are_the_nearest(tmp_path):
    selections = layer_selections(UNLIKE)
    export(tmp_path, selections)
    between = [one.shape for one in layer_selections(UNLIKE, num_tokens=20)]

    report = check(tmp_path, *between)
    assert errors(report) == []
    assert {lookup.outcome for lookup in report.lookups} == {"nearest"}
    assert any(
        "i 768" in f.message
        for f in check(
            tmp_path,
            between[0].__class__.from_mapping(between[0].as_dict() | {"intermediate_size": 384}),
        ).findings
    )
