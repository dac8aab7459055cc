"""Eight runs at the same moment on one database, of which a third is killed."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.recordings import EXPAND, SHRINK, write_recording
from tests.store.old import write_old_database
from tests.together import problems_in, problems_of, run_at_once

pytestmark = pytest.mark.slow

WORKERS = 8

#: Longer than the runs take alone, seconds: some are killed while they begin, and some not at all.
LONGEST_S = 4.0


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    """Four shapes of 162 configurations each."""
    shapes = [kind | {"num_tokens": count} for kind in (SHRINK, EXPAND) for count in (16, 32)]
    return write_recording(tmp_path_factory.mktemp("recording") / "r.jsonl.gz", *shapes)


def run(recording: Path, url: str, output: object, *flags: object) -> list[object]:
    return ["run", "--replay", recording, "--storage", url, "--output", output, *flags]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.json")}


@pytest.mark.parametrize("holds", ["nothing", "what an earlier run kept", "an old database"])
def test_runs_of_one_study_share_it_and_all_that_live_write_the_same(
    recording, url, tmp_path, holds
):
    flags = ("--trials", 9, "--sampler", "random")
    if holds == "what an earlier run kept":
        (first,) = run_at_once([run(recording, url, "first", "--trials", 4)], tmp_path)
        assert first.code == 0, first.said
    if holds == "an old database":
        if not url.startswith("sqlite"):
            pytest.skip("the old database is a SQLite file")
        write_old_database(tmp_path / "autotune.db")
    chance = random.Random(holds)  # noqa: S311 - nothing is kept secret by it
    killed = chance.sample(range(WORKERS), WORKERS // 3 + 1)
    ended = run_at_once(
        [
            run(recording, url, f"tuned-{number // 2}", *flags, "--gpus", 1 + number % 2)
            for number in range(WORKERS)
        ],
        tmp_path,
        signals=[(chance.uniform(0, LONGEST_S), number, signal.SIGKILL) for number in killed],
    )
    assert problems_of(ended, killed) == []
    assert problems_in(url) == []
    alive = [number for number, one in enumerate(ended) if one.code == 0]
    wanted = files(tmp_path / f"tuned-{alive[0] // 2}")
    assert all(files(tmp_path / f"tuned-{number // 2}") == wanted for number in alive)
    (again,) = run_at_once([run(recording, url, "again", *flags)], tmp_path)
    assert again.code == 0, again.said
    assert files(tmp_path / "again") == wanted


def test_runs_of_different_studies_into_one_folder_leave_it_whole(recording, url, tmp_path):
    ops = [(), ("--op", "shrink"), ("--op", "expand"), ("--op", "shrink", "--tokens", 32)]
    chance = random.Random(0)  # noqa: S311 - nothing is kept secret by it
    killed = chance.sample(range(WORKERS), WORKERS // 3)
    commands = [
        run(recording, url, "tuned", "--merge", "--trials", 6 + number, *ops[number % len(ops)])
        for number in range(WORKERS)
    ]
    ended = run_at_once(
        commands,
        tmp_path,
        signals=[(chance.uniform(0, LONGEST_S), number, signal.SIGKILL) for number in killed],
    )
    assert problems_of(ended, killed) == []
    assert problems_in(url) == []
    (checked,) = run_at_once([["check", "tuned", "--storage", url]], tmp_path)
    assert checked.code == 0, checked.said


def test_signals_let_the_others_have_what_a_run_had(recording, tmp_path):
    url = "sqlite:///autotune.db"
    chance = random.Random(1)  # noqa: S311 - nothing is kept secret by it
    sent = [(chance.uniform(1, LONGEST_S), n, n % 2 * 13 + 2) for n in range(WORKERS // 2)]
    commands = [run(recording, url, f"tuned-{n}", "--trials", 9) for n in range(WORKERS)]
    ended = run_at_once(commands, tmp_path, signals=sent)
    # A run that does not heed signals yet is ended by them.
    heeded, ending = {130, 143}, {-signal.SIGINT, -signal.SIGTERM}
    assert {one.code for one in ended} <= {0, *heeded, *ending}, ended
    assert [one.code for one in ended[WORKERS // 2 :]] == [0] * (WORKERS // 2)
    assert problems_in(f"sqlite:///{tmp_path}/autotune.db") == []
