from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Measurement, Outcome
from autotune.search import Budget
from autotune.search.contest.replayed import search
from autotune.search.samplers import transfer
from autotune.search.samplers.features import features
from autotune.search.samplers.surrogate import Floats
from autotune.search.samplers.transfer import (
    Neighbour,
    belief,
    distance,
    in_order,
    instructive,
    nearest,
)
from autotune.testing.landscape import Landscape, configs, shrink

EXPAND = KernelShape.from_mapping(
    {"op": "expand", "num_tokens": 16, "hidden_size": 4096, "rank": 64, "max_loras": 8}
)


def tuned(runner: Landscape, shape: KernelShape, trials: int = 80) -> Neighbour:
    replayed = search(runner, shape, sampler="adaptive", seed=0, budget=Budget(trials=trials))
    return Neighbour(shape, replayed.measurements)


def believed(space: SearchSpace, neighbours: Sequence[Neighbour]) -> Floats | None:
    return belief(space.shape, features(space.shape, space.listing.columns), neighbours)


def test_distance_grows_with_every_size_and_is_infinite_between_kinds():
    assert distance(shrink(), shrink()) == 0
    assert distance(shrink(), shrink(num_tokens=512)) == 1
    assert distance(shrink(), shrink(num_tokens=512, num_slices=2)) == 2
    assert math.isinf(distance(shrink(), EXPAND))


def test_every_shape_comes_after_one_that_is_near_it():
    shapes = [shrink(num_tokens=m) for m in (1024, 16, 512, 32, 128, 64, 256)] + [EXPAND]
    ordered = in_order(shapes)
    assert sorted(ordered, key=str) == sorted(shapes, key=str)
    for place, shape in enumerate(ordered[1:], start=1):
        if shape is not EXPAND:
            near = [distance(shape, before) for before in ordered[:place]]
            assert min(near) <= 2 or all(map(math.isinf, near))
    assert in_order([]) == []


def test_of_a_large_space_the_most_promising_are_believed_as_in_a_small_one(monkeypatch):
    runner = Landscape(stride=5)
    space = runner.space(shrink(), {})
    neighbours = [tuned(runner, shrink(num_tokens=m)) for m in (512, 1024)]
    whole = believed(space, neighbours)
    monkeypatch.setattr(transfer, "_MOST_BELIEVED", 200)
    monkeypatch.setattr(transfer, "_ROUGH", 50)
    part = believed(space, neighbours)
    assert whole is not None
    assert part is not None
    alike = np.isclose(part, whole, atol=1e-5)
    assert 200 <= alike.sum() < len(whole)
    assert alike[np.argsort(whole)[:10]].all()


def test_the_nearest_shapes_come_first_and_shapes_without_timings_are_skipped():
    runner = Landscape(stride=61)
    finished = [tuned(runner, shrink(num_tokens=m), 20) for m in (1024, 512, 2048, 4096)]
    broken = [
        Measurement(shape=shrink(num_tokens=128), config=each.config, outcome=Outcome.INVALID)
        for each in finished[0].measurements
    ]
    finished.append(Neighbour(shrink(num_tokens=128), broken))
    near = nearest(shrink(), finished)
    assert [each.shape.num_tokens for each in near] == [512, 1024, 2048, 4096]


def test_neighbours_are_listened_to_until_their_measurements_are_enough():
    few = tuned(Landscape(stride=61), shrink(num_tokens=512), 20)
    many = tuned(Landscape(), shrink(num_tokens=512), 80)
    each = len(few.timed)
    assert each <= 20
    assert len(nearest(shrink(), [few] * 99)) == math.ceil(720 / each)
    assert len(many.timed) > 60
    assert len(nearest(shrink(), [many] * 99)) == 12


def test_a_search_learns_from_the_fastest_and_from_a_sample_of_the_others():
    timed = {config: 10.0 + place for place, config in enumerate(configs()[:900])}
    learned = instructive(timed)
    places = [int(us - 10) for us in learned.values()]
    assert places[:41] == list(range(41))
    assert places == sorted(places)
    assert len(places) <= 60
    assert places[-1] > 850
    few = dict(list(timed.items())[:50])
    assert instructive(few) == few


def test_a_belief_ranks_a_space_like_the_neighbour_it_comes_from():
    runner = Landscape(noise=0)
    shape = shrink()
    space = runner.space(shape, {})
    expected = believed(space, [tuned(runner, shrink(num_tokens=512))])
    assert expected is not None
    truth = np.array([runner.truth_us(shape, config) for config in space.configs])
    assert np.median(truth[np.argsort(expected)[:10]]) < np.quantile(truth, 0.05)
    assert believed(space, []) is None


def test_of_two_neighbours_the_nearer_one_counts_for_more():
    shape = shrink()
    true, false = Landscape(noise=0), Landscape(noise=0, is_reversed=True)
    space = true.space(shape, {})
    truth = np.array([true.truth_us(shape, config) for config in space.configs])
    right = tuned(true, shrink(num_tokens=512))
    wrong = tuned(false, shrink(num_tokens=512, num_slices=4))
    expected = believed(space, [right, wrong])
    assert expected is not None
    assert np.median(truth[np.argsort(expected)[:10]]) < np.quantile(truth, 0.1)


def regrets(finished: list[Neighbour], trials: int) -> list[float]:
    runner, shape = Landscape(), shrink()
    return [
        runner.regret(
            shape,
            search(
                runner,
                shape,
                sampler="adaptive",
                seed=seed,
                budget=Budget(trials=trials),
                finished=finished,
            ).measurements,
        )
        for seed in range(5)
    ]


@pytest.mark.slow
def test_with_a_good_neighbour_few_trials_do():
    neighbour = tuned(Landscape(), shrink(num_tokens=512))
    assert np.median(regrets([neighbour], 12)) < 0.5 * np.median(regrets([], 12))


@pytest.mark.slow
def test_neighbours_that_mislead_are_outvoted():
    liars = [tuned(Landscape(is_reversed=True), shrink(num_tokens=m)) for m in (512, 128, 1024)]
    assert np.median(regrets(liars, 60)) <= np.median(regrets([], 60)) + 0.03
