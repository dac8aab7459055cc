"""The tuned files that come with autotune: what is there is sound, for every release of vLLM."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest

from autotune.errors import ExportError, InputError
from autotune.export.check.examine import check_folder
from autotune.export.collection import (
    COLLECTION,
    collected,
    collected_for,
    confirmable,
    read_tuned,
    texts_of,
    write_folder,
)
from autotune.export.covered import covered, holdings
from autotune.export.names import PROVENANCE_SUFFIX
from autotune.launch.op import gpu_file_prefix
from autotune.version import __version__
from tests.export.examples import H100
from tests.vllm.releases import RELEASES

EVERY = collected()


@pytest.fixture(params=EVERY, ids=lambda each: each.gpu)
def one(request):
    return request.param


@pytest.mark.parametrize("release", RELEASES)
def test_every_shipped_file_passes_the_check_for_every_release(one, release):
    report = check_folder(one.folder, asked={one.gpu: ()}, device=None, release=release, environ={})
    assert not report.has_errors, [str(each) for each in report.findings]
    assert "limits_unknown" not in {each.kind for each in report.findings}


def test_vllms_files_hold_what_their_provenance_says(one):
    texts = texts_of(one.tuned)
    for name, text in texts.items():
        if not name.endswith(PROVENANCE_SUFFIX):
            assert (one.folder / name).read_text() == text
    names = {f"{name}.gz" if name.endswith(PROVENANCE_SUFFIX) else name for name in texts}
    assert {path.name for path in one.folder.iterdir()} == names


def test_a_folder_is_named_for_its_gpu(one):
    assert one.folder.name == gpu_file_prefix(one.gpu)


def test_no_entry_is_slower_than_the_default_and_each_says_when_and_for_what(one):
    for entry in one.entries:
        assert entry.served is None or entry.served.verdict != "slower"
        assert entry.tuned_for
        assert entry.measured_at
        assert entry.environment.provider == "vllm"


def test_the_collection_is_small():
    assert sum(path.stat().st_size for path in COLLECTION.rglob("*")) <= 3 * 2**20


def test_an_entry_is_found_under_its_key_exactly(one):
    found = covered(one, list(one.by_shape))
    assert found.counts == dict.fromkeys(found.counts, 0) | {"exact": len(one.entries)}


def test_a_folder_of_what_a_model_needs_answers_as_the_whole_collection(tmp_path):
    one = EVERY[0]
    asked = [shape for shape in one.by_shape if shape.max_loras == 8]
    # Batch sizes between those that were tuned, too.
    asked += [shape.without_batch for shape in asked[:20]]
    whole = covered(one, asked)
    write_folder(whole.taken, tmp_path / "tuned")
    part = check_folder(
        tmp_path / "tuned",
        asked={one.gpu: asked},
        device=None,
        release="0.33.0",
        environ={},
    )
    there = {each.shape: each.entry for each in part.lookups}
    for kind in ("exact", "other_layer", "near", "far"):
        assert all(there[each.shape] == each.entry for each in getattr(whole, kind))


def test_what_there_is_is_told_a_model_at_a_time():
    for each in holdings(EVERY):
        assert each.model
        assert each.shapes >= each.batch_sizes > 0
        assert each.median is not None
        assert each.least is not None
        assert each.median >= each.least >= 0.99


def test_only_the_same_gpu_and_release_is_confirmed():
    one = EVERY[0]
    measured_in = one.entries[0].environment
    assert confirmable(measured_in) == {entry.shape: entry.config for entry in one.entries}
    assert confirmable(H100) == {}, "other kernels"


def test_a_gpu_that_is_not_there_is_said_with_those_that_are():
    with pytest.raises(InputError, match="nothing for a NVIDIA X, only for NVIDIA H100"):
        collected_for("NVIDIA X")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:100], "cannot use"),
        (lambda _: b"", "cannot use"),
        (lambda _: gzip.compress(b"[]"), "autotune-provenance/1"),
        (lambda _: gzip.compress(b"{" * 10_000), "cannot use"),
        (lambda _: gzip.compress(b"[]" + bytes(65 * 2**20)), "more than 67,108,864 bytes"),
        (lambda _: gzip.compress(b"null"), "holds only null"),
    ],
)
def test_a_broken_collection_is_an_error_in_one_line(tmp_path, change, message):
    folder = tmp_path / EVERY[0].folder.name
    shutil.copytree(EVERY[0].folder, folder)
    (path,) = folder.glob("*.gz")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ExportError, match=message) as caught:
        collected(tmp_path)
    assert "\n" not in str(caught.value)


CONTENT = json.loads(texts_of(EVERY[0].tuned)[f"{EVERY[0].folder.name}{PROVENANCE_SUFFIX}"])


def test_its_provenance_has_the_one_format(tmp_path):
    assert CONTENT["autotune"] == __version__
    assert read_tuned(tmp_path, CONTENT) == EVERY[0].tuned


#: By a key of an entry, values that make no sense there.
SENSELESS: dict[str, tuple[object, ...]] = {
    "shape": (None, [], {}, {"op": "shrink"}, "x"),
    "config": (None, [], {}, {"block_m": 16}, {"block_m": "16"}),
    "environment": (None, {}, {"gpu": "x\n"}),
    "speedup": ("2", True, -1.0, float("nan"), float("inf")),
    "interval": (None, [], [2, 1], [1, 2, 3], ["1", "2"]),
    "trials": (None, -1, 1.5, True, 2**40),
    "outcomes": (None, [], {"/home/me": 3}, {"ok": "3"}),
    "tuned_for": (
        *({}, [{}], [{"model": "/home/me/x"}], ["x"]),
        [{"model": "x", "tensor_parallel": 1, "layers": "/home/me"}],
        [{"model": "x", "tensor_parallel": True, "layers": "o"}],
    ),
    "measured_at": (5, None, "today", "2026-11-28T10:00:00", "2026-02-31", "20261128"),
    "latency_us": (None, "3", 0, -1),
    "layer": ([], {}, {"chosen_for": ["home"]}, {"chosen_for": [{}], "block_m": 16}),
    "replayed": ({"recordings": ["mine.jsonl.gz"], "measured_at": ""},),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, those in SENSELESS.items() for value in those]
)
def test_an_entry_that_makes_no_sense_is_refused_with_its_place(tmp_path, name, value):
    content = json.loads(json.dumps(CONTENT))
    file, of_file = next(iter(content["entries"].items()))
    text, entry = next(iter(of_file.items()))
    entry[name] = value
    with pytest.raises(ExportError, match=f"{file} at {text}: ") as caught:
        read_tuned(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_an_entry_at_another_place_than_its_shapes_is_refused(tmp_path):
    content = json.loads(json.dumps(CONTENT))
    of_file = next(iter(content["entries"].values()))
    of_file["9/1/7/7/7"] = next(iter(of_file.values()))
    with pytest.raises(ExportError, match="9/1/7/7/7: vLLM looks this shape"):
        read_tuned(tmp_path, content)
