from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.launch.space import SearchSpace
from autotune.measure import Outcome, never_stop
from autotune.search import Budget
from autotune.search.contest.replayed import Replayed, search
from autotune.search.samplers.adaptive import AdaptiveSampler
from autotune.search.samplers.chooser import Chooser
from autotune.search.samplers.encoding import Positions
from autotune.search.samplers.picker import History
from autotune.search.samplers.transfer import Neighbour
from autotune.search.samplers.untried import Untried
from autotune.testing.landscape import Landscape, configs, shrink

SHAPE = shrink()


def found(runner: Landscape, trials: int, seed: int = 0, **options: int) -> Replayed:
    budget = Budget(trials=trials)
    return search(runner, SHAPE, sampler="adaptive", seed=seed, budget=budget, **options)  # type: ignore[arg-type]


def chosen(replayed: Replayed) -> list[object]:
    return [each.config for each in replayed.measurements]


@pytest.mark.parametrize("lookahead", [1, 20])
def test_nothing_is_asked_for_twice_until_the_space_is_finished(lookahead):
    runner = Landscape(stride=61)
    measured = chosen(found(runner, 1_000, lookahead=lookahead))
    assert len(measured) == len(set(measured)) == len(runner.space(SHAPE, {}).configs)


def test_the_same_seed_makes_the_same_choices_and_another_seed_others():
    runner = Landscape(stride=17)
    first, again, other = (chosen(found(runner, 30, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_all_kinds_of_outcomes_are_learned_from():
    runner = Landscape()
    outcomes = {each.outcome for each in found(runner, 60).measurements}
    assert outcomes == {Outcome.OK, Outcome.TOO_SLOW, Outcome.LAUNCH_FAILED}


def test_a_space_where_everything_fails_is_gone_through():
    measured = chosen(found(Landscape(stride=61, breaks=True), 1_000))
    assert len(set(measured)) == 67


def test_configurations_like_failed_ones_are_left_for_later():
    """All of block_k 256 fails, though the model would expect it to be the fastest."""
    runner = Landscape()
    space = runner.space(SHAPE, {})
    deep = np.array([config.block_k == 256 for config in space.configs])
    rows = np.random.default_rng(0).permutation(len(deep))[:40]
    logs = np.where(
        deep[rows], np.nan, [-0.1 * np.log2(space.configs[row].block_k) for row in rows]
    )
    free = np.setdiff1d(np.arange(len(deep)), rows)
    history = History(rows.tolist(), logs, deep[rows], np.ones(40, dtype=bool))
    chooser = Chooser(space)
    chosen = chooser.choose(history, free, np.random.default_rng(0))
    unaware = History(rows.tolist(), logs, np.zeros(40, dtype=bool), np.ones(40, dtype=bool))
    assert not deep[chosen]
    assert deep[chooser.choose(unaware, free, np.random.default_rng(0))]


@pytest.mark.slow
@pytest.mark.parametrize("lookahead", [1, 20])
def test_it_beats_random_search_by_far(lookahead):
    runner, seeds, budget = Landscape(stride=1, noise=0.005), range(4), Budget(trials=60)
    ours, theirs = (
        [
            runner.regret(
                SHAPE,
                search(
                    runner, SHAPE, sampler=name, seed=seed, budget=budget, lookahead=lookahead
                ).measurements,
            )
            for seed in seeds
        ]
        for name in ("adaptive", "random")
    )
    assert statistics.fmean(ours) < 0.5 * statistics.fmean(theirs)
    assert max(ours) < max(theirs)


def test_a_space_of_one_configuration_is_searched():
    config = configs()[0]
    space = SearchSpace(SHAPE, [config], default=config)
    positions = Positions(space)
    sampler = AdaptiveSampler(Untried(space, positions), positions, space, seed="0")
    study = optuna.create_study(sampler=sampler)
    assert positions.config(study.ask(positions.distributions).params) == config


def test_a_search_that_goes_on_makes_the_choices_of_one_never_interrupted():
    listed = configs()[::17]
    space = SearchSpace(SHAPE, listed, default=listed[0])
    positions = Positions(space)

    def ask_more(count: int, earlier: list[optuna.trial.FrozenTrial]) -> optuna.Study:
        untried = Untried(space, positions)
        sampler = AdaptiveSampler(untried, positions, space, seed="0")
        study = optuna.create_study(sampler=sampler)
        for trial in earlier:
            study.add_trial(trial)
            untried.take(positions.config(trial.params))
        for _ in range(count):
            asked = study.ask(positions.distributions)
            config = positions.config(asked.params)
            untried.take(config)
            study.tell(asked, Landscape(noise=0).truth_us(SHAPE, config))
        return study

    whole = ask_more(40, [])
    resumed = ask_more(15, whole.trials[:25])
    assert [t.params for t in resumed.trials] == [t.params for t in whole.trials]


def test_only_configurations_of_the_wanted_block_m_are_chosen():
    listed = configs()[::17]
    space = SearchSpace(SHAPE, listed, default=listed[0])
    positions = Positions(space)
    untried = Untried(space, positions)
    sampler = AdaptiveSampler(untried, positions, space, seed="0")
    study = optuna.create_study(sampler=sampler)
    for number in range(24):
        untried.look_among((16, 64)[number % 2])
        asked = study.ask(positions.distributions)
        config = positions.config(asked.params)
        assert config.block_m == (16, 64)[number % 2]
        untried.take(config)
        study.tell(asked, 10.0 + number % 7)


# ------------------------------------------------------------------ what is to be gained

EVERY = Landscape(noise=0, stride=61)
SPACE = EVERY.space(SHAPE, {})
TRUTHS = np.log([EVERY.truth_us(SHAPE, config) for config in SPACE.configs])


def history(rows: Sequence[int], logs: Sequence[float]) -> History:
    known = np.isfinite(logs)
    return History(
        list(rows), np.where(known, logs, np.nan), ~known, np.ones(len(known), dtype=bool)
    )


def gain_of(chooser: Chooser, rows: Sequence[int], logs: Sequence[float]) -> float:
    free = np.setdiff1d(np.arange(len(SPACE.configs)), rows)
    return chooser.expected_gain(history(rows, logs), free)


@given(
    st.permutations(range(len(SPACE.configs))),
    st.lists(st.floats(-2.0, 5.0) | st.just(np.inf), min_size=1, max_size=40),
    st.sampled_from([None, 1.2]),
)
def test_what_is_expected_to_be_gained_is_never_negative(order, latencies, reach):
    rows = order[: len(latencies)]
    free = np.setdiff1d(np.arange(len(SPACE.configs)), rows)
    gain = Chooser(SPACE).expected_gain(history(rows, latencies), free, reach=reach)
    assert gain >= 0
    assert math.isinf(gain) is not np.isfinite(latencies).any()


def test_little_is_to_be_gained_where_only_slow_configurations_are_left():
    slowest = np.argsort(-TRUTHS)[np.isfinite(np.sort(-TRUTHS))][:8]
    measured = np.setdiff1d(np.arange(len(TRUTHS)), slowest)
    gain = gain_of(Chooser(SPACE), measured.tolist(), TRUTHS[measured].tolist())
    assert gain < 0.002
    few = measured[np.isfinite(TRUTHS[measured])][:6]
    assert gain_of(Chooser(SPACE), few.tolist(), TRUTHS[few].tolist()) > 10 * gain


def test_more_is_to_be_gained_where_measurements_surprise():
    near = shrink(num_tokens=512)
    measured = [EVERY.measure(near, [config], never_stop) for config in SPACE.configs]
    neighbours = [Neighbour(near, measured)]
    known = np.array([EVERY.truth_us(near, config) for config in SPACE.configs])
    rows = np.argsort(known)[:10].tolist()
    surprises = np.random.default_rng(0).permutation(TRUTHS[np.argsort(TRUTHS)[10:20]])
    as_expected = gain_of(Chooser(SPACE, neighbours), rows, TRUTHS[rows].tolist())
    surprised = gain_of(Chooser(SPACE, neighbours), rows, surprises.tolist())
    assert surprised > as_expected
