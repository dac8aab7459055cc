"""The search of one shape in memory: what it waits for, and what it gives up."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Measurement, Outcome, StopRule, never_stop
from autotune.measure.racing import SlowerThan
from autotune.search import Budget
from autotune.search.loop import SearchLoop
from autotune.search.samplers.transfer import Neighbour
from autotune.testing.landscape import Landscape, configs, shrink
from tests.moe import moe_shape

ENOUGH = Budget(trials=100, least_gain=0.2, fewest=16)


class Slow(Landscape):
    """Has one configuration of a shape last, as one that is compiled for long.

    Attributes:
        slow: That configuration: the first that is asked for and takes 1.3 times the least.
    """

    def __init__(self) -> None:
        super().__init__(stride=61, lookahead=4)
        self.slow: KernelConfig | None = None
        self.least_us = min(self.truth_us(shrink(), each) for each in configs()[::61])

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        for config in pending[1:]:
            if self.truth_us(shape, config) > 1.3 * self.least_us:
                self.slow = self.slow or config
        ready = [config for config in pending if config != self.slow]
        assert ready, "the search waits for the slow one alone"
        return super().measure(shape, ready, stop)


def informed(runner: Landscape) -> SearchLoop:
    """A search that knows the same kernel at another batch size, measured whole."""
    quick = Landscape(stride=61)
    other = shrink(num_tokens=512)
    known = tuple(
        quick.measure(other, [config], never_stop) for config in quick.space(other, {}).configs
    )
    space = runner.space(shrink(), {})
    return SearchLoop(runner, space, sampler="adaptive", seed=0, finished=[Neighbour(other, known)])


def test_a_shape_that_is_done_does_not_wait_for_what_is_compiled_for_long():
    runner = Slow()
    loop = informed(runner)
    while loop.ask(ENOUGH):
        loop.measure()
    assert runner.slow is not None
    assert runner.slow not in loop.measured
    assert len(loop.measured) >= 0.75 * ENOUGH.fewest
    assert not loop.pending


def test_what_was_given_up_may_be_tried_again():
    loop = informed(Slow())
    while loop.ask(ENOUGH):
        loop.measure()
    loop._runner = Landscape(stride=61)
    while loop.ask(Budget(trials=1_000)):
        loop.measure()
    assert set(loop.measured) == set(loop.space.configs)


def test_what_was_given_up_while_it_was_measured_counts():
    loop = informed(Slow())
    made = None
    while loop.ask(ENOUGH):
        if made is not None:
            loop.finish(made)
        made = loop.attempt().made_by(loop._runner) if loop.pending else None
    assert made is not None
    assert made.measurement.config not in loop.pending
    tried, left = len(loop.measured), len(loop._untried)
    assert loop.finish(made) == made.measurement
    assert loop.measured[made.measurement.config] == made.measurement
    assert (len(loop.measured), len(loop._untried)) == (tried + 1, left - 1)


def test_the_default_is_waited_for():
    runner = Slow()
    loop = informed(runner)
    runner.slow = loop.space.default
    with pytest.raises(AssertionError, match="waits for the slow one alone"):
        while loop.ask(ENOUGH):
            loop.measure()
    assert loop.pending == [loop.space.default]


class Sending(Landscape):
    """Asks the StopRule, and beside it what another process would get of it.

    Attributes:
        answers: What the rule that was sent has said.
    """

    def __init__(self) -> None:
        super().__init__(stride=61, lookahead=5)
        self.answers: list[bool] = []

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        space = super().kernel_space(shape, axes)
        if not shape.op.is_moe:
            return space
        listed = [replace(each, group_size_m=1, num_ctas=None) for each in space.configs]
        return SearchSpace(shape, listed, default=listed[0])

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        sent = pickle.loads(pickle.dumps(stop))  # noqa: S301 - our own
        assert isinstance(sent, SlowerThan)

        def both(config: KernelConfig, samples_us: Sequence[float]) -> bool:
            said = stop(config, samples_us)
            self.answers.append(sent(config, samples_us))
            assert self.answers[-1] is said
            return said

        return super().measure(shape, pending, both)


@pytest.mark.parametrize("shape", [shrink(), moe_shape(LoraOp.W13_EXPAND)])
def test_a_stop_rule_says_the_same_in_another_process(shape):
    runner = Sending()
    loop = SearchLoop(runner, runner.kernel_space(shape, {}), sampler="random", seed=3)
    while loop.ask(Budget(trials=40)):
        loop.measure()
    assert {*runner.answers} == {True, False}
    assert loop.outcomes[Outcome.TOO_SLOW.value] == runner.answers.count(True)
