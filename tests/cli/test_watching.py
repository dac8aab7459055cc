"""A run as its user sees it: on terminals narrow and wide, and quiet."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.slow

#: What moves the cursor, erases and colours.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def lines_on(autotune, recording, columns: int, *flags: str) -> list[str]:
    """What a run prints on a terminal, up to the names of its files, which may be long."""
    ended = autotune.on_a_terminal(
        "run", "--replay", recording, "--trials", 12, *flags, columns=columns
    )
    assert ended.code == 0, ended.out
    assert "\x1b[2K" in ended.out, "nothing was drawn"
    text = CONTROL.sub("", ended.out.partition("Wrote ")[0])
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.mark.parametrize("columns", [80, 200])
def test_on_a_terminal_no_line_is_broken(autotune, recording, columns):
    lines = lines_on(autotune, recording, columns, "-v")
    assert max(map(len, lines)) <= columns
    assert sum(line.lstrip().startswith("[") for line in lines) == 2
    assert any(" of 2 shapes " in line for line in lines)
    header = next(line for line in lines if line.startswith("op "))
    assert ("cut short" in header) is (columns == 200)
    rows = [line for line in lines[lines.index(header) :] if not line.startswith("invalid: ")]
    assert len(rows) == 3, "a row of the table was folded"


def test_a_quiet_run_says_nothing_and_writes_its_files(autotune, recording):
    ended = autotune.in_a_process("run", "-q", "--replay", recording, "--trials", 5)
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert len(autotune.files()) == 3


def test_quiet_and_verbose_contradict_one_another(autotune):
    assert "contradict one another" in autotune("run", "-q", "-v").has_refused_its_usage()
