from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.measure import Outcome
from autotune.measure.racing import (
    FULL_SAMPLES,
    ROUND_SAMPLES,
    ROUNDS,
    figure_spread,
    is_told_apart,
    race,
    run_spread,
    take_from,
)
from autotune.measure.recording import read_recording
from autotune.measure.replay import shipped_recording

pytestmark = pytest.mark.slow

Latencies = npt.NDArray[np.float64]

latencies_us = st.floats(1, 1e5)
counts = st.integers(1, 100)


def never(_so_far: Sequence[float]) -> bool:
    return False


def asked_at() -> list[int]:
    """The numbers of samples after which the rule is asked."""
    asked: list[int] = []

    def stop(so_far: Sequence[float]) -> bool:
        asked.append(len(so_far))
        return False

    race(take_from([1.0] * 100), stop)
    return asked


# ------------------------------------------------------------------- rounds


def test_a_configuration_that_is_never_stopped_gets_every_round():
    taken, cut = race(take_from([1.0] * 100), never)
    assert (len(taken), cut) == (FULL_SAMPLES, False)


def test_a_full_timing_has_enough_samples_for_its_median_and_no_more():
    assert 20 <= FULL_SAMPLES <= 30


def test_a_configuration_stopped_after_its_first_round_keeps_that_round():
    taken, cut = race(take_from([1.0] * 100), lambda _so_far: True)
    assert (len(taken), cut) == (ROUND_SAMPLES, True)


def test_every_round_doubles_the_samples_and_after_the_last_the_rule_is_not_asked():
    assert asked_at() == [ROUND_SAMPLES * 2**round_ for round_ in range(ROUNDS - 1)]


@pytest.mark.parametrize("recorded", [0, 1, 5, 15, FULL_SAMPLES, 40])
def test_a_race_ends_when_the_samples_of_a_recording_do(recorded):
    taken, cut = race(take_from([1.0] * recorded), never)
    assert (len(taken), cut) == (min(recorded, FULL_SAMPLES), False)


@given(st.lists(st.floats(1, 1000), max_size=40))
def test_samples_taken_earlier_are_handed_out_once_and_in_order(earlier):
    taken, cut = race(take_from(earlier), never)
    assert list(taken) == earlier[:FULL_SAMPLES]
    assert not cut


# ------------------------------------------------------------------- noise


def test_the_spread_from_run_to_run_is_what_was_measured():
    assert run_spread(1000.0) == pytest.approx(0.01, rel=0.01)
    assert run_spread(4.0) == pytest.approx(0.02, rel=0.01)


@given(latencies_us, counts)
def test_more_samples_narrow_the_spread_but_never_below_that_from_run_to_run(latency, samples):
    assert figure_spread(latency, samples) > figure_spread(latency, samples + 1)
    assert figure_spread(latency, samples) > run_spread(latency)


@given(latencies_us, counts, st.floats(0, 1))
def test_a_configuration_at_least_as_fast_as_the_best_is_never_told_apart(best, samples, share):
    assert not is_told_apart(best * share, samples, best_us=best)


@given(latencies_us, latencies_us, counts, st.floats(1, 10))
def test_what_is_told_apart_stays_so_when_it_is_slower(best, median, samples, factor):
    told_apart = is_told_apart(median, samples, best_us=best)
    assert is_told_apart(median * factor, samples, best_us=best) >= told_apart


@given(latencies_us, st.floats(1, 1.2), counts, counts)
def test_more_samples_never_make_the_threshold_wider(best, ratio, samples, more):
    told_apart = is_told_apart(best * ratio, samples, best_us=best)
    assert is_told_apart(best * ratio, samples + more, best_us=best) >= told_apart


@pytest.mark.parametrize(
    ("best", "close", "slow"), [(4.0, 4.39, 4.42), (10.0, 10.59, 10.65), (1000.0, 1050.0, 1055.0)]
)
def test_the_threshold_after_one_round_is_wider_for_short_kernels(best, close, slow):
    assert not is_told_apart(close, ROUND_SAMPLES, best_us=best)
    assert is_told_apart(slow, ROUND_SAMPLES, best_us=best)


# ------------------------------------------------------------------- searches
#
# The true latency of a configuration is its recorded median. The noise is synthetic: a run is off
# by run_spread, its samples scatter by SAMPLE_NOISE, and one sample in a hundred is a spike.

SEARCHES = 400
SAMPLE_NOISE = 0.005
SPIKE_SHARE, SPIKE = 0.01, 1.5

#: Latency in units of the best up to which a configuration counts as good as the best.
AS_GOOD = 1.001

