"""What is printed can be read everywhere: in a file, in a pipe, whatever texts it holds."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.cli.console import HarmlessConsole, harmless
from autotune.cli.tables import tables_within
from tests.cli.test_model import MODELS
from tests.recordings import ENVIRONMENT, SHRINK, lines

#: What a hostile file may hold: moves the cursor, sets a title, rings, turns text around.
HOSTILE = "a\x1b[2Jb\x1b]0;title\x07c\x9b31md\u202ee\rf"


@given(st.text())
def test_no_text_that_is_shown_can_steer_a_terminal(text):
    shown = harmless(text)
    kinds = {unicodedata.category(each) for each in shown if each not in "\n\t"}
    assert not kinds & {"Cc", "Cs"}
    shown.encode()
    assert harmless(shown) == shown


@given(st.text())
def test_a_harmless_text_stays_as_it_is(text):
    plain = "".join(each for each in text if unicodedata.category(each) not in ("Cc", "Cs", "Cf"))
    assert harmless(plain) == plain


def test_a_console_prints_only_what_is_harmless_and_keeps_its_own_colours():
    file = io.StringIO()
    console = HarmlessConsole(file=file, force_terminal=True, color_system="standard")
    console.print(HOSTILE, style="bold", markup=False, highlight=False)
    text = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
    assert text == "a[2Jb]0;titlec31mdef\n"
    assert file.getvalue().startswith("\x1b[1ma")


def test_reasons_and_names_of_a_recording_are_shown_harmless(autotune, tmp_path):
    path = tmp_path / "r.jsonl.gz"
    first, *rest = lines(SHRINK)[:8]
    failed = {"outcome": "compile_failed", "reason": f"{HOSTILE}\nautotune: all is well"}
    rows = [first | {"is_default": True}, *({**row, **failed, "samples_us": []} for row in rest)]
    with gzip.open(path, "wt") as file:
        for row in ({"schema": "autotune-recording/1", "environment": ENVIRONMENT}, *rows):
            file.write(json.dumps(row) + "\n")
    ended = autotune("run", "-v", "--replay", path, "--trials", 8)
    assert "compile failed (a[2Jb" in ended.out
    shown = ended.out + ended.err
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown)
    assert "\nautotune: all is well" not in shown


#: Takes nothing: whoever writes there is told that the disk is full.
FULL = Path("/dev/full")

#: Said where a command goes on without a reader.
UNREAD = "the reader of the output has gone: going on without output"


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="this system has no such file")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 1),
        (["configs"], 1),
        (["configs", "--json"], 1),
        (["run", "--trials", "2", "--op", "expand", "--tokens", "1"], 0),
    ],
)
def test_on_a_full_disk_one_line_says_so_and_a_run_goes_on(tmp_path, arguments, code):
    with FULL.open("w") as full:
        ended = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "autotune", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            check=False,
        )
    first, *others = ended.stderr.splitlines()
    assert ended.returncode == code, ended.stderr
    assert first == "autotune: the output cannot be written: No space left on device"
    assert others == ([] if code else ["autotune: " + UNREAD])
    assert (tmp_path / "tuned").exists() == (code == 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "deepseek-v3"])
def test_in_a_pipe_every_row_of_shapes_is_one_whole_line(autotune, name):
    study = MODELS.parent / f"{name}.toml"
    ended = autotune("shapes", study)
    assert ended.code == 0, ended.err
    table = ended.out.partition("\n\n")[0].splitlines()
    rows = {
        (row["layer"], row["op"]) for row in json.loads(autotune("shapes", study, "--json").out)
    }
    for layer, op in rows:
        assert [line for line in table if line.startswith(f"{layer} ") and f" {op} " in line]
    assert "…" not in ended.out


def test_summaries_of_commands_are_whole(autotune):
    text = " ".join(autotune("--help").out.split())
    assert "Measure whole search spaces on the GPU, for replays without one." in text
    assert "..." not in text.partition("Commands:")[2]


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=3, max_size=9),
    st.integers(0, 2),
    st.integers(60, 200),
)
def test_a_wide_table_becomes_several_that_fit_and_lose_no_column(sizes, keys, width):
    names = [f"{number}{'n' * (size - 1)}" for number, (size, _) in enumerate(sizes)]
    cells = [f"{number}{'c' * (size - 1)}" for number, (_, size) in enumerate(sizes)]
    file = io.StringIO()
    console = HarmlessConsole(file=file, width=width)
    found = tables_within(width, names, [cells], keys=keys)
    for table in found:
        console.print(table)
    rows = [line.split() for line in file.getvalue().splitlines()]
    assert len(rows) == 2 * len(found)
    assert all(row[:keys] == names[:keys] for row in rows[::2])
    assert [name for row in rows[::2] for name in row[keys:]] == names[keys:]
    assert [cell for row in rows[1::2] for cell in row[keys:]] == cells[keys:]
