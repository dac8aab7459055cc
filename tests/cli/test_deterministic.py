"""``--deterministic`` of run, export and check, as a user types it."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest

import autotune as package
from tests.recordings import ENVIRONMENT, EXPAND, SHRINK, latency_us, lines

SHRINK_FILE = "NVIDIA_Test_GPU_SHRINK.json"


@pytest.fixture
def splitting(tmp_path) -> Path:
    """A recording whose shrink is faster where it splits k, as its default does."""
    path: Path = tmp_path / "splitting.jsonl.gz"
    header = {"schema": "autotune-recording/1", "environment": ENVIRONMENT}
    found = [header, *lines(EXPAND)]
    axes = {"block_m": (16, 32), "block_n": (16, 32), "split_k": (1, 8, 64)}
    fixed = {"block_k": 64, "num_warps": 4, "num_stages": 3}
    for values in itertools.product(*axes.values()):
        config = dict(zip(axes, values, strict=True)) | fixed
        us = latency_us(config) * (3.0 if config["split_k"] == 1 else 1.0)
        line = {"shape": SHRINK, "config": config, "outcome": "ok"}
        line["samples_us"] = [round(us * (1 + 0.001 * (n % 5)), 3) for n in range(15)]
        if values == (16, 16, 64):
            line["is_default"] = True
        found.append(line)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in found)
    return path


def splits(folder: Path) -> list[int]:
    """The values of ``split_k`` in a folder's shrink file."""
    leaves = [json.loads((folder / SHRINK_FILE).read_text())]
    for _ in range(5):
        leaves = [below for table in leaves for below in table.values()]
    return [leaf["split_k"] for leaf in leaves]


@pytest.mark.slow
def test_run_check_and_export(autotune, splitting):
    free = autotune("run", "--replay", splitting, "--output", "free")
    assert free.code == 0, free.err
    whole = autotune("run", "--replay", splitting, "--output", "whole", "--deterministic")
    assert whole.code == 0, whole.err
    assert "1 entry is slower than that default: they take" in whole.out
    folder = autotune.folder
    assert splits(folder / "whole") == [1]
    (free_split,) = splits(folder / "free")
    assert free_split > 1

    assert autotune("check", "whole", "--deterministic").code == 0
    assert autotune("check", "free").code == 0
    bad = autotune("check", "free", "--deterministic")
    assert bad.code == 3
    assert (
        f"error: {SHRINK_FILE} at 9/3/16/4096/16: split_k {free_split}; the same input may"
        in bad.out
    )
    found = json.loads(autotune("check", "free", "--deterministic", "--json").out)["findings"]
    assert [each["kind"] for each in found if each["severity"] == "error"] == ["splits_k"]
    missing = autotune(
        *("check", "whole", "--deterministic", "--replay", package.shipped_recording())
    )
    assert missing.code == 3
    assert "vLLM takes its default, which splits k" in missing.out

    for flags, split_k, told in ((["--deterministic"], 1, ""), ([], free_split, "--determin")):
        again = autotune("export", "--output", f"again{split_k}", *flags)
        assert again.code == 0, again.err
        assert splits(folder / f"again{split_k}") == [split_k]
        assert told in again.err
    assert "builtin-deterministic" in autotune("status").out


@pytest.mark.slow
def test_neither_kind_is_written_beside_the_other(autotune, splitting):
    assert autotune("run", "--replay", splitting, "--op", "shrink", "--deterministic").code == 0
    other = ("run", "--replay", package.shipped_recording(), "--output", "tuned", "--trials", 3)
    assert autotune(*other, "--tokens", 1, "--op", "expand").code == 0  # another GPU's files
    assert autotune("run", "--replay", splitting, "--op", "expand").code == 1
    text = autotune("run", "--replay", splitting, "--op", "expand").has_failed_in_one_line()
    assert "holds entries that were chosen with --deterministic, 1 of which would stay" in text
    assert autotune("run", "--replay", splitting, "--op", "expand", "--merge").code == 0
    assert autotune("run", "--replay", splitting, "--op", "shrink").code == 0  # all of them anew
    merged = autotune("run", "--replay", splitting, "--op", "expand", "--deterministic")
    assert "SHRINK.json holds entries that split k" in merged.has_failed_in_one_line()


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--deterministic", None])
def test_the_study_file_and_the_flag_ask_for_the_same(autotune, splitting, flag):
    study = autotune.folder / "study.toml"
    study.write_text(
        "[lora]\nmax_loras = 8\nrank = 16\n[search]\ndeterministic = "
        f"{'false' if flag else 'true'}\n"
        '[[shapes]]\nop = "shrink"\nnum_tokens = 16\nhidden_size = 4096\nnum_slices = 3\n'
    )
    flags = [flag] if flag else []
    assert autotune("run", study, "--replay", splitting, *flags).code == 0
    assert splits(autotune.folder / "tuned") == [1]
    assert autotune("run", study, "--replay", splitting, "--no-deterministic").code == 0
    assert splits(autotune.folder / "tuned") != [1]


def test_a_recording_without_a_split_of_one_is_refused(autotune, recording):
    ended = autotune("run", "--replay", recording, "--deterministic")
    text = ended.has_failed_in_one_line()
    assert "no valid configuration" in text
    assert text.endswith("deterministic allows split_k 1 alone")


def test_a_wrong_value_names_its_place(autotune):
    study = autotune.folder / "study.toml"
    study.write_text("[search]\ndeterministic = 1\n[[shapes]]\n")
    text = autotune("run", study).has_failed_in_one_line()
    assert "[search] deterministic: must be true or false: got 1" in text


@pytest.mark.slow
def test_python_asks_for_it_by_the_same_name(splitting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for deterministic in (True, None, False):
        results = package.tune(replay=splitting, deterministic=deterministic)
        is_whole = [not one.config.splits_k for one in results.selections]
        assert all(is_whole) is (deterministic is True)
    assert any(
        "slower than that default" in line
        for line in package.tune(replay=splitting, deterministic=True).notes
    )