#: Shapes of the shipped recording: (op, tokens, slices, hidden size). Their best latencies are from
#: 3 to 103 µs; they have 26 to 1,000 configurations. The shapes with the most configurations near
#: the best are among them.
SHAPES = [
    ("expand", 1, 1, 4096),
    ("expand", 16, 1, 4096),
    ("expand", 1024, 3, 4096),
    ("expand", 1024, 2, 14336),
    ("shrink", 1, 2, 4096),
    ("shrink", 16, 1, 4096),
    ("shrink", 128, 3, 4096),
    ("shrink", 1024, 1, 14336),
]


@dataclass
class Searches:
    """What many searches of one shape did.

    Attributes:
        dropped: Share of searches in which any configuration as good as the best was cut short.
        lost: Share of searches in which all of these configurations were cut short.
        taken: Samples taken in all searches together.
        full: Samples that timing everything in full would take.
    """

    dropped: float
    lost: float
    taken: int
    full: int


def simulate(truth_us: Latencies, noise: float = 1.0, seed: int = 0) -> Searches:
    """Time all configurations in random order, many searches side by side."""
    rng = np.random.default_rng(seed)
    searches = np.arange(SEARCHES)
    order = rng.permuted(np.tile(np.arange(len(truth_us)), (SEARCHES, 1)), axis=1)
    cut = np.zeros((SEARCHES, len(truth_us)), dtype=bool)
    best_us = np.full(SEARCHES, np.inf)
    spread = np.array([run_spread(each) for each in truth_us.tolist()])
    taken = 0
    for config in order.T:  # (searches,)
        samples_us = noisy_samples(
            truth_us[config], noise * spread[config], noise, rng
        )  # (searches, FULL_SAMPLES)
        stopped_at = race_side_by_side(samples_us, best_us)
        taken += int(stopped_at.sum())
        in_full = stopped_at == FULL_SAMPLES
        cut[searches, config] = ~in_full
        best_us[in_full] = np.minimum(best_us, np.median(samples_us, axis=1))[in_full]
    good = cut[:, truth_us <= truth_us.min() * AS_GOOD]
    return Searches(
        dropped=float(good.any(axis=1).mean()),
        lost=float(good.all(axis=1).mean()),
        taken=taken,
        full=cut.size * FULL_SAMPLES,
    )


def noisy_samples(
    truth_us: Latencies, spread: Latencies, noise: float, rng: np.random.Generator
) -> Latencies:
    run_noise = spread * rng.standard_normal(SEARCHES)
    run_us = truth_us * (1 + run_noise)
    size = (SEARCHES, FULL_SAMPLES)
    spikes = np.where(rng.random(size) < SPIKE_SHARE, SPIKE, 1.0)
    samples_us: Latencies
    samples_us = run_us[:, None] * (1 + noise * SAMPLE_NOISE * rng.standard_normal(size)) * spikes
    return samples_us


def race_side_by_side(samples_us: Latencies, best_us: Latencies) -> npt.NDArray[np.int_]:
    """How many samples each search takes; a search without a best so far takes all."""
    stopped_at = np.full(SEARCHES, FULL_SAMPLES)
    going = np.flatnonzero(np.isfinite(best_us))
    for samples in asked_at():
        median_us = np.median(samples_us[going, :samples], axis=1)
        pairs = zip(median_us.tolist(), best_us[going].tolist(), strict=True)
        apart = np.array([is_told_apart(one, samples, best_us=best) for one, best in pairs], bool)
        stopped_at[going[apart]] = samples
        going = going[~apart]
    return stopped_at


@cache
def recorded_latencies_us() -> dict[tuple[str, int, int, int], Latencies]:
    return {
        (shape.op.value, shape.num_tokens, shape.num_slices, shape.hidden_size): np.array(
            [m.latency_us for m in by_config.values() if m.outcome is Outcome.OK]
        )
        for shape, by_config in read_recording(shipped_recording()).shapes.items()
    }


@cache
def searches_of(shape: tuple[str, int, int, int], noise: float) -> Searches:
    return simulate(recorded_latencies_us()[shape], noise)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_true_best_is_dropped_in_fewer_than_one_search_of_a_hundred(shape):
    assert searches_of(shape, 1.0).dropped < 0.01


def test_racing_takes_at_most_a_third_of_the_samples_of_timing_everything_in_full():
    found = [searches_of(shape, 1.0) for shape in SHAPES]
    assert sum(f.taken for f in found) < sum(f.full for f in found) / 3


def test_twice_the_noise_seldom_loses_the_best_and_takes_no_more_samples():
    found = [searches_of(shape, 2.0) for shape in SHAPES]
    assert sum(f.taken for f in found) < sum(f.full for f in found) / 3
    assert float(np.mean([f.lost for f in found])) < 0.05


def test_on_a_plateau_a_configuration_as_good_as_the_best_always_stays():
    found = simulate(np.full(100, 10.0))
    assert found.lost == 0
