"""Several shapes side by side, with a made-up runner that answers in any order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from autotune.choose.selection import Selection
from autotune.errors import InputError
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Measurement, StopRule
from autotune.plan.study import StudyPlan
from autotune.search import Budget, ShapeTuner
from autotune.search.events import Event, Opened
from autotune.search.pipeline import Pipeline
from autotune.search.rounds import Searched, Turn
from autotune.search.session import Session
from autotune.testing.landscape import Landscape, configs, shrink

TRIALS = 12
EXPAND = KernelShape.from_mapping(
    {"op": "expand", "num_tokens": 16, "hidden_size": 4096, "rank": 64, "max_loras": 8}
)
SHAPES = [shrink(num_tokens=1 << power) for power in range(7)]


class Scattered(Landscape):
    """Has any shape ready first, and answers any of its configurations.

    Attributes:
        measured: Every configuration in the order in which it was measured.
        opened: The shapes in the order in which they were begun.
        most_open: The most shapes that were open at a time.
        open_with: Per shape, which others were open when it was begun.
    """

    def __init__(self, lookahead: int, seed: int = 0) -> None:
        super().__init__(stride=61, lookahead=lookahead)
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._ready: KernelShape | None = None
        self._open: set[KernelShape] = set()
        self.measured: list[tuple[KernelShape, KernelConfig]] = []
        self.opened: list[KernelShape] = []
        self.open_with: dict[KernelShape, set[KernelShape]] = {}
        self.most_open = 0

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        if shape.op is not EXPAND.op:
            return super().kernel_space(shape, axes)
        listed = [replace(each, split_k=None, group_size_m=None) for each in configs()[::61]]
        return SearchSpace(shape, listed, default=listed[0])

    def watch(self, event: Event) -> None:
        if isinstance(event, Opened):
            self.open_with[event.shape] = set(self._open)
            self._open.add(event.shape)
            self.opened.append(event.shape)
            self.most_open = max(self.most_open, len(self._open))

    def first_ready(self, pending: Mapping[KernelShape, Sequence[KernelConfig]]) -> KernelShape:
        assert all(pending.values())
        self._ready = self._random.choice(list(pending))
        return self._ready

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        assert shape == self._ready
        found = super().measure(shape, [self._random.choice(list(pending))], stop)
        self.measured.append((shape, found.config))
        return found

    def leave(self, shape: KernelShape) -> None:
        self._open.remove(shape)


class Searches:
    """Runs a pipeline, and keeps what came out."""

    def __init__(self, folder: Path, sampler: str = "random") -> None:
        self.storage, self.sampler = f"sqlite:///{folder}/autotune.db", sampler
        self.begun: list[KernelShape] = []
        self.done: dict[KernelShape, Selection | None] = {}
        self.trials: dict[KernelShape, int] = {}

    def run(
        self, runner: Scattered, shapes: Sequence[KernelShape], kind: type[Session] = Session
    ) -> None:
        plan = StudyPlan.of_shapes(shapes).override(storage=self.storage, sampler=self.sampler)
        with kind(plan, runner, runner.watch) as session:
            spaces = [session.space(shape) for shape in shapes]
            Pipeline(session, self._ended).run([self._turn(space) for space in spaces])

    def _turn(self, space: SearchSpace) -> Turn:
        budget = Budget(trials=TRIALS)

        def begin() -> Budget:
            self.begun.append(space.shape)
            return budget

        return Turn(space=space, early=budget, begin=begin, end=lambda _searched: None)

    def _ended(self, tuner: ShapeTuner, selection: Selection | None) -> Searched:
        assert tuner.shape not in self.done
        self.done[tuner.shape] = selection
        self.trials[tuner.shape] = tuner.outcomes.total()
        return Searched(trials=self.trials[tuner.shape], gain=0.0, default_us=None)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_every_shape_is_searched_within_its_budget_and_nothing_is_measured_twice(tmp_path, seed):
    runner, searches = Scattered(8, seed), Searches(tmp_path)
    searches.run(runner, SHAPES)
    assert len(runner.measured) == len(set(runner.measured))
    assert Counter(shape for shape, _ in runner.measured) == dict.fromkeys(SHAPES, TRIALS)
    assert searches.trials == dict.fromkeys(SHAPES, TRIALS)
    assert all(searches.done.values())
    assert len(searches.begun) == len(set(searches.begun))
    assert 1 < runner.most_open <= 8


def test_no_more_shapes_are_open_than_eight_however_many_configurations_are_wanted(tmp_path):
    runner = Scattered(200)
    Searches(tmp_path).run(runner, SHAPES)
    assert runner.most_open <= 8
    assert len(runner.measured) == len(set(runner.measured)) == TRIALS * len(SHAPES)


def test_a_shape_is_begun_after_its_neighbour_where_others_are_there(tmp_path):
    near, other = shrink(num_tokens=512), EXPAND
    runner = Scattered(8)
    Searches(tmp_path).run(runner, [shrink(), near, other])
    assert runner.opened == [shrink(), other, near]


def test_a_shape_is_begun_beside_its_neighbour_where_there_is_no_other(tmp_path):
    near = shrink(num_tokens=512)
    runner = Scattered(8)
    Searches(tmp_path).run(runner, [shrink(), near])
    assert runner.open_with[near] == {shrink()}


def test_a_runner_that_compiles_nothing_gets_the_shapes_one_by_one_in_order(tmp_path):
    runner, searches = Scattered(1), Searches(tmp_path)
    shapes = [SHAPES[number] for number in (3, 0, 6, 1)]
    searches.run(runner, shapes)
    assert [shape for shape, _ in groupby(runner.measured, key=lambda one: one[0])] == shapes
    assert list(searches.done) == searches.begun == runner.opened == shapes
    assert runner.most_open == 1


@pytest.mark.parametrize("lookahead", [1, 8])
def test_what_is_wrong_with_a_shape_that_is_made_ready_reaches_the_caller(tmp_path, lookahead):
    class Refusing(Session):
        def tuner(self, space: SearchSpace, *others: Any) -> ShapeTuner:
            if space.shape == SHAPES[2]:
                raise InputError("no such shape")
            return super().tuner(space, *others)

    with pytest.raises(InputError, match="no such shape"):
        Searches(tmp_path).run(Scattered(lookahead), SHAPES[:4], Refusing)


@pytest.mark.slow
def test_shapes_learn_from_those_beside_them(tmp_path):
    runner, searches = Scattered(8), Searches(tmp_path, sampler="adaptive")
    searches.run(runner, SHAPES)
    assert searches.trials == dict.fromkeys(SHAPES, TRIALS)
    assert len(runner.measured) == len(set(runner.measured))


@pytest.mark.slow
def test_an_interrupted_pipeline_goes_on_and_measures_nothing_again(tmp_path):
    class Interrupted(Scattered):
        def measure(
            self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
        ) -> Measurement:
            if len(self.measured) == 30:
                raise KeyboardInterrupt
            return super().measure(shape, pending, stop)

    first, second = Interrupted(8), Scattered(8, seed=1)
    with pytest.raises(KeyboardInterrupt):
        Searches(tmp_path).run(first, SHAPES)
    searches = Searches(tmp_path)
    searches.run(second, SHAPES)
    both = first.measured + second.measured
    assert len(both) == len(set(both)) == TRIALS * len(SHAPES)
    assert searches.trials == dict.fromkeys(SHAPES, TRIALS)
