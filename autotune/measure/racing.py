"""Timing in rounds, and when to end a configuration early. Pure functions on samples.

A configuration's latency is estimated by the median of its samples. That figure has two errors.
First, the whole run is a little fast or slow (``run_spread``), which more samples of the same run
cannot mend. Second, the samples scatter, which more samples do mend. ``figure_spread`` is both
together. A configuration is dropped once both no longer explain why it is slower than the best.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from autotune.launch.config import KernelConfig

#: Samples of the first round; most configurations get no more. The median of three is not moved by
#: one spike. If one sample in 100 were a spike, one configuration in 3,000 would have two of them.
#: (In the shipped recording one sample in 20,000 is more than 20 % high.)
ROUND_SAMPLES = 3

#: Rounds of a configuration that is not cut short. Each round doubles the samples, and so halves
#: the variance of their median. The rule is asked only after 3, 6 and 12 samples of 24.
ROUNDS = 4

#: Samples of a configuration that is timed in full.
FULL_SAMPLES = ROUND_SAMPLES * 2 ** (ROUNDS - 1)

#: Relative spread (standard deviation) of one configuration's median from run to run, for long
#: kernels, and a spread in microseconds that matters for short ones. Together 1 % for long kernels
#: and 2 % at 4 µs, as measured on an H100.
_RUN_SPREAD = 0.01
_RUN_SPREAD_US = 0.07

#: Relative spread of samples within a run. In the shipped recording it is 0.2 % for the median
#: configuration, at most 0.5 % for nine of ten, and at most 1.3 % for 99 of 100. (H100, 9,994
#: configurations of 15 samples; the first of every five is left out, since the way of timing had
#: made it too high.)
_SAMPLE_SPREAD = 0.005

#: Spread of a median of normal samples, in units of the spread of their mean: sqrt(pi / 2).
_MEDIAN_FACTOR = 1.2533

#: By how many spreads the best figure so far may be too low, being the lowest of many noisy ones.
#: If 100 configurations were equally fast, the lowest figure would lie 2.5 standard deviations
#: below the truth (expected minimum of 100 standard normals).
_LUCK = 2.5

#: By how many spreads the figure of the true best may be too high; in 0.6 % of runs it is more.
_MISFORTUNE = 2.5


#: Reason of the outcome ``too_slow``.
TOO_SLOW_REASON = "slower than the best so far beyond the noise"


def run_spread(latency_us: float) -> float:
    """Relative standard deviation of a configuration's latency from run to run.

    Args:
        latency_us: Latency, microseconds per launch.

    Returns:
        0.01 for long kernels, 0.02 at 4 µs. More samples do not make it smaller.
    """
    return math.hypot(_RUN_SPREAD, _RUN_SPREAD_US / latency_us)


def figure_spread(latency_us: float, samples: int) -> float:
    """Relative standard deviation of the median of one run's samples.

    Args:
        latency_us: Latency, microseconds per launch.
        samples: How many samples the run has.
    """
    return math.hypot(run_spread(latency_us), _MEDIAN_FACTOR * _SAMPLE_SPREAD / math.sqrt(samples))


def is_told_apart(median_us: float, samples: int, *, best_us: float) -> bool:
    """Whether a configuration is slower than the best one beyond what the noise explains.

    The noise is that of a configuration as fast as the best, since such a configuration must not be
    dropped. So the threshold depends only on the best figure and the number of samples. After the
    first round it is 5 % above the best for long kernels, and 10 % at 4 µs. On the shipped
    recording's shapes (tests/measure/test_racing.py) a random search drops the true best in fewer
    than 1 % of searches.

    Args:
        median_us: Median of the samples so far, microseconds per launch.
        samples: How many samples there are so far.
        best_us: The lowest median of a configuration that was timed in full, microseconds per
            launch. Taken to be of ``FULL_SAMPLES``; for a recording with fewer the threshold is
            up to 2 % of itself too narrow.
    """
    luck = _LUCK * figure_spread(best_us, FULL_SAMPLES)
    misfortune = _MISFORTUNE * figure_spread(best_us, samples)
    return median_us > best_us * (1 + luck + misfortune)


@dataclass(frozen=True, slots=True)
class SlowerThan:
    """The StopRule of a search at one moment, which can be sent to another process.

    Attributes:
        best_us: For each configuration under way the lowest latency that it is compared with,
            microseconds per launch. One that is not there is timed in full.
    """

    best_us: Mapping[KernelConfig, float]

    def __call__(self, config: KernelConfig, samples_us: Sequence[float]) -> bool:
        """Whether a configuration is slower beyond the noise; see ``is_told_apart``."""
        best_us = self.best_us.get(config)
        if best_us is None:
            return False
        return is_told_apart(statistics.median(samples_us), len(samples_us), best_us=best_us)


def race(
    take: Callable[[int], Sequence[float]], stop: Callable[[Sequence[float]], bool]
) -> tuple[tuple[float, ...], bool]:
    """Take samples round by round until all rounds are done or ``stop`` is true.

    The first round has ``ROUND_SAMPLES``; every further round doubles the samples.

    Args:
        take: Takes a number of further samples, microseconds; fewer if there are no more.
        stop: Called after every round but the last, with all samples so far.

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
    """A ``take`` for ``race`` that hands out samples taken earlier, in their order."""
    left = iter(samples_us)

    def take(count: int) -> Sequence[float]:
        return list(islice(left, count))

    return take
