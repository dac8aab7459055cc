from __future__ import annotations

import math

import numpy as np

from autotune.measure import Measurement, Outcome
from autotune.search.replayed import search
from autotune.search.transfer import Neighbour, beliefs, distance, in_order, nearest, winners
from autotune.shapes import KernelShape
from tests.search.landscape import Landscape, shrink

EXPAND = KernelShape.from_mapping(
    {"op": "expand", "num_tokens": 16, "hidden_size": 4096, "rank": 64, "max_loras": 8}
)


def tuned(runner: Landscape, shape: KernelShape, trials: int = 80) -> Neighbour:
    replayed = search(runner, shape, sampler="adaptive", seed=0, trials=trials)
    return Neighbour(shape, replayed.measurements)


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


def test_the_nearest_three_are_asked_and_none_that_timed_nothing():
    runner = Landscape(stride=61)
    finished = [tuned(runner, shrink(num_tokens=m), 20) for m in (1024, 512, 2048, 4096)]
    broken = [
        Measurement(shape=shrink(num_tokens=128), config=each.config, outcome=Outcome.INVALID)
        for each in finished[0].measurements
    ]
    finished.append(Neighbour(shrink(num_tokens=128), broken))
    near = nearest(shrink(), finished)
    assert [each.shape.num_tokens for each in near] == [512, 1024, 2048]


def test_winners_are_the_neighbours_fastest():
    runner = Landscape()
    neighbour = tuned(runner, shrink(num_tokens=512))
    space = runner.space(shrink(), {})
    places = winners(space, [neighbour, neighbour])
    assert space.configs[places[0]] == next(iter(neighbour.timed))
    assert len(places) == len(set(places)) == 2


def test_a_belief_ranks_a_space_like_the_neighbour_it_comes_from():
    runner = Landscape(noise=0)
    shape = shrink()
    space = runner.space(shape, {})
    column = beliefs(space, [tuned(runner, shrink(num_tokens=512))])[:, 0]
    truth = np.array([runner.truth_us(shape, config) for config in space.configs])
    best = np.argsort(column)[:10]
    assert np.median(truth[best]) < np.quantile(truth, 0.05)
    assert beliefs(space, []).shape == (len(space.configs), 0)


def regrets(finished: list[Neighbour], trials: int) -> list[float]:
    runner, shape = Landscape(), shrink()
    return [
        runner.regret(
            shape,
            search(
                runner, shape, sampler="adaptive", seed=seed, trials=trials, finished=finished
            ).measurements,
        )
        for seed in range(5)
    ]


def test_with_a_good_neighbour_few_trials_do():
    neighbour = tuned(Landscape(), shrink(num_tokens=512))
    assert np.median(regrets([neighbour], 12)) < 0.5 * np.median(regrets([], 12))


def test_neighbours_that_mislead_are_outvoted():
    liars = [tuned(Landscape(is_reversed=True), shrink(num_tokens=m)) for m in (512, 128, 1024)]
    assert np.median(regrets(liars, 60)) <= np.median(regrets([], 60)) + 0.03
