"""A large space is searched among its most promising configurations, whatever is expected first."""

from __future__ import annotations

import numpy as np

from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.space import Grid, SearchSpace, complete_axes
from autotune.measure import never_stop
from autotune.search.samplers.chooser import Chooser
from autotune.search.samplers.picker import History
from autotune.search.samplers.transfer import Neighbour
from autotune.testing.landscape import Landscape, shrink
from tests.moe import DEFAULT, moe_shape

SHAPE, NEAR = shrink(), shrink(num_tokens=512)
RUNNER = Landscape(noise=0, stride=5)
SPACE = RUNNER.space(SHAPE, {})
TRUTHS = np.log([RUNNER.truth_us(SHAPE, config) for config in SPACE.configs])
RANKS = np.argsort(np.argsort(TRUTHS))
EVERY = np.arange(len(TRUTHS))


def neighbour(runner: Landscape) -> Neighbour:
    """What a search knows of a shape that is near."""
    configs = SPACE.configs[::4]
    return Neighbour(NEAR, [runner.measure(NEAR, [config], never_stop) for config in configs])


def history(rows: list[int]) -> History:
    logs = np.where(np.isfinite(TRUTHS[rows]), TRUTHS[rows], np.nan)
    return History(rows, logs, np.isnan(logs), np.ones(len(rows), dtype=bool))


def asked(chooser: Chooser, trials: int, among: np.ndarray = EVERY) -> list[int]:
    rows: list[int] = []
    for number in range(trials):
        free = np.setdiff1d(among, rows)
        rows.append(chooser.choose(history(rows), free, np.random.default_rng(number)))
    return rows


def test_what_is_found_in_a_part_is_as_good_as_what_is_found_in_all():
    whole, part = (Chooser(SPACE, [neighbour(RUNNER)], looked_at=n) for n in (len(EVERY), 60))
    best = [RANKS[asked(chooser, 20)].min() for chooser in (whole, part)]
    assert max(best) <= 3


def test_a_belief_that_misleads_is_left_at_the_second_look():
    misled = Landscape(noise=0, stride=5, is_reversed=True)
    chooser = Chooser(SPACE, [neighbour(misled)], looked_at=40)
    first = chooser._places
    rows = asked(chooser, 40)
    assert len(np.intersect1d(first, chooser._places)) < 40
    assert RANKS[rows[20:]].min() < RANKS[rows[:8]].min()


def test_nothing_is_chosen_twice_until_all_is_tried():
    rows = asked(Chooser(SPACE, [neighbour(RUNNER)], looked_at=25), 120)
    assert len(set(rows)) == 120


def test_only_what_is_free_is_chosen_though_it_is_not_what_is_looked_at():
    slowest = np.argsort(-np.nan_to_num(TRUTHS, posinf=99.0))[:30]
    rows = asked(Chooser(SPACE, [neighbour(RUNNER)], looked_at=25), 30, among=slowest)
    assert set(rows) == set(slowest.tolist())


def test_what_an_earlier_run_measured_counts_wherever_it_lies():
    chooser = Chooser(SPACE, [neighbour(RUNNER)], looked_at=25)
    outside = np.setdiff1d(EVERY, chooser._places)[:5].tolist()
    free = np.setdiff1d(EVERY, outside)
    assert chooser.choose(history(outside), free, np.random.default_rng(0)) in free
    assert chooser.expected_gain(history(outside), free) >= 0


def test_a_search_that_goes_on_looks_at_the_same():
    rows = asked(Chooser(SPACE, [neighbour(RUNNER)], looked_at=40), 13)
    again = Chooser(SPACE, [neighbour(RUNNER)], looked_at=40)
    free = np.setdiff1d(EVERY, rows[:12])
    assert again.choose(history(rows[:12]), free, np.random.default_rng(12)) == rows[12]


def test_without_neighbours_all_is_looked_at():
    assert len(Chooser(SPACE, looked_at=10)._places) == len(EVERY)


def test_every_block_m_of_a_mixture_is_looked_at():
    shape = moe_shape(LoraOp.W13_SHRINK)
    grid = Grid(shape=shape, axes=complete_axes(shape.op, {}))
    space = SearchSpace.of_grid(grid, default=KernelConfig.from_mapping(shape.op, DEFAULT))
    near = Neighbour(
        shape, [RUNNER.measure(shape, [one], never_stop) for one in space.configs[::50]]
    )
    looked_at = Chooser(space, [near], looked_at=200)._places
    found = {space.configs[place].block_m for place in looked_at}
    assert found == set(space.axes["block_m"])
