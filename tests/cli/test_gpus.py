"""``--gpus``: several replays in one run, and values that cannot be."""

from __future__ import annotations

import gzip
import json
import re
import signal
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

import autotune as package
from autotune.errors import InputError
from autotune.launch.op import LoraOp
from autotune.measure import Outcome
from autotune.measure.recording import read_recording
from autotune.measure.replay import shipped_recording
from autotune.plan.study import StudyPlan
from autotune.store import Store
from tests.cli.command import Command
from tests.patience import PATIENCE_S
from tests.recordings import EXPAND, SHRINK, write_recording
from tests.together import problems_in


@pytest.fixture(scope="module")
def six(tmp_path_factory) -> Path:
    """Six shapes of 162 configurations each."""
    shapes = [kind | {"num_tokens": 8 << n} for kind in (SHRINK, EXPAND) for n in range(3)]
    return write_recording(tmp_path_factory.mktemp("recording") / "r.jsonl.gz", *shapes)


def kept(autotune: Command) -> Counter[str | None]:
    """How many configurations each device has measured."""
    with closing(Store(f"sqlite:///{autotune.folder / 'autotune.db'}")) as store:
        query = "SELECT device FROM autotune_measurements"
        with store.engine.connect() as connection:
            return Counter(connection.exec_driver_sql(query).scalars())


@pytest.mark.slow
def test_several_replays_search_side_by_side_and_write_what_a_check_accepts(autotune, six):
    ended = autotune("run", "--replay", six, "--gpus", 4, "--trials", 12)
    assert ended.code == 0, ended.err
    assert "6 exact, 0 nearest, 0 default, 0 stops; 0 errors" in ended.out
    assert len(re.findall(r"^\[[1-6]/6\]", ended.out, re.MULTILINE)) == 6
    counts = kept(autotune)
    assert set(counts) == {f"replay {n}" for n in range(4)}
    assert counts.total() == 6 * 12
    assert problems_in(f"sqlite:///{autotune.folder / 'autotune.db'}") == []
    assert autotune("check", "tuned", "--replay", six).code == 0
    tells_who_measured_what(autotune)


def tells_who_measured_what(autotune: Command) -> None:
    """``status`` and the report do."""
    told = json.loads(autotune("status", "--json").out)
    (run,) = told["runs"]
    assert list(run["busy"]) == [*(f"replay {n}" for n in range(4)), "writer"]
    assert all(0 <= share <= 1 for share in run["busy"].values())
    assert run["lost"] == []
    works = [work for one in told["studies"] for work in one["runs"]]
    assert [work["trials"] for work in works] == [12] * 6
    assert {work["gpu"] for work in works} == {f"replay {n}" for n in range(4)}
    lines = autotune("status").out.splitlines()
    assert re.match(r"  busy: (replay \d \d+ %, ){4}writer \d+ %$", lines[1])
    assert all(re.search(r" replay \d \(12\)$", line.rstrip()) for line in lines[-6:])
    assert autotune("report").code == 0
    page = (autotune.folder / "report.html").read_text()
    for n in range(4):
        assert re.search(rf"By [^<]*, process \d+, replay {n}<", page)
    assert re.search(r"Busy at [^<]*, process \d+<", page)


@pytest.mark.slow
def test_one_gpu_is_as_good_as_none_to_the_byte(autotune, six):
    flags = ("--trials", 8, "--seed", 7)
    for name, gpus in (("a", ()), ("b", ("--gpus", 1))):
        ended = autotune(
            *("run", "--replay", six, *flags, *gpus, "--output", name),
            *("--storage", f"sqlite:///{name}.db", "--record", f"{name}.jsonl.gz"),
        )
        assert ended.code == 0, ended.err
    assert autotune.files("a") == autotune.files("b")
    first, second = (
        gzip.decompress((autotune.folder / f"{name}.jsonl.gz").read_bytes()) for name in "ab"
    )
    assert first == second


@pytest.mark.slow
def test_what_several_record_is_whole(autotune, six):
    ended = autotune("run", "--replay", six, "--gpus", 3, "--trials", 9, "--record", "r.jsonl.gz")
    assert ended.code == 0, ended.err
    recording = read_recording(autotune.folder / "r.jsonl.gz")
    assert len(recording.defaults) == 6
    assert {len(those) for those in recording.shapes.values()} == {9}
    assert autotune("run", "--replay", "r.jsonl.gz", "--storage", "sqlite:///b.db").code == 0


