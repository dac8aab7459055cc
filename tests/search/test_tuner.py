"""Tuning one shape: budgets, what trials become, interruptions, and the selection at the end."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from autotune.choose.finalists import FINALISTS
from autotune.errors import StorageError
from autotune.measure import Outcome
from autotune.measure.racing import ROUND_SAMPLES
from autotune.measure.replay import ReplayRunner
from autotune.search import Budget
from autotune.search.budget import FEWEST_TRIALS
from autotune.search.samplers.objective import CONSTRAINT
from autotune.store import Store, engine
from autotune.store.store import study_name
from tests.patience import PATIENCE_S
from tests.recordings import SHRINK, lines, write_recording
from tests.search.cases import (
    FEW,
    SHAPE,
    CountingRunner,
    broken_lines,
    opened,
    tuned,
    write_lines,
)

DATABASE = "sqlite:///autotune.db"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recording(tmp_path) -> Path:
    return write_recording(tmp_path / "r.jsonl.gz", SHRINK)


@pytest.fixture
def runner(recording) -> CountingRunner:
    return CountingRunner(recording)


def stored_trials(runner: ReplayRunner) -> list[FrozenTrial]:
    """The study's trials as Optuna reads them."""
    storage = RDBStorage(DATABASE)
    study = optuna.load_study(storage=storage, study_name=study_name(runner.environment, SHAPE))
    trials = study.trials
    storage.remove_session()
    storage.engine.dispose()
    return trials


def stored_configs() -> list[dict[str, int]]:
    """The configurations of our own table, in order."""
    engine = sa.create_engine(DATABASE)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT config FROM autotune_measurements ORDER BY id")
        configs = [json.loads(config) for (config,) in rows]
    engine.dispose()
    return configs


# ------------------------------------------------------------------ budgets


def test_the_budget_counts_distinct_configurations_of_earlier_runs_too(runner):
    tuned(runner, DATABASE, 10)
    assert len(runner.measured) == 10
    selection = tuned(runner, DATABASE, 14)
    assert len(runner.measured) == len(set(runner.measured)) == 14
    assert selection is not None
    assert selection.trials == 14


def test_a_smaller_budget_than_what_is_there_measures_nothing(runner):
    first = tuned(runner, DATABASE, 10)
    assert tuned(runner, DATABASE, 5) == first
    assert len(runner.measured) == 10


@pytest.mark.parametrize("before", [0, 5, FEWEST_TRIALS, FEWEST_TRIALS + 5])
def test_a_deadline_in_the_past_measures_no_more_than_a_selection_needs(runner, before):
    if before:
        tuned(runner, DATABASE, before)
    with opened(runner, DATABASE) as tuner:
        selection = tuner.run(Budget(trials=100, deadline=time.monotonic() - 1))
    assert len(runner.measured) == max(before, FEWEST_TRIALS)
    assert selection is not None
    assert selection.default_latency_us is not None


def test_a_budget_of_fewer_trials_holds_after_the_deadline_too(runner):
    with opened(runner, DATABASE) as tuner:
        tuner.run(Budget(trials=3, deadline=time.monotonic() - 1))
    assert len(runner.measured) == 3


def test_a_deadline_ends_a_search_that_has_trials_left(recording):
    class LateRunner(CountingRunner):
        deadline = time.monotonic() + 3600

        def measure(self, shape, pending, stop):
            if len(self.measured) == FEWEST_TRIALS + 6:
                budget.__setattr__("deadline", 0)
            return super().measure(shape, pending, stop)

    class MovableBudget:
        trials = 100
        deadline: float | None = None
        least_gain: float | None = None

        def is_spent(self, tried: int) -> bool:
            return Budget(trials=self.trials, deadline=self.deadline).is_spent(tried)

    runner, budget = LateRunner(recording), MovableBudget()
    with opened(runner, DATABASE) as tuner:
        selection = tuner.run(budget)  # type: ignore[arg-type]
    assert len(runner.measured) == FEWEST_TRIALS + 7
    assert selection is not None


