"""What every sampler promises: each configuration once, and the same choices for the same seed."""

from __future__ import annotations

from abc import ABC, abstractmethod

import optuna

from autotune.launch.config import KernelConfig
from autotune.launch.space import SearchSpace
from autotune.search.budget import Budget
from autotune.search.loop import SearchLoop
from autotune.search.samplers._base import UntriedSampler
from autotune.search.samplers.encoding import Positions
from autotune.search.samplers.untried import Untried
from autotune.testing.landscape import Landscape, shrink

#: Of a space of 23 configurations, enough for every sampler to leave its start-up behind.
_TRIALS = 14


class SamplerSuite(ABC):
    """The tests of a sampler. A subclass makes it."""

    @abstractmethod
    def make_sampler(
        self, space: SearchSpace, untried: Untried, positions: Positions, *, seed: str
    ) -> UntriedSampler:
        """The sampler of one search.

        Args:
            space: What is searched.
            untried: What is left of the space.
            positions: The encoding of trial parameters.
            seed: Any text; the same text must make the same choices.
        """

    def loop(self, *, seed: int = 0, lookahead: int = 1, stride: int = 179) -> SearchLoop:
        """A search of a small made-up space with the sampler."""
        runner = Landscape(stride=stride, lookahead=lookahead)
        space = runner.space(shrink(), {})
        return SearchLoop(runner, space, sampler=self._make, seed=seed)

    def choices(self, *, trials: int = _TRIALS, seed: int = 0) -> list[KernelConfig]:
        """The configurations that a search measures, in order."""
        loop = self.loop(seed=seed)
        _search(loop, trials)
        return list(loop.measured)

    def test_a_space_is_finished_without_a_configuration_twice(self) -> None:
        """A search of more trials than there are configurations measures each of them once."""
        loop = self.loop()
        measured = _search(loop, 1_000)
        assert len(measured) == len(loop.space.configs)
        assert set(measured) == set(loop.space.configs)

    def test_with_several_under_way_no_configuration_comes_twice(self) -> None:
        """A configuration that is handed out counts as tried before it is measured."""
        loop = self.loop(lookahead=4, stride=257)
        measured = _search(loop, 1_000)
        assert len(measured) == len(set(measured)) == len(loop.space.configs)

    def test_the_first_trial_is_the_default(self) -> None:
        """Everything is compared with vLLM's default, so it is measured first."""
        assert self.choices(trials=1) == [self.loop().space.default]

    def test_the_same_seed_makes_the_same_choices(self) -> None:
        """Two searches with one seed measure the same configurations in the same order."""
        assert self.choices(seed=7) == self.choices(seed=7)

    def test_an_interrupted_search_goes_on_with_the_same_choices(self) -> None:
        """A search that takes over the first half of another makes the second half of it."""
        whole = self.loop()
        _search(whole, _TRIALS)
        again = self.loop()
        for measurement in list(whole.measured.values())[: _TRIALS // 2]:
            again.take_over(measurement)
        _search(again, _TRIALS)
        assert list(again.measured) == list(whole.measured)

    def test_a_choice_is_one_of_those_that_it_is_given(self) -> None:
        """A MoE op is searched at one ``block_m`` at a time: ``untried`` is narrowed to it."""
        space = Landscape(stride=179).space(shrink(), {})
        for block_m in space.axes["block_m"]:
            positions = Positions(space)
            untried = Untried(space, positions)
            untried.look_among(block_m)
            sampler = self.make_sampler(space, untried, positions, seed="0")
            trial = optuna.create_study(sampler=sampler).ask(positions.distributions)
            assert positions.config(trial.params).block_m == block_m

    def _make(
        self,
        space: SearchSpace,
        untried: Untried,
        positions: Positions,
        *,
        seed: str,
        neighbours: object = (),
    ) -> UntriedSampler:
        return self.make_sampler(space, untried, positions, seed=seed)


def _search(loop: SearchLoop, trials: int) -> list[KernelConfig]:
    budget = Budget(trials=trials)
    measured = []
    while loop.ask(budget):
        measured.append(loop.measure().config)
    return measured