@pytest.mark.slow
def test_a_folder_is_as_good_whether_one_or_four_have_searched_it(autotune):
    """The configurations chosen, by the figures of the recording, beside the best of it."""
    recording = read_recording(shipped_recording())
    best = {
        shape: min(one.latency_us for one in those.values() if one.outcome is Outcome.OK)
        for shape, those in recording.shapes.items()
        if shape.op is LoraOp.EXPAND and shape.num_tokens in (1, 16)
    }
    for gpus in (1, 4):
        plan = StudyPlan.of_shapes(best).override(
            storage=f"sqlite:///{autotune.folder}/{gpus}.db", trials=40
        )
        results = package.tune(plan, replay=shipped_recording(), gpus=gpus)
        results.export(autotune.folder / str(gpus))
        assert not results.check(autotune.folder / str(gpus)).has_errors
        chosen = {one.shape: one.config for one in results.selections}
        assert chosen.keys() == best.keys()
        losses = sorted(
            recording.shapes[shape][config].latency_us / best[shape] - 1
            for shape, config in chosen.items()
        )
        assert losses[len(losses) // 2] < 0.01
        assert losses[-1] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_of_several_as_one_of_one_and_the_next_goes_on(autotune, number, code):
    command = (
        *("run", "--replay", shipped_recording(), "--gpus", 3, "--trials", 20),
        *("--op", "expand", "--tokens", "16,128"),
    )
    process = autotune.start(*command)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("["):
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, err
    first, second = err.splitlines()
    assert first.startswith("autotune: interrupted; ")
    assert second.startswith("To write the files of what is done: autotune export ")
    status = json.loads(autotune("status", "--json").out)
    assert [run["state"] for run in status["runs"]] == ["interrupted"]
    before = kept(autotune)
    assert before.total() > 0
    ended = autotune(*command)
    assert ended.code == 0, ended.err
    assert kept(autotune) > before
    assert problems_in(f"sqlite:///{autotune.folder / 'autotune.db'}") == []


# ------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize("value", ["0", "-1", "a", "0,0", "", "1.5", "0,-1", ",", "all,0", "²"])
def test_a_value_that_cannot_be_is_refused_with_what_can_be_and_what_there_is(
    autotune, recording, value
):
    said = autotune("run", "--replay", recording, "--gpus", value).has_refused_its_usage()
    assert "must be all, how many GPUs, or the numbers of some" in said
    assert repr(value) in said
    assert re.search(r"(no CUDA GPU is here|GPUs? here (is|are) )", said)


@pytest.mark.parametrize("value", ["all", "0,1", "0,", "65", "9999999999999999999999"])
def test_a_replay_takes_a_number_of_replays_and_nothing_else(autotune, recording, value):
    ended = autotune("run", "--replay", recording, "--gpus", value)
    if ended.code == 1:
        assert f"--gpus {value} is for GPUs" in ended.has_failed_in_one_line()
    else:
        ended.has_refused_its_usage()
    assert not (autotune.folder / "autotune.db").exists()


def study(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in SHRINK.items())
    path.write_text(f"[run]\n{text}\n[[shapes]]\n{table}\n")
    return path


@pytest.mark.parametrize(
    ("text", "gpus"), [("gpus = 4", 4), ('gpus = "all"', "all"), ("gpus = [0, 2]", (0, 2))]
)
def test_a_study_file_may_say_it_and_the_flag_goes_before(tmp_path, text, gpus):
    plan = StudyPlan.read(study(tmp_path, text))
    assert plan.gpus == gpus
    assert plan.override(gpus=2).gpus == 2
    assert plan.override(gpus=[1]).gpus == (1,)


@pytest.mark.parametrize(
    "text", ["0", "-1", "true", '"a"', "[]", "[0, 0]", "[-1]", "[true]", "1.5", '[["0"]]', "[[0]]"]
)
def test_a_study_file_that_says_what_cannot_be_is_refused(tmp_path, text):
    with pytest.raises(InputError, match=r"study.toml: \[run\] gpus: must be how many GPUs"):
        StudyPlan.read(study(tmp_path, f"gpus = {text}"))


def test_the_number_of_the_study_file_counts_for_a_replay(autotune, recording):
    path = study(autotune.folder, "gpus = 2")
    ended = autotune("run", path, "--replay", recording, "--trials", 3)
    assert ended.code == 0, ended.err
    assert kept(autotune).keys() <= {"replay 0", "replay 1"}