# ------------------------------------------------------------------ what a trial becomes


def test_a_failed_configuration_is_a_pruned_trial_with_its_outcome_and_reason(runner):
    tuned(runner, DATABASE, 1_000, axes={"block_m": (16,), "block_n": (16,), "block_k": (32,)})
    failed = [t for t in stored_trials(runner) if t.user_attrs["outcome"] == "launch_failed"]
    (trial,) = failed
    assert trial.state is TrialState.PRUNED
    assert trial.constraints[CONSTRAINT] > 0
    assert trial.user_attrs["reason"] == "OutOfResources: shared memory"
    assert trial.intermediate_values == {}


@pytest.mark.slow
def test_a_slow_configuration_is_pruned_after_one_round_and_is_still_feasible(runner):
    tuned(runner, DATABASE, 60)
    slow = [t for t in stored_trials(runner) if t.user_attrs["outcome"] == "too_slow"]
    assert len(slow) > 10
    for trial in slow:
        assert trial.state is TrialState.PRUNED
        assert trial.constraints[CONSTRAINT] <= 0
        assert list(trial.intermediate_values) == [ROUND_SAMPLES]


def test_a_finished_trial_has_the_median_of_its_samples_as_its_value(runner):
    tuned(runner, DATABASE, 20)
    with opened(runner, DATABASE) as tuner:
        measured = [m for m in tuner._loop.measured.values() if m.outcome is Outcome.OK]
    complete = [t for t in stored_trials(runner) if t.state is TrialState.COMPLETE]
    assert [t.value for t in complete] == [m.latency_us for m in measured]


@pytest.mark.slow
def test_the_default_is_timed_in_full_however_slow_it_is(runner):
    tuned(runner, DATABASE, 30)
    assert stored_trials(runner)[0].state is TrialState.COMPLETE


def test_trials_lie_in_the_database_in_the_order_of_the_measurements(runner):
    tuned(runner, DATABASE, 30)
    measured = [config.as_dict() for config in runner.measured]
    assert [trial.params for trial in stored_trials(runner)] == measured
    assert stored_configs() == measured


# ------------------------------------------------------------------ interruptions


@pytest.mark.parametrize(
    ("sampler", "after"),
    [
        ("tpe", 0),
        ("tpe", 1),
        ("tpe", 23),
        pytest.param("gp", 14, marks=pytest.mark.slow),
        ("random", 23),
    ],
)
def test_an_interrupted_search_goes_on_where_it_stopped_and_ends_alike(recording, sampler, after):
    trials = 18 if sampler == "gp" else 40
    whole = CountingRunner(recording)
    uninterrupted = tuned(whole, "sqlite:///whole.db", trials, sampler=sampler)

    first = CountingRunner(recording, interrupted_after=after)
    with pytest.raises(KeyboardInterrupt):
        tuned(first, DATABASE, trials, sampler=sampler)
    assert stored_configs() == [config.as_dict() for config in first.measured]
    assert len(stored_trials(first)) == after

    second = CountingRunner(recording)
    assert tuned(second, DATABASE, trials, sampler=sampler) == uninterrupted
    assert first.measured + second.measured == whole.measured
    assert second.compared == whole.compared


@pytest.mark.slow
def test_a_search_goes_on_alike_after_trials_that_were_pruned_in_different_rounds(tmp_path):
    # TPE ranks pruned trials by the step that they reached: it must be the same when read back.
    table = lines(SHRINK)
    for number, line in enumerate(table):
        if "samples_us" in line and number % 2 and not line.get("is_default"):
            best = min(line["samples_us"])
            line["samples_us"] = [10.0] * 4 + [best] * 11 if best > 14 else [best] * 15
            line["samples_us"] = sorted(line["samples_us"])
    path = write_lines(tmp_path / "late.jsonl.gz", table)

    whole = CountingRunner(path)
    tuned(whole, "sqlite:///whole.db", 60)
    first = CountingRunner(path, interrupted_after=40)
    with pytest.raises(KeyboardInterrupt):
        tuned(first, DATABASE, 60)
    pruned = [t for t in stored_trials(first) if t.state is TrialState.PRUNED]
    assert len({step for trial in pruned for step in trial.intermediate_values}) > 1
    second = CountingRunner(path)
    tuned(second, DATABASE, 60)
    assert first.measured + second.measured == whole.measured


