"""Databases in which bytes have changed: every command ends well, or says so in one line."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.store import schema
from tests.cli.command import Command
from tests.mutated import HOSTILE, mutated
from tests.profiles import examples
from tests.recordings import EXPAND, SHRINK, write_recording

pytestmark = pytest.mark.slow

COMMANDS = (
    ("status",),
    ("export",),
    ("report",),
    ("run", "--replay", "../r.jsonl.gz", "--trials", 8, "-q"),
)


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A folder with a recording and the database of a search of it."""
    folder: Path = tmp_path_factory.mktemp("kept")
    write_recording(folder / "r.jsonl.gz", SHRINK, EXPAND)
    path = folder / "sound"
    path.mkdir()
    Command(path)("run", "--replay", "../r.jsonl.gz", "--trials", 6)
    return folder


UNHURRIED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=examples(120), suppress_health_check=UNHURRIED)
@given(
    places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=40),
    bit=st.integers(0, 7),
    command=st.sampled_from(COMMANDS),
)
def test_flipped_bits_end_no_command_with_a_traceback(kept, tmp_path_factory, places, bit, command):
    folder = copied(kept, tmp_path_factory)
    content = bytearray((folder / "autotune.db").read_bytes())
    for place in places:
        content[int(place * len(content))] ^= 1 << bit
    (folder / "autotune.db").write_bytes(content)

    ended = Command(folder)(*command)

    assert ended.code == 0 or ended.has_failed_in_one_line(ended.code)


def copied(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the database, and the recording beside the folder."""
    folder: Path = tmp_path_factory.mktemp("copy", numbered=True)
    (folder.parent / "r.jsonl.gz").write_bytes((kept / "r.jsonl.gz").read_bytes())
    (folder / "autotune.db").write_bytes((kept / "sound" / "autotune.db").read_bytes())
    return folder


COLUMNS = [
    *(schema.studies.c.shape, schema.studies.c.environment, schema.selections.c.selection),
    *(schema.measurements.c.config, schema.measurements.c.samples_us, schema.facts.c.fact),
    *(schema.facts.c.shape, schema.facts.c.environment, schema.planned.c.default),
]
OTHERS = [
    *(schema.measurements.c.outcome, schema.measurements.c.registers),
    *(schema.measurements.c.relative_error, schema.measurements.c.started_at),
    *(schema.runs.c.seen_at, schema.runs.c.ending, schema.planned.c.trials),
]


@settings(max_examples=examples(160), suppress_health_check=UNHURRIED)
@given(data=st.data(), command=st.sampled_from(COMMANDS))
def test_whatever_a_column_holds_no_command_ends_with_a_traceback(
    kept, tmp_path_factory, data, command
):
    folder = copied(kept, tmp_path_factory)
    column = data.draw(st.sampled_from([*COLUMNS, *OTHERS]), "column")
    change_a_value(folder / "autotune.db", column, data)

    ended = Command(folder)(*command)

    assert ended.code == 0 or ended.has_failed_in_one_line(ended.code)


def change_a_value(path: Path, column: sa.Column[Any], data: st.DataObject) -> None:
    """Put something else where a column has one of its values."""
    name, of = column.name, column.table.name
    with closing(sqlite3.connect(path)) as connection, connection:
        texts = {str(value) for (value,) in connection.execute(f'SELECT "{name}" FROM {of}')}  # noqa: S608 - our own names
        text = data.draw(st.sampled_from(sorted(texts)), "text")
        others = st.sampled_from(HOSTILE).map(str)
        if column in COLUMNS:
            others = mutated(json.loads(text)).map(json.dumps)
        new = data.draw(others, "new").encode("utf-8", "replace").decode()
        query = f'UPDATE {of} SET "{name}" = ? WHERE "{name}" = ?'  # noqa: S608 - our own names
        connection.execute(query, (new, text))
