"""The vLLM exporter against what vLLM really reads, and against folders that are in the way."""

import dataclasses
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from autotune.choose.selection import Selection
from autotune.errors import ExportError
from autotune.export import VllmExporter, look_up
from autotune.launch.environment import Environment
from autotune.launch.op import key_of
from tests.export.examples import (
    EXPAND_CONFIG,
    H100,
    SHRINK_CONFIG,
    qkv_expand,
    qkv_shrink,
    selection,
    selection_lists,
)

SHRINK = "NVIDIA_H100_80GB_HBM3_SHRINK.json"
EXPAND = "NVIDIA_H100_80GB_HBM3_EXPAND_TRUE.json"
PROVENANCE = "NVIDIA_H100_80GB_HBM3_provenance.json"


def export(
    folder: Path, *selections: Selection, environment: Environment = H100, merge: bool = False
) -> tuple[Path, ...]:
    return VllmExporter().export(selections, environment, folder, merge=merge)


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------ what vLLM reads


def test_a_shrink_is_where_vllm_looks_for_it(tmp_path):
    paths = export(tmp_path, selection(qkv_shrink()))

    assert paths == (tmp_path / SHRINK, tmp_path / PROVENANCE)
    assert read(tmp_path, SHRINK) == {"9": {"3": {"16": {"4096": {"16": SHRINK_CONFIG}}}}}


def test_an_expand_is_where_vllm_looks_for_it_under_its_largest_slice(tmp_path):
    export(tmp_path, selection(qkv_expand()))

    assert read(tmp_path, EXPAND) == {"9": {"3": {"16": {"16": {"4096": EXPAND_CONFIG}}}}}


def test_an_expand_that_does_not_add_has_a_file_of_its_own(tmp_path):
    export(tmp_path, selection(qkv_expand()), selection(qkv_expand(add_inputs=False)))

    names = {path.name for path in tmp_path.iterdir()}
    assert names == {EXPAND, EXPAND.replace("TRUE", "FALSE"), PROVENANCE}


def test_the_text_is_indented_in_the_order_of_the_integers_and_of_the_ops_parameters(tmp_path):
    export(tmp_path, *(selection(qkv_expand(num_tokens=m)) for m in (128, 16, 9)))

    text = (tmp_path / EXPAND).read_text()
    assert text.startswith('{\n  "9": {\n    "3": {\n      "9": {\n        "16": {\n')
    assert text.endswith("}\n")
    assert text.index('"9": {\n        "16"') < text.index('"16": {\n        "16"')
    assert text.index('"16": {\n        "16"') < text.index('"128"')
    assert list(look_up(json.loads(text), key_of((9, 3, 9, 16, 4096))).leaf) == list(EXPAND_CONFIG)


@given(selection_lists())
def test_whatever_is_exported_is_found_by_the_look_up(chosen):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(folder, *chosen)
        for one in chosen:
            found = look_up(read(folder, one.shape.file_name(H100.gpu)), one.shape.lookup_key)
            assert found == (one.config.as_dict(), one.shape.lookup_key)


@given(selection_lists())
def test_neither_the_order_nor_a_second_export_changes_a_byte(chosen):
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        export(Path(one), *chosen)
        export(Path(other), *reversed(chosen))
        assert contents(Path(one)) == contents(Path(other))
        export(Path(one), *chosen)
        assert contents(Path(one)) == contents(Path(other))


def test_a_slash_in_the_gpus_name_separates_folders_as_it_does_for_vllm(tmp_path):
    export(
        tmp_path,
        selection(qkv_shrink()),
        environment=dataclasses.replace(H100, gpu="Quadro T1000/PCIe-SSE2"),
    )

    assert (tmp_path / "Quadro_T1000" / "PCIe_SSE2_SHRINK.json").is_file()


def test_a_gpus_name_cannot_lead_out_of_the_folder(tmp_path):
    with pytest.raises(
        ExportError, match=r"must not lead out of .*: got '\.\./\.\./etc_provenance"
    ):
        export(
            tmp_path / "tuned",
            selection(qkv_shrink()),
            environment=dataclasses.replace(H100, gpu="../../etc"),
        )
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_export_makes_no_folder(tmp_path):
    assert export(tmp_path / "tuned") == ()
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ where it comes from