def test_the_default_is_measured_even_if_an_interruption_came_before_it_was_done(recording):
    class YoungestFirst(CountingRunner):
        lookahead = 4

        def measure(self, shape, pending, stop):
            return super().measure(shape, pending[::-1], stop)

    first = YoungestFirst(recording, interrupted_after=2)
    with pytest.raises(KeyboardInterrupt):
        tuned(first, DATABASE, 5)
    default = first.space(SHAPE, {}).default
    assert default not in first.measured
    second = YoungestFirst(recording)
    selection = tuned(second, DATABASE, 5)
    assert default in second.measured
    assert selection is not None
    assert selection.ratio is not None
    assert len(set(first.measured + second.measured)) == 5


def test_a_runner_that_looks_ahead_measures_each_configuration_once(recording):
    class Ahead(CountingRunner):
        lookahead = 5

        def measure(self, shape, pending, stop):
            assert len(set(pending)) == len(pending) <= self.lookahead
            return super().measure(shape, pending[::-1], stop)

    runner = Ahead(recording)
    tuned(runner, DATABASE, 30)
    assert len(runner.measured) == len(set(runner.measured)) == 30


@pytest.mark.slow
def test_trials_that_a_kill_lost_are_made_up_for_from_the_measurements(runner):
    tuned(runner, DATABASE, 12)
    whole = stored_trials(runner)
    connection = sqlite3.connect("autotune.db")
    for table in ("values", "params", "user_attributes", "system_attributes"):
        connection.execute(
            f"DELETE FROM trial_{table} WHERE trial_id IN "  # noqa: S608 - names of our own
            "(SELECT trial_id FROM trials WHERE number >= 7)"
        )
    connection.execute("DELETE FROM trial_intermediate_values WHERE trial_id > 7")
    connection.execute("DELETE FROM trials WHERE number >= 7")
    connection.commit()
    connection.close()
    assert len(stored_trials(runner)) == 7

    tuned(runner, DATABASE, 12)
    assert len(runner.measured) == 12
    assert stored_trials(runner) == whole


@pytest.mark.slow
def test_a_search_whose_database_is_locked_ends_with_what_is_wrong(recording, monkeypatch):
    monkeypatch.setattr(engine, "_LOCK_TIMEOUT_S", 0)
    other = sqlite3.connect("autotune.db", isolation_level=None)

    class Locked(CountingRunner):
        def measure(self, shape, pending, stop):
            if len(self.measured) == 5:
                other.execute("BEGIN IMMEDIATE")
            return super().measure(shape, pending, stop)

    first = Locked(recording)
    with pytest.raises(StorageError, match=r"cannot use the database .*: database is locked"):
        tuned(first, DATABASE, 100)
    other.close()

    kept = stored_configs()
    assert kept == [config.as_dict() for config in first.measured[: len(kept)]]
    second = CountingRunner(recording)
    selection = tuned(second, DATABASE, 20)
    assert selection is not None
    assert len(stored_configs()) == len(stored_trials(second)) == 20


def test_a_search_whose_tables_were_dropped_ends_with_what_is_wrong(recording):
    class Dropped(CountingRunner):
        def measure(self, shape, pending, stop):
            if len(self.measured) == 5:
                connection = sqlite3.connect("autotune.db", timeout=PATIENCE_S)
                connection.execute("DROP TABLE autotune_measurements")
                connection.close()
            return super().measure(shape, pending, stop)

    with pytest.raises(StorageError, match="no such table: autotune_measurements"):
        tuned(Dropped(recording), DATABASE, 100)


