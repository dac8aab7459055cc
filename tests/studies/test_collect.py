"""studies/collect.py: packs come into a collection, and nothing that is not sound."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.choose.selection import Ratio
from autotune.export.collection import Collected, by_place, collected
from autotune.export.packs import MEASUREMENTS, write_pack
from autotune.export.tuned_entry import TunedEntry, TunedFor
from autotune.launch.op import DENSE_OPS
from tests.profiles import examples
from tests.studies.scripts import loaded

SHIPPED = collected()[0]

#: A few entries of the collection.
FEW = SHIPPED.entries[:4]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("collect")


def pack_of(path: Path, *entries: TunedEntry, measurements: bytes | None = None) -> Path:
    write_pack(by_place(entries), path, measurements)
    return path


def only(root: Path) -> Collected:
    (found,) = collected(root)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    return tmp_path / "configs"


@pytest.fixture
def refused(script, root, capsys) -> Callable[..., str]:
    """Collecting this fails in one line, which is returned, and changes nothing."""

    def collect(*packs: Path) -> str:
        before = sorted(root.rglob("*"))
        assert script.main([*map(str, packs), "--into", str(root)]) == 1
        out, err = capsys.readouterr()
        assert not out
        assert len(err.splitlines()) == 1
        assert err.startswith("collect: ")
        assert sorted(root.rglob("*")) == before
        return str(err)

    return collect


def test_two_packs_come_together_and_a_pack_twice_changes_nothing(script, tmp_path, root, capsys):
    packs = [pack_of(tmp_path / "1", *FEW[:2]), pack_of(tmp_path / "2", *FEW[2:])]
    assert script.main([*map(str, packs), "--into", str(root)]) == 0
    assert "4 entries added, 0 renewed" in capsys.readouterr().out
    files = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert only(root).tuned == by_place(FEW)
    assert script.main([str(packs[0]), "--into", str(root)]) == 0
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == files


def test_the_newer_entry_counts_and_is_for_the_models_of_both(script, tmp_path, root):
    old = replace(FEW[0], measured_at="2026-01-01")
    label = TunedFor("Qwen/Qwen3-8B", 1, "o")
    new = replace(old, measured_at="2026-02-01", latency_us=1.0, tuned_for=(label,))
    packs = [pack_of(tmp_path / "new", new), pack_of(tmp_path / "old", old)]
    assert script.main([*map(str, packs), "--into", str(root)]) == 0
    (entry,) = only(root).entries
    assert (entry.latency_us, entry.measured_at) == (1.0, "2026-02-01")
    assert set(entry.tuned_for) == {*old.tuned_for, label}


def test_of_two_shapes_with_one_key_the_first_stays_and_that_is_said(
    script, tmp_path, root, capsys
):
    first = [replace(FEW[0], shape=replace(FEW[0].shape, num_tokens=each)) for each in (1, 8, 64)]
    other = [replace(each, shape=replace(each.shape, active_loras=1)) for each in first]
    packs = [pack_of(tmp_path / "1", *first), pack_of(tmp_path / "2", *other)]
    assert script.main([*map(str, packs), "--into", str(root)]) == 0
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "has the same key" in each]
    assert line.endswith("has the same key, and at 2 more batch sizes")
    assert only(root).entries == first


def test_each_gpu_gets_its_folder(script, tmp_path, root):
    there = replace(FEW[0], environment=replace(FEW[0].environment, gpu="NVIDIA H200"))
    packs = [pack_of(tmp_path / "1", FEW[0]), pack_of(tmp_path / "2", there)]
    assert script.main([*map(str, packs), "--into", str(root)]) == 0
    assert [each.folder.name for each in collected(root)] == [
        "NVIDIA_H100_80GB_HBM3",
        "NVIDIA_H200",
    ]


def benched(path: Path, *rows: tuple[TunedEntry, str]) -> Path:
    """What ``autotune bench --json`` prints of entries."""
    path.write_text(
        json.dumps(
            [
                entry.shape.as_dict()
                | {
                    "key": list(entry.shape.lookup_key),
                    "config": entry.config.as_dict(),
                    "verdict": verdict,
                }
                for entry, verdict in rows
            ]
        )
    )
    return path


def test_an_entry_that_lost_when_it_was_timed_again_is_taken_out(script, tmp_path, root, capsys):
    script.collect([pack_of(tmp_path / "p", *FEW)], root)
    other = replace(FEW[3], config=replace(FEW[3].config, num_warps=8))
    rows = [(FEW[0], "slower"), (FEW[1], "does not run"), (FEW[2], "same"), (other, "slower")]
    path = benched(tmp_path / "b.json", *rows)
    assert script.main(["--lost", str(path), "--into", str(root)]) == 0
    assert capsys.readouterr().out.count("is taken out") == 2
    assert only(root).tuned == by_place(FEW[2:])


@pytest.mark.parametrize("text", ["", "[", "{}", "[3]", '[{"op": "shrink"}]', "null", '["x"]'])
def test_what_no_bench_printed_ends_in_one_line(script, tmp_path, root, capsys, text):
    script.collect([pack_of(tmp_path / "p", *FEW)], root)
    (tmp_path / "b.json").write_text(text)
    arguments = ["--lost", str(tmp_path / "b.json"), "--into", str(root)]
    assert script.main(arguments) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert only(root).tuned == by_place(FEW)


def test_a_file_of_which_no_entry_is_left_goes_and_a_gpu_keeps_one_entry(
    script, tmp_path, root, capsys
):
    ops = [next(e for e in SHIPPED.entries if e.shape.op is op) for op in DENSE_OPS]
    script.collect([pack_of(tmp_path / "p", *ops)], root)
    path = benched(tmp_path / "b.json", (ops[0], "slower"))
    assert script.main(["--lost", str(path), "--into", str(root)]) == 0
    assert len(list(root.glob("*/*.json"))) == 1
    assert only(root).entries == ops[1:]
    path = benched(tmp_path / "b.json", (ops[1], "slower"))
    assert script.main(["--lost", str(path), "--into", str(root)]) == 1
    assert "no entry of the NVIDIA H100" in capsys.readouterr().err


# ------------------------------------------------------------------ what is refused


def test_an_entry_that_is_slower_than_the_default_is_refused(tmp_path, refused):
    slower = replace(FEW[0], ratio=Ratio(value=0.9, low=0.88, high=0.92))
    assert "slower than vLLM's default" in refused(pack_of(tmp_path / "p", *FEW[1:], slower))


def test_an_entry_that_the_check_refuses_is_refused_and_so_are_the_packs_beside_it(
    tmp_path, refused
):
    huge = replace(FEW[0], config=replace(FEW[0].config, block_m=256, block_n=256, num_warps=1))
    packs = [pack_of(tmp_path / "1", *FEW[1:]), pack_of(tmp_path / "2", huge)]
    assert "accumulators" in refused(*packs)


def changed(path: Path, **files: bytes | None) -> Path:
    """A pack with some of its files changed, added, or left out."""
    pack_of(path, *FEW)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    for end, content in files.items():
        names = [name for name in contents if name.endswith(f"_{end}.json")] or [end]
        for name in names:
            contents.pop(name, None)
            if content is not None:
                contents[name] = content
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"provenance": None}, "0 provenance files"),
        ({"provenance": b"{"}, "no JSON"),
        ({"provenance": b"\xff"}, "no JSON"),
        ({"provenance": b"[" * 100_000}, "no JSON"),
        ({"provenance": b"[]"}, "autotune-provenance/1"),
        ({"provenance": b'{"schema": "autotune-provenance/1", "entries": {}}'}, "no entry"),
        ({"TRUE": None}, "is not what its provenance says"),
        ({"TRUE": b"{}"}, "is not what its provenance says"),
        ({"../../evil.json": b"{}"}, "is not what its provenance says"),
        ({"evil.py": b""}, "is not what its provenance says"),
        ({"measurements.jsonl.gz": b"nothing"}, "is broken"),
        ({"measurements.jsonl.gz": gzip.compress(b"{}")[:-4]}, "cut off"),
        ({"measurements.jsonl.gz": gzip.compress(bytes(65 * 2**20))}, "unpacks to more"),
    ],
)
def test_a_pack_that_was_changed_is_refused(tmp_path, refused, files, message):
    assert message in refused(changed(tmp_path / "p", **files))


def test_a_pack_whose_files_are_another_gpus_is_refused(tmp_path, refused):
    path = pack_of(tmp_path / "p", *FEW)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            renamed = name.replace("H100_80GB_HBM3", "A100")
            archive.writestr(renamed, content.replace(b"H100_80GB_HBM3", b"A100"))
    assert "vLLM looks this shape of a NVIDIA H100" in refused(path)


def bomb() -> bytes:
    """An archive of a gigabyte of zeros that says it holds as much."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("NVIDIA_X_provenance.json", bytes(65 * 2**20))
    return file.getvalue()


