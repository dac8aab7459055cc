"""Configurations as trial parameters, and the set of those not tried yet."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure.replay import ReplayRunner
from autotune.search.samplers.encoding import Positions, value_distributions
from autotune.search.samplers.untried import Untried
from tests.recordings import EXPAND, SHRINK, write_recording


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> ReplayRunner:
    return ReplayRunner([write_recording(tmp_path_factory.mktemp("r") / "r.jsonl.gz")])


def some(*values: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.sampled_from(values), min_size=1, unique=True)


#: Axes that leave something of the recorded spaces.
AXES = st.fixed_dictionaries(
    {},
    optional={
        "block_m": some(16, 32, 64),
        "block_n": some(16, 32, 64),
        "block_k": some(32, 64, 128),
        "num_warps": some(2, 4, 8),
        "num_stages": some(2, 3),
    },
)
SHAPES = st.sampled_from([KernelShape.from_mapping(SHRINK), KernelShape.from_mapping(EXPAND)])


def space_of(runner: ReplayRunner, **axes: tuple[int, ...]) -> SearchSpace:
    return runner.space(KernelShape.from_mapping(SHRINK), axes)


# ------------------------------------------------------------------ encoding


@given(shape=SHAPES, axes=AXES)
def test_every_configuration_of_a_space_comes_back_from_its_positions(runner, shape, axes):
    space = runner.space(shape, axes)
    positions = Positions(space)
    for config in space.configs:
        params = positions.params(config)
        assert set(params) == set(positions.distributions)
        assert all(positions.distributions[name]._contains(params[name]) for name in params)
        assert positions.config(params) == config


@given(shape=SHAPES, axes=AXES)
def test_an_axis_of_one_value_is_no_parameter(runner, shape, axes):
    space = runner.space(shape, axes)
    several = {name for name, values in space.axes.items() if len(values) > 1}
    assert set(Positions(space).distributions) == several


def test_the_stored_distributions_take_every_value_and_are_the_same_for_all_spaces(runner):
    stored = value_distributions(LoraOp.SHRINK)
    for config in space_of(runner).configs:
        values = config.as_dict()
        assert tuple(stored) == tuple(values)
        assert all(stored[name]._contains(value) for name, value in values.items())


# ------------------------------------------------------------------ untried


@pytest.fixture
def space(runner) -> SearchSpace:
    return space_of(runner, block_m=(16, 32), block_n=(16,), num_stages=(3,))


@pytest.fixture
def untried(space) -> Untried:
    return Untried(space, Positions(space))


def test_taking_a_configuration_leaves_one_less_and_taking_it_again_changes_nothing(untried, space):
    assert len(untried) == len(space.configs)
    untried.take(space.configs[2])
    untried.take(space.configs[2])
    assert (len(untried), untried.taken) == (len(space.configs) - 1, 1)


def test_the_first_left_follows_the_order_of_the_space(untried, space):
    untried.take(space.configs[1])
    order = []
    while len(untried):
        order.append(untried.first())
        untried.take(order[-1])
    assert order == [config for config in space.configs if config != space.configs[1]]


def test_any_of_those_left_are_all_drawn_and_no_other(untried, space):
    for config in space.configs[::2]:
        untried.take(config)
    rng = np.random.default_rng(0)
    drawn = Counter(untried.any(rng) for _ in range(400))
    assert set(drawn) == set(space.configs[1::2])


def test_the_nearest_to_an_untried_configuration_is_itself(untried, space):
    rng = np.random.default_rng(0)
    for config in space.configs:
        assert untried.nearest(Positions(space).params(config), rng) == config


def test_the_nearest_to_a_tried_configuration_is_the_fewest_axis_steps_away(untried, space):
    positions = Positions(space)
    start = positions.params(space.configs[0])

    def steps(config) -> int:
        return sum(
            abs(position - start[name]) for name, position in positions.params(config).items()
        )

    distances = []
    while len(untried):
        found = untried.nearest(start, np.random.default_rng(len(untried)))
        distances.append(steps(found))
        untried.take(found)
    assert distances == sorted(map(steps, space.configs))


def test_ties_for_the_nearest_are_broken_by_the_generator(untried, space):
    positions = Positions(space)
    middle = next(c for c in space.configs if (c.block_k, c.num_warps) == (64, 4))
    start = positions.params(middle)
    untried.take(middle)
    found = {untried.nearest(start, np.random.default_rng(seed)) for seed in range(60)}
    assert len(found) > 1
