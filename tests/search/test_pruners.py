"""When a trial is given up, in studies with reports made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import Trial

from autotune.measure.racing import FULL_SAMPLES, ROUND_SAMPLES, is_told_apart
from autotune.search.pruners import RacingPruner

BEST_US = 10.0

#: 6.25 % above the best: told apart in the third round only.
CLOSE_US = 10.62


def study_with(finished_us: Sequence[float]) -> optuna.Study:
    study = optuna.create_study(pruner=RacingPruner())
    for value in finished_us:
        study.add_trial(optuna.trial.create_trial(value=value))
    return study


def reported(study: optuna.Study, medians_us: dict[int, float]) -> Trial:
    trial = study.ask()
    for samples, median_us in medians_us.items():
        trial.report(median_us, step=samples)
    return trial


@pytest.mark.parametrize(("median_us", "pruned"), [(9.0, False), (10.0, False), (12.0, True)])
def test_a_trial_is_pruned_where_its_median_is_told_apart_from_the_best(median_us, pruned):
    study = study_with([30.0, BEST_US, 20.0])
    assert reported(study, {ROUND_SAMPLES: median_us}).should_prune() is pruned


def test_more_samples_tell_apart_what_a_first_round_does_not():
    study = study_with([BEST_US])
    for samples in (ROUND_SAMPLES, FULL_SAMPLES):
        told_apart = is_told_apart(CLOSE_US, samples, best_us=BEST_US)
        assert reported(study, {samples: CLOSE_US}).should_prune() is told_apart
    assert told_apart


def test_only_the_latest_median_counts():
    study = study_with([BEST_US])
    spiked = reported(study, {ROUND_SAMPLES: 15.0, 2 * ROUND_SAMPLES: 10.0})
    assert not spiked.should_prune()


def test_nothing_is_pruned_before_the_first_report():
    assert not study_with([BEST_US]).ask().should_prune()


def test_nothing_is_pruned_while_no_trial_is_finished():
    study = study_with([])
    study.tell(reported(study, {ROUND_SAMPLES: 5.0}), state=optuna.trial.TrialState.PRUNED)
    assert not reported(study, {ROUND_SAMPLES: 50.0}).should_prune()


@pytest.mark.parametrize(("position", "pruned"), [(0, True), (1, False), (2, False)])
def test_only_trials_with_the_same_value_of_the_parameter_are_compared(position, pruned):
    axis = IntDistribution(0, 2)
    study = optuna.create_study(pruner=RacingPruner(alike="block_m"))
    for value, at in ((BEST_US, 0), (30.0, 1)):
        params: dict[str, int] = {"block_m": at}
        trial = optuna.trial.create_trial(
            value=value, params=params, distributions={"block_m": axis}
        )
        study.add_trial(trial)
    study.enqueue_trial({"block_m": position})
    asked = study.ask({"block_m": axis})
    asked.report(25.0, step=ROUND_SAMPLES)
    assert asked.should_prune() is pruned
