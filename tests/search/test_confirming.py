"""Shapes whose configuration is known already: confirmed in a few trials, not searched again."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from autotune.export.collection import collected, confirmable
from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.measure.measurement import Replayed
from autotune.plan.study import StudyPlan
from autotune.search.events import Planned, Tuned, unwatched
from autotune.search.run import run_job
from autotune.search.session import Session
from autotune.search.tune import tune
from autotune.search.tuner import CONFIRMING_TRIALS
from tests.recordings import BEST, SHRINK, lines, write_recording
from tests.search.cases import SHAPE, CountingRunner, write_lines

CONFIG = KernelConfig.from_mapping(LoraOp.SHRINK, BEST | {"split_k": 8})
FAILING = KernelConfig.from_mapping(LoraOp.SHRINK, lines(SHRINK)[3]["config"])


class MeasuringRunner(CountingRunner):
    """Answers as if a GPU had measured."""

    @property
    def replayed(self) -> Replayed | None:  # type: ignore[override]
        return None


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def path(tmp_path) -> Path:
    return write_recording(tmp_path / "r.jsonl.gz", SHRINK)


def tuned_with(
    runner: CountingRunner, known: Mapping[KernelShape, KernelConfig], **flags: int
) -> tuple[Sequence[Tuned], Planned]:
    """The results of a run that knows configurations, and what it planned."""
    told: list[object] = []
    plan = StudyPlan.of_shapes([SHAPE]).override(trials=flags.get("trials", 30), effort="normal")
    with Session(plan, runner, told.append, known=known) as session:
        results = tune(session)
    (planned,) = (each for each in told if isinstance(each, Planned))
    return results, planned


def test_a_known_configuration_is_measured_right_after_the_default_and_in_a_few_trials(path):
    runner = MeasuringRunner(path)
    (result,), planned = tuned_with(runner, {SHAPE: CONFIG})
    assert runner.measured[1] == CONFIG
    assert len(runner.measured) == CONFIRMING_TRIALS == planned.trials[SHAPE]
    assert result.selection is not None
    assert result.selection.config == CONFIG
    assert result.selection.ratio is not None
    assert result.selection.ratio.low > 1


def test_a_shape_that_is_not_known_is_searched_as_ever(path):
    runner, other = MeasuringRunner(path), SHAPE.without_batch
    _, planned = tuned_with(runner, {other: CONFIG})
    assert len(runner.measured) > CONFIRMING_TRIALS
    assert planned.trials[SHAPE] == 30


@pytest.mark.parametrize("known", [FAILING, CONFIG])
def test_a_known_configuration_that_does_not_win_is_searched_past(tmp_path, known):
    """One that fails here, or that is slower than the default."""
    path = write_recording(tmp_path / "r.jsonl.gz", SHRINK)
    if known == CONFIG:
        path = with_default(tmp_path, CONFIG)
        known = KernelConfig.from_mapping(LoraOp.SHRINK, SLOWEST)
    runner = MeasuringRunner(path)
    tuned_with(runner, {SHAPE: known})
    assert known in runner.measured[:CONFIRMING_TRIALS]
    assert len(runner.measured) > CONFIRMING_TRIALS


#: The configuration that recordings have as vLLM's default.
SLOWEST = next(line["config"] for line in lines(SHRINK) if line.get("is_default"))


def with_default(folder: Path, default: KernelConfig) -> Path:
    """A recording in which vLLM's default is the fastest of all."""
    changed = lines(SHRINK)
    for line in changed:
        line.pop("is_default", None)
        if KernelConfig.from_mapping(LoraOp.SHRINK, line["config"]) == default:
            line["is_default"] = True
    return write_lines(folder / "fast-default.jsonl.gz", changed)


@pytest.mark.slow
def test_a_replay_is_not_told_what_is_known(path):
    runner = CountingRunner(path)
    tuned_with(runner, {SHAPE: CONFIG})
    with_nothing = CountingRunner(path)
    Path("autotune.db").unlink()
    tuned_with(with_nothing, {})
    assert runner.measured == with_nothing.measured


def test_fewer_trials_than_confirming_takes_are_enough_if_that_was_asked_for(path):
    runner = MeasuringRunner(path)
    tuned_with(runner, {SHAPE: CONFIG}, trials=2)
    assert len(runner.measured) == 2


def test_a_shape_that_was_only_confirmed_is_searched_when_that_is_asked_for(path):
    tuned_with(MeasuringRunner(path), {SHAPE: CONFIG})
    again = MeasuringRunner(path)
    tuned_with(again, {SHAPE: CONFIG})
    assert not again.measured
    searching = MeasuringRunner(path)
    tuned_with(searching, {})
    assert searching.measured


def test_a_run_where_the_collection_was_tuned_starts_from_it_and_says_so(tmp_path):
    entry = next(one for one in collected()[0].entries if one.shape.op is LoraOp.SHRINK)
    shipped = {"shape": entry.shape.as_dict(), "config": entry.config.as_dict(), "outcome": "ok"}
    path = tmp_path / "here.jsonl.gz"
    header = {"schema": "autotune-recording/1", "environment": entry.environment.as_dict()}
    with gzip.open(path, "wt") as file:
        for line in (
            header,
            shipped | {"samples_us": [5.0 + 0.001 * n for n in range(15)]},
            *lines(entry.shape.as_dict()),
        ):
            file.write(json.dumps(line) + "\n")
    runner = MeasuringRunner(path)
    said: list[str] = []
    done = run_job(
        StudyPlan.of_shapes([entry.shape]),
        runner,
        unwatched,
        say=said.append,
        known=confirmable(runner.environment),
    )
    assert len(runner.measured) == CONFIRMING_TRIALS
    assert [one.config for one in done.selections] == [entry.config]
    (line,) = (each for each in said if "collection" in each)
    assert line.startswith("Of 1 shapes autotune's own collection holds 1 for this GPU and vllm-")
    assert "--no-configs" in line
