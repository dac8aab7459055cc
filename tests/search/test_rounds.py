"""Several shapes, one budget: made-up searches whose gains are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.plan.study import StudyPlan
from autotune.search import Budget
from autotune.search.rounds import Searched, Turn, search_in_rounds
from tests.recordings import SHRINK

DEFAULT = KernelConfig(
    block_m=32,
    block_n=16,
    block_k=32,
    split_k=8,
    num_warps=4,
    num_stages=2,
    num_ctas=1,
    group_size_m=8,
)


def shape(tokens: int) -> KernelShape:
    return KernelShape.from_mapping({**SHRINK, "num_tokens": tokens})


class MadeUp:
    """Searches that take a second a trial, and gain by a rule."""

    def __init__(self, gain: Callable[[KernelShape, int], float], us: float = 10.0) -> None:
        self.gain, self.us, self.now = gain, us, 0.0
        self.trials: dict[int, int] = {}
        self.order: list[int] = []

    def __call__(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            budget = turn.begin() or Budget(trials=0)
            turn.end(self._search(turn.space, budget))

    def _search(self, space: SearchSpace, budget: Budget) -> Searched:
        tokens = space.shape.num_tokens
        self.order.append(tokens)
        tried = self.trials.get(tokens, 0)
        while not budget.is_spent(tried):
            if budget.least_gain is not None and self.gain(space.shape, tried) < budget.least_gain:
                break
            tried += 1
            self.now += 1.0
        self.trials[tokens] = tried
        return Searched(trials=tried, gain=self.gain(space.shape, tried), default_us=self.us)


def go(made_up: MadeUp, *tokens: int, **options: object) -> None:
    shapes = [shape(each) for each in tokens]
    plan = replace(StudyPlan.of_shapes(shapes), **options)  # type: ignore[arg-type]
    search_in_rounds(plan, [SearchSpace(s, [DEFAULT], default=DEFAULT) for s in shapes], made_up)


def until(settled_at: dict[int, int]) -> Callable[[KernelShape, int], float]:
    """Searches that expect a gain of 5 % up to a number of trials, and then none."""
    return lambda shape, tried: 0.05 if tried < settled_at[shape.num_tokens] else 0.0


def test_with_trials_alone_every_shape_gets_them_and_no_more():
    made_up = MadeUp(until({1: 20, 2: 500}))
    go(made_up, 1, 2, trials=100, effort=None)
    assert made_up.trials == {1: 100, 2: 100}
    assert made_up.order == [1, 2]


def test_a_shape_that_is_settled_leaves_its_trials_to_one_that_still_gains():
    made_up = MadeUp(until({1: 20, 2: 130}))
    go(made_up, 1, 2, trials=100, effort="normal")
    assert made_up.trials == {1: 20, 2: 130}


def test_no_shape_gets_more_than_twice_its_trials():
    made_up = MadeUp(until({1: 10, 2: 9999, 3: 10, 4: 10}))
    go(made_up, 1, 2, 3, 4, trials=100, effort="normal")
    assert made_up.trials[2] == 200


def test_all_shapes_together_get_no_more_trials_than_they_were_given():
    made_up = MadeUp(until({1: 40, 2: 9999, 3: 9999}))
    go(made_up, 1, 2, 3, trials=100, effort="normal")
    assert sum(made_up.trials.values()) <= 300
    assert made_up.trials[2] == made_up.trials[3] == 130


def test_the_same_run_again_has_nothing_to_do():
    made_up = MadeUp(until({1: 40, 2: 9999, 3: 9999}))
    go(made_up, 1, 2, 3, trials=100, effort="normal")
    before = dict(made_up.trials)
    go(made_up, 1, 2, 3, trials=100, effort="normal")
    assert made_up.trials == before


@pytest.fixture
def timed(monkeypatch) -> Callable[[MadeUp], MadeUp]:
    def follow(made_up: MadeUp) -> MadeUp:
        monkeypatch.setattr("time.monotonic", lambda: made_up.now)
        return made_up

    return follow


def test_time_is_shared_evenly_while_all_shapes_gain(timed):
    made_up = timed(MadeUp(until(dict.fromkeys(range(1, 7), 9999))))
    go(made_up, *range(1, 7), trials=500, time_budget_s=300.0)
    assert set(made_up.trials.values()) == {50}


def test_time_that_is_left_goes_to_the_shapes_that_still_gain(timed):
    made_up = timed(MadeUp(until({1: 9999, 2: 12, 3: 12, 4: 9999})))
    go(made_up, 1, 2, 3, 4, trials=500, time_budget_s=200.0)
    assert made_up.trials == {1: 88, 2: 12, 3: 12, 4: 88}


def test_with_trials_alone_no_shape_gets_more_even_if_time_is_left(timed):
    made_up = timed(MadeUp(until({1: 9999, 2: 12})))
    go(made_up, 1, 2, trials=60, effort=None, time_budget_s=300.0)
    assert made_up.trials == {1: 60, 2: 60}


def test_a_shape_that_saves_more_goes_first_and_gets_more(timed):
    gains = {1: 0.01, 2: 0.03, 3: 0.0}
    made_up = timed(MadeUp(lambda shape, _tried: gains[shape.num_tokens]))
    go(made_up, 1, 2, 3, trials=500, time_budget_s=300.0)
    assert made_up.order[:5] == [1, 2, 3, 2, 1]
    # The third shape leaves its hundred seconds.
    assert made_up.trials[2] - 100 == pytest.approx(3 * (made_up.trials[1] - 100), abs=3)
