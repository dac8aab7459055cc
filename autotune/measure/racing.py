"""Timing in rounds, and when to end a configuration early. Pure functions on samples.

A configuration's figure is the median of its samples. It is off for two reasons: the whole run is a
little fast or slow (``run_spread``), which more samples of that run cannot mend, and the samples
scatter (``figure_spread``), which they can. A configuration is dropped once both together no longer
explain why it is slower than the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice

#: Samples of the first round, all that most configurations get. The median of three bears one
#: spike; were one sample in 100 a spike, two of three would be in one configuration of 3,000. (In
#: the shipped recording one sample in 20,000 is more than 20 % high.)
ROUND_SAMPLES = 3

#: Rounds of a configuration that is not cut short. Each doubles its samples, so that each halves
#: their part of the variance, and few questions are asked: after 3, 6 and 12 samples of 24.
ROUNDS = 4

#: Samples of a configuration that is timed in full.
FULL_SAMPLES = ROUND_SAMPLES * 2 ** (ROUNDS - 1)

#: Relative spread (standard deviation) of one configuration's median from run to run where kernels
#: are long, and what is added at short ones, in microseconds: 1 % in general and 2 % at 4 µs, as
#: measured on an H100.
_RUN_SPREAD = 0.01
_RUN_SPREAD_US = 0.07

#: Relative spread of samples within a run. The shipped recording (H100, 9,994 configurations of 15
#: samples, the first of every five left out: the timer had made those too high) has 0.2 % in the
#: middle, 0.5 % or less for nine configurations of ten, 1.3 % or less for 99 of 100.
_SAMPLE_SPREAD = 0.005

#: Spread of a median over that of a mean of as many normal samples: sqrt(pi / 2).
_MEDIAN_FACTOR = 1.2533

#: Spreads by which the best so far may be too low. It is the lowest of many noisy figures, and the
#: lowest of 100 equal ones lies 2.5 standard deviations below their truth (expected minimum of 100
#: standard normals).
_LUCK = 2.5

#: Spreads by which the true best may be too high when its turn comes: more in 0.6 % of runs.
_MISFORTUNE = 2.5


#: What a configuration that was dropped is told.
TOO_SLOW_REASON = "slower than the best so far beyond the noise"


def run_spread(latency_us: float) -> float:
    """Relative standard deviation of a configuration's latency from run to run.

    Args:
        latency_us: Latency, microseconds per launch.

    Returns:
        0.01 for long kernels, 0.02 at 4 µs. No number of samples makes it smaller.
    """
    return math.hypot(_RUN_SPREAD, _RUN_SPREAD_US / latency_us)


def figure_spread(latency_us: float, samples: int) -> float:
    """Relative standard deviation of the median of so many samples of one run.

    Args:
        latency_us: Latency, microseconds per launch.
        samples: How many samples the median is of.
    """
    return math.hypot(run_spread(latency_us), _MEDIAN_FACTOR * _SAMPLE_SPREAD / math.sqrt(samples))


def is_told_apart(median_us: float, samples: int, *, best_us: float) -> bool:
    """Whether a configuration is slower than the best one beyond what the noise explains.

    The noise taken is that of a configuration as fast as the best, for that is the one that must
    not be dropped; so the threshold depends on nothing but the best figure and the samples. On the
    shipped recording's shapes (tests/measure/test_racing.py) the true best of a random search is
    dropped in fewer than 1 % of searches. It is 5 % above the best for long kernels, 10 % at 4 µs.

    Args:
        median_us: Median of the samples so far, microseconds per launch.
        samples: How many these are.
        best_us: The lowest median of a configuration that was timed in full, microseconds per
            launch. A recording that has fewer than ``FULL_SAMPLES`` narrows the threshold by 2 %
            of itself, no more.
    """
    luck = _LUCK * figure_spread(best_us, FULL_SAMPLES)
    misfortune = _MISFORTUNE * figure_spread(best_us, samples)
    return median_us > best_us * (1 + luck + misfortune)


def race(
    take: Callable[[int], Sequence[float]], stop: Callable[[Sequence[float]], bool]
) -> tuple[tuple[float, ...], bool]:
    """Take samples round by round until all rounds are done or the rule says stop.

    The first round has ``ROUND_SAMPLES``, every further one as many as all before it.

    Args:
        take: Takes that many further samples, microseconds; fewer mean that there are no more.
        stop: Asked after every round but the last, with all samples so far.

    Returns:
        All samples, and whether they were cut short.
    """
    samples: list[float] = []
    for round_number in range(1, ROUNDS + 1):
        wanted = len(samples) or ROUND_SAMPLES
        new = take(wanted)
        samples.extend(new)
        if len(new) < wanted:
            break
        if round_number < ROUNDS and stop(samples):
            return tuple(samples), True
    return tuple(samples), False


def take_from(samples_us: Sequence[float]) -> Callable[[int], Sequence[float]]:
    """A ``take`` for ``race`` that deals out samples taken earlier."""
    left = iter(samples_us)

    def take(count: int) -> Sequence[float]:
        return list(islice(left, count))

    return take