def test_the_provenance_tells_what_is_known_of_each_entry(tmp_path):
    export(tmp_path, selection(qkv_shrink()))

    provenance = read(tmp_path, PROVENANCE)
    assert provenance["schema"] == "autotune-provenance/1"
    assert provenance["environment"] == H100.as_dict()
    assert provenance["entries"] == {
        SHRINK: {
            "9/3/16/4096/16": {
                "latency_us": 10.1235,
                "default_latency_us": 20.25,
                "speedup": 2.0005,
                "interval": [1.9877, 2.1],
                "trials": 200,
                "outcomes": {"ok": 80, "too_slow": 120},
                "shape": qkv_shrink().as_dict(),
                "config": SHRINK_CONFIG,
                "is_default": False,
                "is_throttled": False,
                "environment": H100.as_dict(),
            }
        }
    }


def test_a_default_that_does_not_run_leaves_its_figures_empty(tmp_path):
    one = selection(qkv_shrink())
    alone = {one.config: one.samples_us[one.config]}
    export(tmp_path, dataclasses.replace(one, samples_us=alone, ratio=None))

    entry = read(tmp_path, PROVENANCE)["entries"][SHRINK]["9/3/16/4096/16"]
    assert (entry["default_latency_us"], entry["speedup"], entry["interval"]) == (None, None, None)


def test_each_entry_keeps_the_environment_that_it_was_measured_in(tmp_path):
    newer = dataclasses.replace(H100, triton="3.7.0")
    export(tmp_path, selection(qkv_shrink(num_tokens=16)))
    export(tmp_path, selection(qkv_shrink(num_tokens=32)), environment=newer)

    provenance = read(tmp_path, PROVENANCE)
    entries = provenance["entries"][SHRINK]
    assert provenance["environment"] == newer.as_dict()
    assert entries["9/3/16/4096/16"]["environment"] == H100.as_dict()
    assert entries["9/3/32/4096/16"]["environment"] == newer.as_dict()


def test_the_provenance_forgets_entries_that_were_edited_by_hand(tmp_path):
    export(tmp_path, selection(qkv_shrink(num_tokens=16)), selection(qkv_shrink(num_tokens=32)))
    table = read(tmp_path, SHRINK)
    table["9"]["3"]["16"]["4096"]["16"]["num_warps"] = 8
    (tmp_path / SHRINK).write_text(json.dumps(table))

    export(tmp_path, selection(qkv_shrink(num_tokens=64)))

    assert list(read(tmp_path, PROVENANCE)["entries"][SHRINK]) == [
        "9/3/32/4096/16",
        "9/3/64/4096/16",
    ]
    found = look_up(read(tmp_path, SHRINK), key_of((9, 3, 16, 4096, 16)))
    assert found.leaf == SHRINK_CONFIG | {"num_warps": 8}


# ------------------------------------------------------------------ adding to what is there


def test_another_rank_and_another_model_are_added_beside_what_is_there(tmp_path):
    shapes = [qkv_shrink(), qkv_shrink(rank=64), qkv_shrink(hidden_size=5120, max_loras=4)]
    for index, shape in enumerate(shapes):
        export(tmp_path, selection(shape, num_warps=2**index))

    table = read(tmp_path, SHRINK)
    warps = [look_up(table, shape.lookup_key).leaf["num_warps"] for shape in shapes]
    assert warps == [1, 2, 4]
    assert len(read(tmp_path, PROVENANCE)["entries"][SHRINK]) == 3


def test_an_entry_exported_again_is_replaced(tmp_path):
    export(tmp_path, selection(qkv_shrink()), selection(qkv_expand()))
    export(tmp_path, selection(qkv_shrink(), num_warps=8))

    assert look_up(read(tmp_path, SHRINK), key_of((9, 3, 16, 4096, 16))).leaf["num_warps"] == 8
    assert set(read(tmp_path, PROVENANCE)["entries"]) == {SHRINK, EXPAND}


