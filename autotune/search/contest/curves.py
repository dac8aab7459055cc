"""How near each search came to the recorded best, trial by trial, and a summary by sampler."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autotune.errors import RecordingError
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Outcome
from autotune.measure.replay import ReplayRunner
from autotune.search.contest.replayed import Replayed, in_full

#: The numbers of trials after which a summary gives the regret, and the regrets to which it counts
#: the trials.
MARKS = (20, 50, 100, 200)
NEARNESS = (0.05, 0.02, 0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One search of one recorded shape.

    Attributes:
        sampler: The sampler's name.
        environment: Where the shape was recorded: the GPU, and whose kernels.
        shape: The shape that was searched.
        transfer: Whether the search learned from the shapes before it.
        shipped: Whether the search learned from the recordings that come with autotune.
        seed: The seed of the search.
        regret: After each trial, how much slower the best so far is than the recorded best; 0.01 is
            1 %, infinity where nothing has worked yet.
        expected_random: The mean regret of random search after each trial.
        sampler_s: Seconds spent in the sampler, over the whole search.
        has_failed: Whether the sampler broke down; its search then has the default only.
    """

    sampler: str
    environment: str
    shape: KernelShape
    seed: int
    regret: tuple[float, ...]
    expected_random: tuple[float, ...]
    sampler_s: float
    has_failed: bool = False
    transfer: bool = False
    shipped: bool = False

    @property
    def name(self) -> str:
        """The sampler's name, with what it learned from."""
        return _name(self.sampler, transfer=self.transfer, shipped=self.shipped)

    def after(self, trials: int) -> float:
        """The regret after this many trials, or at the end of a shorter search."""
        return self.regret[min(trials, len(self.regret)) - 1]

    def trials_to(self, nearness: float) -> float:
        """The first trial with a regret of at most ``nearness``; infinity where there is none."""
        return next((n for n, it in enumerate(self.regret, start=1) if it <= nearness), math.inf)

    @property
    def score(self) -> float:
        """1 if the best is found at once, 0 if as good as random search on average, below if worse.

        It compares the areas under the curves, after Kernel Tuner's methodology (Willemsen and
        others, 2024). Regrets are capped at 1. The first trial, always the default, does not count.
        """
        ours, theirs = (
            math.fsum(min(it, 1.0) for it in curve[1:])
            for curve in (self.regret, self.expected_random)
        )
        return 1.0 - ours / theirs if theirs > 0 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All searches by one sampler.

    Attributes:
        sampler: The sampler's name.
        transfer: Whether its searches learned from the shapes before.
        shipped: Whether its searches learned from the recordings that come with autotune.
        searches: How many searches there were.
        failed: In how many searches the sampler broke down.
        regret: For each number of trials the median and the worst regret over shapes, each shape
            with its median over seeds.
        trials_to: For each nearness the median and the mean number of trials over searches. A
            search that never got there counts as one trial more than it had.
        score: The mean score over searches.
        sampler_ms: Milliseconds in the sampler per trial, mean over searches.
        trials: The number of trials of a search, mean over searches.
        at_end: The regret at the end of a search, median and worst over shapes.
    """

    sampler: str
    transfer: bool
    shipped: bool
    searches: int
    failed: int
    regret: dict[int, tuple[float, float]]
    trials_to: dict[float, tuple[float, float]]
    score: float
    sampler_ms: float
    trials: float
    at_end: tuple[float, float]

    @property
    def name(self) -> str:
        """The sampler's name, with what it learned from."""
        return _name(self.sampler, transfer=self.transfer, shipped=self.shipped)

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON-ready values."""
        return asdict(self)


def by_sampler(curves: Iterable[Curve]) -> dict[str, list[Curve]]:
    """The curves of each sampler, by its name and what it learned from."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.name, []).append(curve)
    return groups


def summaries(curves: Iterable[Curve]) -> list[Summary]:
    """One summary for each sampler and what it learned from."""
    return [_summary(those) for those in by_sampler(curves).values()]


def _name(sampler: str, *, transfer: bool, shipped: bool) -> str:
    known = {"transfer": transfer, "shipped": shipped}
    return ", ".join([sampler, *[name for name, knows in known.items() if knows][:1]])