# ------------------------------------------------------------------ selections


def test_a_selection_stands_where_nothing_was_measured_since(runner):
    first = tuned(runner, DATABASE, 20)
    assert tuned(runner, DATABASE, 20, seed=3) == first
    assert len(runner.compared) == 1


def test_a_selection_is_made_anew_once_something_was_measured(runner):
    tuned(runner, DATABASE, 20)
    selection = tuned(runner, DATABASE, 21)
    assert len(runner.compared) == 2
    assert selection is not None
    assert selection.trials == 21


def test_a_selection_that_a_kill_lost_is_made_up_for(runner):
    first = tuned(runner, DATABASE, 20)
    connection = sqlite3.connect("autotune.db")
    connection.execute("DELETE FROM autotune_selections")
    connection.commit()
    connection.close()
    assert tuned(runner, DATABASE, 20) == first
    assert len(runner.measured) == 20


def test_the_finalists_are_the_fastest_and_the_default(runner):
    tuned(runner, DATABASE, 40)
    (finalists,) = runner.compared
    space = runner.space(SHAPE, {})
    assert len(finalists) == FINALISTS + 1
    assert finalists[-1] == space.default
    recorded = runner._recorded(SHAPE)
    latencies = [recorded[config].latency_us for config in finalists]
    assert latencies == sorted(latencies)


def test_what_was_measured_outside_the_present_axes_is_passed_over(runner):
    tuned(runner, DATABASE, 1_000, axes=FEW)
    before = len(runner.measured)
    others = {"block_m": (64,), "block_n": (32,), "block_k": (64,)}
    selection = tuned(runner, DATABASE, 1_000, axes=others)
    space = runner.space(SHAPE, others)
    assert selection is not None
    assert selection.config in space.configs
    # Of the earlier measurements only the default's, which is in every space, counts.
    assert selection.trials == len(space.configs)
    assert len(runner.measured) == before + len(space.configs) - 1
    assert len(stored_trials(runner)) == len(runner.measured)


def test_a_selection_from_other_axes_is_not_taken_for_that_of_the_present_ones(runner):
    few, others = {**FEW, "block_m": (16,)}, {**FEW, "block_m": (32,)}
    first = tuned(runner, DATABASE, 1_000, axes=few)
    second = tuned(runner, DATABASE, 1_000, axes=others)
    assert first is not None
    assert second is not None
    assert first.trials == second.trials
    assert second.config in runner.space(SHAPE, others).configs
    assert second.config.block_m != first.config.block_m


def test_a_shape_where_nothing_works_has_no_selection(tmp_path):
    path = write_lines(tmp_path / "broken.jsonl.gz", broken_lines(SHRINK))
    runner = CountingRunner(path)
    assert tuned(runner, DATABASE, 5) is None
    assert len(runner.measured) == 5
    assert len(stored_trials(runner)) == 5


def test_two_environments_do_not_share_a_database(runner, tmp_path):
    tuned(runner, DATABASE, 5)
    newer = write_recording(tmp_path / "newer.jsonl.gz", SHRINK, triton="3.9.0")
    with pytest.raises(StorageError, match=r"triton 3\.6\.0, here 3\.9\.0"):
        tuned(CountingRunner(newer), DATABASE, 5)


def test_measurements_of_the_store_are_those_of_the_runner(runner, recording):
    tuned(runner, DATABASE, 25)
    store = Store(DATABASE)
    record = store.study_of(SHAPE, runner.environment)
    recorded = ReplayRunner([recording])._recorded(SHAPE)
    for item in store.finished(record):
        found, full = item.measurement, recorded[item.measurement.config]
        count = len(found.samples_us)
        assert found.samples_us == full.samples_us[:count]
        assert replace(found, samples_us=(), outcome=Outcome.OK, reason="") == replace(
            full, samples_us=(), outcome=Outcome.OK, reason=""
        )
        assert item.started_at <= item.finished_at
    store.close()