def lying_bomb() -> bytes:
    """The same archive, which says that it holds ten bytes."""
    size = struct.pack("<L", 65 * 2**20)
    return bomb().replace(size, struct.pack("<L", 10))


def crowded() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(1000):
            archive.writestr(f"{number}.json", b"{}")
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK", b"nothing", bomb(), lying_bomb(), crowded()])
def test_what_is_no_pack_is_refused(tmp_path, refused, content):
    path = tmp_path / "p"
    path.write_bytes(content)
    assert "is no pack" in refused(path)


def test_a_pack_that_is_not_there_and_a_folder_are_refused(tmp_path, refused):
    assert "no such file" in refused(tmp_path / "none")
    assert "is no pack" in refused(tmp_path)


def test_a_pack_is_cut_anywhere_and_refused(tmp_path, refused):
    whole = pack_of(tmp_path / "p", *FEW).read_bytes()
    for size in range(0, len(whole), len(whole) // 12):
        (tmp_path / "p").write_bytes(whole[:size])
        assert "is no pack" in refused(tmp_path / "p")


def test_a_collection_that_cannot_be_written_is_one_line(script, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    pack = pack_of(tmp_path / "p", *FEW)
    assert script.main([str(pack), "--into", str(tmp_path / "file")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


# ------------------------------------------------------------------ the page


def test_the_pages_table_is_made_from_the_files(script):
    text = script.PAGE.read_text(encoding="utf-8")
    made = script.page_with_table(text, collected())
    assert made == text, "run python studies/collect.py --table"
    assert script.table(collected()) in text


def test_the_script_checks_for_the_releases_that_vllm_is_asked_of(script):
    from tests.vllm.releases import RELEASES

    assert script.RELEASES == RELEASES


def test_measurements_come_with_a_pack(tmp_path):
    path = pack_of(tmp_path / "p", *FEW, measurements=gzip.compress(json.dumps({}).encode()))
    with zipfile.ZipFile(path) as archive:
        assert MEASUREMENTS in archive.namelist()


@settings(max_examples=examples(10), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.sampled_from(range(len(SHIPPED.entries))), min_size=1, max_size=12), st.randoms())
def test_any_entries_come_through_packs_as_they_were(script, tmp_path_factory, chosen, random):
    entries = [SHIPPED.entries[number] for number in chosen]
    random.shuffle(entries)
    folder = tmp_path_factory.mktemp("any")
    half = len(entries) // 2
    parts = [part for part in (entries[:half], entries[half:]) if part]
    packs = [pack_of(folder / str(n), *part) for n, part in enumerate(parts)]
    (folder / "configs").mkdir()
    script.collect(packs, folder / "configs")
    assert only(folder / "configs").tuned == by_place(entries)