def _summary(curves: Sequence[Curve]) -> Summary:
    trials = max(len(curve.regret) for curve in curves)
    marks = [mark for mark in MARKS if mark <= trials] or [trials]
    return Summary(
        sampler=curves[0].sampler,
        transfer=curves[0].transfer,
        shipped=curves[0].shipped,
        searches=len(curves),
        failed=sum(curve.has_failed for curve in curves),
        regret={mark: _over_shapes(curves, mark) for mark in marks},
        trials_to={nearness: _trials_to(curves, nearness) for nearness in NEARNESS},
        score=statistics.fmean(curve.score for curve in curves),
        sampler_ms=1e3 * statistics.fmean(c.sampler_s / len(c.regret) for c in curves),
        trials=statistics.fmean(len(c.regret) for c in curves),
        at_end=_over_shapes(curves, trials),
    )


def _over_shapes(curves: Iterable[Curve], mark: int) -> tuple[float, float]:
    """The median and the worst over shapes, each shape with its median over seeds."""
    medians = [statistics.median(c.after(mark) for c in those) for those in by_shape(curves)]
    return statistics.median(medians), max(medians)


def by_shape(curves: Iterable[Curve]) -> list[list[Curve]]:
    """The curves of each recorded shape."""
    found: dict[tuple[str, KernelShape], list[Curve]] = {}
    for curve in curves:
        found.setdefault((curve.environment, curve.shape), []).append(curve)
    return list(found.values())


def _trials_to(curves: Sequence[Curve], nearness: float) -> tuple[float, float]:
    counts = [min(curve.trials_to(nearness), len(curve.regret) + 1) for curve in curves]
    return statistics.median(counts), statistics.fmean(counts)


# --------------------------------------------------------------------------- one curve


def curve_of(runner: ReplayRunner, replayed: Replayed, sampler: str, seed: int) -> Curve:
    """The curve of a search.

    Raises:
        RecordingError: Nothing works in the recording of the shape.
    """
    space, measurements = replayed.space, replayed.measurements
    recorded = {c: _latency_us(one) for c, one in in_full(runner, space).items()}
    best_us = min(recorded.values())
    if math.isinf(best_us):
        raise RecordingError(f"nothing works in the recording of {space.shape.label}")
    so_far = np.minimum.accumulate([_latency_us(each) for each in measurements])
    others = [us / best_us - 1.0 for c, us in recorded.items() if c != space.default]
    expected = _expected_random(recorded[space.default] / best_us - 1.0, others, len(so_far))
    return Curve(
        sampler=sampler,
        environment=f"{runner.environment.gpu}/{runner.environment.kernels}",
        shape=space.shape,
        seed=seed,
        regret=tuple((so_far / best_us - 1.0).tolist()),
        expected_random=expected,
        sampler_s=replayed.sampler_s,
        has_failed=replayed.has_failed,
    )


def _latency_us(measurement: Measurement) -> float:
    """The latency of a configuration that was timed in full; infinity for any other outcome."""
    return measurement.latency_us if measurement.outcome is Outcome.OK else math.inf


def _expected_random(default: float, others: Sequence[float], trials: int) -> tuple[float, ...]:
    """Mean regret of random search after each trial: the default, then others without repeats.

    Regrets are capped at 1. The best of n drawn from N is the i-th best of all with the probability
    that the i-th is drawn and none better is: C(N - i, n - 1) / C(N, n), with i from 1.

    Args:
        default: Regret of the first trial.
        others: Regrets of the other configurations.
        trials: The number of trials.
    """
    regrets = np.sort(np.minimum([default, *others], 1.0)[1:])
    capped = np.minimum(regrets, min(default, 1.0))
    means = [min(default, 1.0)]
    count = len(capped)
    for drawn in range(1, trials):
        missed, mean = 1.0, 0.0
        for i, regret in enumerate(capped):
            share = drawn / (count - i)
            mean += missed * share * regret
            missed *= 1.0 - share
            if missed <= 1e-12:
                break
        means.append(float(mean))
    return tuple(means)
