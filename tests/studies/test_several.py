"""studies/several.py: runs of one study with several GPUs, here with replays."""

from __future__ import annotations

import json
import os
from types import ModuleType

import pytest

from tests.recordings import EXPAND, SHRINK, write_recording
from tests.studies.scripts import loaded


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("several")


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.slow
def test_every_number_of_gpus_has_a_row_and_its_figures_are_kept(script, tmp_path, capfd):
    recording = write_recording(tmp_path / "r.jsonl.gz", SHRINK, EXPAND)
    raw, before = tmp_path / "raw.json", os.sched_getaffinity(0)
    replayed = ["--replay", str(recording), "--trials", "5"]
    assert script.main(["--gpus", "1,2", "-o", str(raw), "--", *replayed]) == 0
    rows = rows_of(capfd.readouterr().out)
    assert [row[0] for row in rows] == ["1", "2"]
    assert [row[4] for row in rows] == ["10", "10"]
    assert rows[0][-1] == "1.00x"
    assert [each["status"]["trials"] for each in json.loads(raw.read_text())] == [10, 10]
    assert os.sched_getaffinity(0) == before


@pytest.mark.slow
def test_a_run_that_fails_is_a_row_and_the_exit_code(script, capfd):
    assert script.main(["--gpus", "1", "--", "--replay", "none.jsonl.gz"]) == 1
    said, cores = capfd.readouterr(), len(os.sched_getaffinity(0))
    assert rows_of(said.out) == [["1", str(cores), "failed: 1"]]
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("gpus", ["x", "0", "1,,2"])
def test_a_number_that_is_none_is_refused(script, gpus, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(["--gpus", gpus])
    assert "numbers from 1" in capsys.readouterr().err
