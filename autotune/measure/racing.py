"""Timing in rounds, and when to end a configuration early. Pure functions on samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

#: Samples in one round: the median of five ignores two spikes.
ROUND_SAMPLES = 5

#: Rounds of a configuration that is not cut short.
ROUNDS = 3

#: A round's median this many times the best latency is plainly slow. Latencies of one
#: configuration spread by 1 %, 2 % at 4 µs (H100), so a tenth is five times the spread.
PLAINLY_SLOW = 1.1


def is_plainly_slow(median_us: float, best_us: float) -> bool:
    """Whether a configuration with this median cannot be the best one."""
    return median_us > best_us * PLAINLY_SLOW


def race(
    take: Callable[[int], Sequence[float]], stop: Callable[[Sequence[float]], bool]
) -> tuple[tuple[float, ...], bool]:
    """Take samples round by round until all rounds are done or the rule says stop.

    Args:
        take: Takes that many further samples, microseconds; fewer mean that there are no more.
        stop: Asked after every round but the last, with all samples so far.

    Returns:
        All samples, and whether they were cut short.
    """
    samples: list[float] = []
    for round_number in range(1, ROUNDS + 1):
        new = take(ROUND_SAMPLES)
        samples.extend(new)
        if len(new) < ROUND_SAMPLES:
            break
        if round_number < ROUNDS and stop(samples):
            return tuple(samples), True
    return tuple(samples), False


def chunks(samples_us: Sequence[float]) -> Callable[[int], Sequence[float]]:
    """A ``take`` for ``race`` that deals out samples taken earlier."""
    left = iter(samples_us)

    def take(count: int) -> Sequence[float]:
        return list(islice(left, count))

    return take
