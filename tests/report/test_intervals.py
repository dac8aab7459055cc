"""How precisely a median is known."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from autotune.report.intervals import MedianInterval

SAMPLES = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=60)


@given(SAMPLES)
def test_the_interval_holds_the_median_and_lies_within_the_samples(samples):
    interval = MedianInterval.of(samples)
    assert min(samples) <= interval.low <= interval.median <= interval.high <= max(samples)


@given(SAMPLES, st.randoms())
def test_the_order_of_the_samples_does_not_matter(samples, shuffler):
    shuffled = samples.copy()
    shuffler.shuffle(shuffled)
    assert MedianInterval.of(shuffled) == MedianInterval.of(samples)


def test_the_interval_of_fewer_than_eight_samples_is_their_range():
    assert MedianInterval.of([5.0, 1.0, 3.0]) == MedianInterval(3.0, 1.0, 5.0)
    assert MedianInterval.of([float(n) for n in range(8)]) == MedianInterval(3.5, 1.0, 6.0)


def test_the_interval_holds_the_true_median_in_about_95_of_100_cases():
    draw = random.Random(0)  # noqa: S311 - the same draws every time
    held = 0
    for _ in range(2_000):
        interval = MedianInterval.of([draw.lognormvariate(0, 1) for _ in range(25)])
        held += interval.low <= 1 <= interval.high
    assert 0.93 < held / 2_000 < 0.98
