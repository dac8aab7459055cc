"""A whole search of a recorded shape, with the same loop as in a run."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import (
    Comparison,
    EnoughRule,
    Measurement,
    Runner,
    StopRule,
    never_stop,
)
from autotune.search.budget import Budget
from autotune.search.loop import SearchLoop
from autotune.search.samplers.transfer import Neighbour


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The result of a search.

    Attributes:
        space: The space that was searched.
        measurements: The measurements, in the order in which they came.
        sampler_s: Seconds spent on making the sampler and asking it.
        has_failed: Whether the sampler broke down, as only other tuners' searches may.
    """

    space: SearchSpace
    measurements: tuple[Measurement, ...]
    sampler_s: float
    has_failed: bool = False


def search(  # noqa: PLR0913 - a search has as many sides
    runner: Runner,
    shape: KernelShape,
    *,
    sampler: str,
    seed: int,
    budget: Budget,
    lookahead: int = 1,
    finished: Sequence[Neighbour] = (),
) -> Replayed:
    """Search one shape.

    Args:
        runner: Answers from recordings.
        shape: The shape.
        sampler: The sampler's name.
        seed: The same seed makes the same choices, and the same order of answers.
        budget: Says when the search ends.
        lookahead: How many configurations are under way; any of them is answered next.
        finished: Shapes that were searched before, to learn from.
    """
    out_of_order = _OutOfOrder(runner, lookahead=lookahead, seed=f"{seed}/{shape.label}")
    space = out_of_order.space(shape, {})
    loop = SearchLoop(out_of_order, space, sampler=sampler, seed=seed, finished=finished)
    while loop.ask(budget):
        loop.measure()
    return Replayed(
        space=space, measurements=tuple(loop.measured.values()), sampler_s=loop.sampler_s
    )


def in_full(runner: Runner, space: SearchSpace) -> dict[KernelConfig, Measurement]:
    """Every configuration of a recorded space, with all of its samples."""
    return {config: runner.measure(space.shape, [config], never_stop) for config in space.configs}


class _OutOfOrder(Runner):
    """Answers any of the pending configurations, as a pool of compilers does."""

    def __init__(self, inner: Runner, *, lookahead: int, seed: str) -> None:
        self._inner = inner
        self._order = random.Random(seed)  # noqa: S311 - no secret
        self.environment, self.lookahead = inner.environment, lookahead

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """The space of the inner runner."""
        return self._inner.kernel_space(shape, axes)

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        """Measure one of the pending configurations, drawn at random."""
        return self._inner.measure(shape, [self._order.choice(pending)], stop)

    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        """Compare as the inner runner does."""
        return self._inner.compare(shape, configs, enough)
