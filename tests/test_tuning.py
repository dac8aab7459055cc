"""The main job over several shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.errors import ReplayMiss
from autotune.measure.replay import ReplayRunner
from autotune.plan import StudyPlan
from autotune.search.tuner import FEWEST_TRIALS
from autotune.store import Store
from autotune.tuning import Tuned, stored_selections, tune
from tests.recordings import BEST, EXPAND, SHRINK, lines, write_recording
from tests.search.cases import CountingRunner, broken_lines, write_lines


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runner(tmp_path) -> CountingRunner:
    return CountingRunner(write_recording(tmp_path / "r.jsonl.gz"))


class Told:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tuned, int, int]] = []

    def __call__(self, tuned: Tuned, number: int, count: int) -> None:
        self.calls.append((tuned, number, count))


def plan_of(runner: ReplayRunner, **options: object) -> StudyPlan:
    return replace(StudyPlan.of_shapes(runner.shapes), **options)  # type: ignore[arg-type]


def test_every_shape_ends_with_its_selection_in_the_database(runner):
    plan = plan_of(runner, trials=60)
    told = Told()
    tuned = tune(plan, runner, told)

    assert [result.shape for result in tuned] == list(runner.shapes)
    assert told.calls == [(tuned[0], 1, 2), (tuned[1], 2, 2)]
    for result in tuned:
        assert result.trials == result.outcomes.total() == 60
        assert result.selection is not None
        assert BEST.items() <= result.selection.config.as_dict().items()
    ((environment, selections),) = stored_selections(plan.storage)
    assert environment == runner.environment
    assert {s.shape: s for s in selections} == {r.shape: r.selection for r in tuned}


def test_a_shape_where_nothing_works_is_told_and_the_run_goes_on(tmp_path):
    path = write_lines(tmp_path / "r.jsonl.gz", [*broken_lines(SHRINK), *lines(EXPAND)])
    runner = CountingRunner(path)
    plan = plan_of(runner, trials=20)
    told = Told()
    broken, good = tune(plan, runner, told)

    assert broken.selection is None
    assert broken.outcomes == {"compile_failed": 12}
    assert good.selection is not None
    assert [result for result, _, _ in told.calls] == [broken, good]
    ((_, selections),) = stored_selections(plan.storage)
    assert selections == [good.selection]


def test_a_spent_time_budget_still_chooses_for_every_shape(runner):
    told = Told()
    tuned = tune(plan_of(runner, time_budget_s=0), runner, told)
    assert [result.trials for result in tuned] == [FEWEST_TRIALS] * 2
    assert all(result.selection for result in tuned)
    assert len(told.calls) == 2


def test_what_a_shape_takes_beyond_its_time_is_not_taken_from_the_last(tmp_path, monkeypatch):
    now = [1000.0]

    class SlowRunner(CountingRunner):
        def measure(self, shape, pending, stop):
            now[0] += 0.5
            return super().measure(shape, pending, stop)

        def compare(self, shape, configs, *rule):
            now[0] += 4.0
            return super().compare(shape, configs, *rule)  # type: ignore[no-untyped-call]

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    names = [{**SHRINK, "num_tokens": tokens} for tokens in (1, 2, 3, 4)]
    path = write_lines(tmp_path / "r.jsonl.gz", [line for name in names for line in lines(name)])
    tuned = tune(plan_of(SlowRunner(path), time_budget_s=48), SlowRunner(path), Told())
    # The first cannot know yet; the others leave time for their finalists.
    _, *others = (result.trials for result in tuned)
    assert max(others) - min(others) <= 1
    assert now[0] <= 1048.0


def test_the_time_budget_is_shared_among_the_shapes(tmp_path, monkeypatch):
    now = [1000.0]

    class SlowRunner(CountingRunner):
        def measure(self, shape, pending, stop):
            now[0] += 1.0  # each takes a second
            return super().measure(shape, pending, stop)

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    runner = SlowRunner(write_recording(tmp_path / "r.jsonl.gz"))
    first, second = tune(plan_of(runner, time_budget_s=20), runner, Told())
    assert (first.trials, second.trials) == (10, 10)


def test_time_that_a_shape_does_not_need_goes_to_those_after_it(tmp_path, monkeypatch):
    now = [1000.0]

    class SlowRunner(CountingRunner):
        def measure(self, shape, pending, stop):
            now[0] += 1.0
            return super().measure(shape, pending, stop)

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    path = write_lines(tmp_path / "r.jsonl.gz", [*broken_lines(SHRINK, 4), *lines(EXPAND)])
    runner = SlowRunner(path)
    first, second = tune(plan_of(runner, time_budget_s=20), runner, Told())
    assert (first.trials, second.trials) == (4, 16)


def test_an_interruption_keeps_the_shapes_that_are_done_and_the_next_run_finishes(runner, tmp_path):
    plan = plan_of(runner, trials=20)
    runner.interrupted_after = 30
    told = Told()
    with pytest.raises(KeyboardInterrupt):
        tune(plan, runner, told)
    assert len(told.calls) == 1
    ((_, selections),) = stored_selections(plan.storage)
    assert len(selections) == 1

    again = CountingRunner(tmp_path / "r.jsonl.gz")
    tuned = tune(plan, again, Told())
    assert len(again.measured) == 10
    assert [result.trials for result in tuned] == [20, 20]


def test_a_shape_that_cannot_be_measured_is_an_error_before_anything_is(runner):
    plan = plan_of(runner).override(tokens=[16, 17])
    with pytest.raises(ReplayMiss, match="the recording has no"):
        tune(plan, runner, Told())
    assert runner.measured == []


def test_an_empty_database_has_no_selections():
    Store("sqlite:///autotune.db").close()
    assert stored_selections("sqlite:///autotune.db") == []
