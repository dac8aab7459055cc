"""Exports into one folder at the same time, and what lies in its way there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from autotune.errors import ExportError
from autotune.export import VllmExporter
from autotune.files import LOCK_NAME
from tests.export.examples import H100, qkv_expand, qkv_shrink, selection
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
SHRINK = qkv_shrink().file_name(H100.gpu)
EXPAND = qkv_expand().file_name(H100.gpu)

#: Waits for the start, then exports shapes of its own one after the other.
_EXPORTS = """
import sys, time
from pathlib import Path
from autotune.export import VllmExporter
from tests.export.examples import H100, qkv_expand, qkv_shrink, selection
folder, number = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for tokens in range(10 * number + 1, 10 * number + 6):
    chosen = [selection(make(num_tokens=tokens)) for make in (qkv_shrink, qkv_expand)]
    VllmExporter().export(chosen, H100, folder, merge=True)
"""

#: Takes the lock of a folder and keeps it.
_HOLDS = """
import sys, time
from pathlib import Path
from autotune.files import locked
with locked(Path(sys.argv[1]), advice=""):
    print("ready", flush=True)
    time.sleep(600)
"""


Python = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def python() -> Iterator[Python]:
    """Starts Python processes that have said that they are ready, and ends them with the test."""
    with ExitStack() as stack:

        def start(code: str, *arguments: object) -> subprocess.Popen[str]:
            process = subprocess.Popen(  # noqa: S603 - this test's own code
                [sys.executable, "-c", code, *map(str, arguments)],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            return process

        yield start


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def export(folder: Path, *, merge: bool = False) -> tuple[Path, ...]:
    return VllmExporter().export([selection(qkv_shrink())], H100, folder, merge=merge)


@pytest.mark.slow
def test_no_entry_is_lost_where_many_processes_export_into_one_folder(tmp_path, python):
    processes = [python(_EXPORTS, tmp_path / "tuned", number) for number in range(8)]
    for process in processes:
        go(process)
    assert [process.wait(timeout=PATIENCE_S) for process in processes] == [0] * len(processes)

    wanted = {10 * number + step for number in range(8) for step in range(1, 6)}
    folder = tmp_path / "tuned"
    assert sorted(path.name for path in folder.iterdir()) == [
        EXPAND,
        SHRINK,
        "NVIDIA_H100_80GB_HBM3_provenance.json",
    ]
    for name in (SHRINK, EXPAND):
        table = json.loads((folder / name).read_text())
        assert {int(tokens) for tokens in table["9"]["3"]} == wanted
    provenance = json.loads((folder / "NVIDIA_H100_80GB_HBM3_provenance.json").read_text())
    assert [len(entries) for entries in provenance["entries"].values()] == [len(wanted)] * 2


@pytest.mark.slow
def test_an_export_waits_for_a_lock_until_its_holder_has_died(tmp_path, python):
    holder = python(_HOLDS, tmp_path)
    waiting = python(_EXPORTS, tmp_path, 1)
    go(waiting)
    time.sleep(0.3)
    assert waiting.poll() is None
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=PATIENCE_S)
    assert waiting.wait(timeout=PATIENCE_S) == 0
    assert LOCK_NAME not in {path.name for path in tmp_path.iterdir()}


def test_a_lock_file_that_stayed_behind_holds_up_nobody_and_is_taken_away(tmp_path):
    (tmp_path / LOCK_NAME).write_text("")
    assert export(tmp_path)
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_lock_that_is_held_for_too_long_is_said(tmp_path, monkeypatch, python):
    monkeypatch.setattr("autotune.files._MOST_SECONDS", 0.0)
    python(_HOLDS, tmp_path)
    with pytest.raises(ExportError, match="in use by another export for 0 s; end that one"):
        export(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/none")])
def test_something_else_in_place_of_the_lock_is_one_line(tmp_path, make):
    make(tmp_path / LOCK_NAME)
    with pytest.raises(ExportError, match=r"cannot write .*\.autotune\.lock: .*; the measurements"):
        export(tmp_path)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("name", [SHRINK, "NVIDIA_H100_80GB_HBM3_provenance.json"])
def test_a_pipe_in_place_of_a_file_neither_hangs_an_export_nor_goes_away(tmp_path, name, merge):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ExportError, match=f"cannot read .*{name}: it is no file but a pipe"):
        export(tmp_path, merge=merge)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).is_fifo()


def test_a_link_stays_one_and_what_it_leads_to_keeps_its_entries(tmp_path):
    elsewhere, folder = tmp_path / "elsewhere" / "shrink.json", tmp_path / "tuned"
    export(folder)
    elsewhere.parent.mkdir()
    (folder / SHRINK).rename(elsewhere)
    (folder / SHRINK).symlink_to(elsewhere)
    VllmExporter().export([selection(qkv_shrink(num_tokens=32))], H100, folder, merge=False)
    assert (folder / SHRINK).readlink() == elsewhere
    assert list(json.loads(elsewhere.read_text())["9"]["3"]) == ["16", "32"]
    assert [path.name for path in elsewhere.parent.iterdir()] == ["shrink.json"]


def test_a_link_to_nothing_is_one_line_and_stays(tmp_path):
    (tmp_path / SHRINK).symlink_to(tmp_path / "none")
    with pytest.raises(ExportError, match=f"cannot read .*{SHRINK}: it is a link to nothing"):
        export(tmp_path, merge=True)
    assert [path.name for path in tmp_path.iterdir()] == [SHRINK]