def test_a_file_that_autotune_did_not_write_is_left_alone(tmp_path):
    (tmp_path / SHRINK).write_text('{"9": {}}')
    before = contents(tmp_path)

    with pytest.raises(ExportError, match=r"autotune did not write it; .*--merge, or .*--output"):
        export(tmp_path, selection(qkv_shrink()), selection(qkv_expand()))
    assert contents(tmp_path) == before


def test_a_folder_of_the_collection_is_added_to_only_by_merge_and_keeps_what_is_known(tmp_path):
    export(tmp_path, selection(qkv_shrink()))
    plain = tmp_path / PROVENANCE
    plain.with_name(f"{PROVENANCE}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    before = contents(tmp_path)
    with pytest.raises(ExportError):
        export(tmp_path, selection(qkv_shrink(num_tokens=32)))
    assert contents(tmp_path) == before
    export(tmp_path, selection(qkv_shrink(num_tokens=32)), merge=True)
    assert len(read(tmp_path, PROVENANCE)["entries"][SHRINK]) == 2


def test_merge_keeps_foreign_entries_and_replaces_only_its_own(tmp_path):
    foreign = {"block_m": 32, "max_nreg": None}
    (tmp_path / SHRINK).write_text(
        json.dumps({"9": {"3": {"16": {"4096": {"16": foreign, "8": foreign}}}}})
    )

    export(tmp_path, selection(qkv_shrink()), merge=True)

    assert read(tmp_path, SHRINK) == {
        "9": {"3": {"16": {"4096": {"8": foreign, "16": SHRINK_CONFIG}}}}
    }
    assert list(read(tmp_path, PROVENANCE)["entries"][SHRINK]) == ["9/3/16/4096/16"]


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "it is no JSON: Expecting property name"),
        ("", "it is no JSON: Expecting value"),
        ("null", "it holds only null"),
        ("[]", "it should nest 5 levels"),
        ('{"9": {"3": {"16": {"4096": 16}}}}', "it should nest 5 levels"),
        ('{"9": {"3": {"16": {"4096": {"16": 1}}}}}', "it should nest 5 levels"),
        ('{"9": {"3": {"16": {"4096": {"16": {"2880": {}}}}}}}', "it nests deeper than 5"),
        ('{"made by": "hand"}', "its key 'made by' is no whole number"),
        ('{"09": {}}', "its key '09' is no whole number"),
    ],
)
def test_a_broken_tuned_file_is_named_and_nothing_is_written(tmp_path, text, reason):
    (tmp_path / SHRINK).write_text(text)

    with pytest.raises(ExportError, match=rf"cannot use .*{SHRINK}: {reason}.*another folder"):
        export(tmp_path, selection(qkv_shrink()), selection(qkv_expand()), merge=True)
    assert contents(tmp_path) == {SHRINK: text.encode()}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "it is no JSON"),
        ("[]", "it is no autotune-provenance/1 file"),
        ('{"schema": "autotune-provenance/2"}', "it is no autotune-provenance/1 file"),
        ('{"schema": "autotune-provenance/1"}', "its entries are not nested"),
        ('{"schema": "autotune-provenance/1", "entries": {"a": 1}}', "its entries are not nested"),
        (
            '{"schema": "autotune-provenance/1", "entries": {"a": {"9/3": {}}}}',
            "its entries are not nested",
        ),
    ],
)
def test_a_broken_provenance_is_named_and_nothing_is_written(tmp_path, text, reason):
    (tmp_path / PROVENANCE).write_text(text)

    with pytest.raises(ExportError, match=rf"cannot use .*{PROVENANCE}: {reason}"):
        export(tmp_path, selection(qkv_shrink()), merge=True)
    assert contents(tmp_path) == {PROVENANCE: text.encode()}


def test_two_shapes_that_vllm_cannot_tell_apart_are_both_named(tmp_path):
    with pytest.raises(
        ExportError, match=r"9/3/16/16/4096 of .*: .*4096\+1024\+1024 and m=16,.*--output"
    ):
        export(
            tmp_path, selection(qkv_expand()), selection(qkv_expand(slice_sizes=[4096, 4096, 4096]))
        )
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_would_stop_vllm_is_not_written(tmp_path):
    chosen = selection(qkv_shrink())
    broken = dataclasses.replace(chosen, config=dataclasses.replace(chosen.config, split_k=None))

    with pytest.raises(ExportError, match=r"must have block_m, .*split_k.*: got"):
        export(tmp_path, broken)
    assert list(tmp_path.iterdir()) == []


def test_a_file_changed_by_another_while_it_is_written_is_noticed(tmp_path, monkeypatch):
    def write_something_else(texts, **_):
        for path in texts:
            path.write_text("{}")

    monkeypatch.setattr("autotune.export.write.replace_files", write_something_else)
    with pytest.raises(ExportError, match=r"vLLM would stop looking for 9"):
        export(tmp_path, selection(qkv_shrink()))


def test_another_configuration_found_afterwards_is_an_error(tmp_path, monkeypatch):
    export(tmp_path, selection(qkv_shrink()))

    monkeypatch.setattr("autotune.export.write.replace_files", lambda _, **__: None)
    with pytest.raises(ExportError, match=r"was changed while it was written: vLLM would find"):
        export(tmp_path, selection(qkv_shrink(), num_warps=8))


# ------------------------------------------------------------------ the operating system


def test_a_file_where_the_folder_should_be_is_one_clear_line(tmp_path):
    (tmp_path / "tuned").write_text("")

    with pytest.raises(
        ExportError, match=r"tuned/.*: Not a directory; .*kept in the database.*`autotune export`"
    ) as caught:
        export(tmp_path / "tuned", selection(qkv_shrink()))
    assert "\n" not in str(caught.value)


def test_a_file_above_the_folder_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(ExportError, match=r"Not a directory; .*kept in the database"):
        export(tmp_path / "file" / "tuned", selection(qkv_shrink()))


def test_a_folder_where_a_file_should_be_is_one_clear_line(tmp_path):
    (tmp_path / SHRINK).mkdir()

    with pytest.raises(ExportError, match=rf"{SHRINK}: Is a directory; .*kept in the database"):
        export(tmp_path, selection(qkv_shrink()))


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path

from autotune.errors import ExportError
from tests.export.examples import H100, qkv_expand, qkv_shrink, selection
from autotune.export import VllmExporter

# A write beyond the limit now fails as it does on a full disk, in place of ending the process.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
chosen = [selection(qkv_shrink(num_tokens=m), num_warps=8) for m in (16, 32, 64)]
try:
    VllmExporter().export([*chosen, selection(qkv_expand())], H100, Path(sys.argv[1]), merge=False)
except ExportError as error:
    print(error)
"""


@pytest.mark.parametrize("limit_bytes", [0, 600, 3000])
def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path, limit_bytes):
    export(tmp_path, selection(qkv_shrink()), selection(qkv_expand()))
    before = contents(tmp_path)

    run = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", _FULL_DISK, str(tmp_path), str(limit_bytes)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )

    assert run.stdout.startswith(f"cannot write {tmp_path}/")
    assert "File too large; the measurements are kept in the database" in run.stdout
    assert "`autotune export` writes them again" in run.stdout
    assert run.stdout.count("\n") == 1
    assert contents(tmp_path) == before


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path, monkeypatch):
    def refuse(_path, _target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ExportError, match=rf"cannot write .*{PROVENANCE}: Permission denied"):
        export(tmp_path, selection(qkv_shrink()))
    assert list(tmp_path.iterdir()) == []


def test_files_can_be_read_by_whoever_the_umask_allows(tmp_path):
    (tmp_path / "plain").write_text("")
    for path in export(tmp_path, selection(qkv_shrink())):
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_exporting_imports_neither_torch_nor_triton_nor_optuna_nor_sqlalchemy():
    code = (
        "import sys, autotune.export;"
        "print(sorted({'torch', 'triton', 'optuna', 'sqlalchemy'} & set(sys.modules)))"
    )
    run = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout == "[]\n"
