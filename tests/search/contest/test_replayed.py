"""A contest searches a recorded shape exactly as a run does."""

from __future__ import annotations

import pytest

from autotune.launch.op import MOE_OPS
from autotune.search import Budget
from autotune.search.contest.replayed import search
from tests.moe import moe_lines, moe_shape
from tests.recordings import SHRINK, write_recording
from tests.search.cases import SHAPE, CountingRunner, tuned, write_lines

TRIALS = 25


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["adaptive", "tpe", "random"])
@pytest.mark.parametrize("op", MOE_OPS)
def test_a_moe_shape_is_searched_in_a_contest_as_in_a_run(tmp_path, op, sampler):
    shape = moe_shape(op)
    runner = CountingRunner(write_lines(tmp_path / "r.jsonl.gz", moe_lines(shape.as_dict())))

    tuned(runner, f"sqlite:///{tmp_path}/own.db", TRIALS, sampler=sampler, seed=3, shape=shape)
    found = search(runner, shape, sampler=sampler, seed=3, budget=Budget(trials=TRIALS))

    assert len(found.measurements) == TRIALS
    assert [one.config for one in found.measurements] == runner.measured[:TRIALS]
    # A run looks at every block_m that is in reach, not only at the one that is best alone.
    assert len({one.config.block_m for one in found.measurements}) > 1


def test_a_dense_shape_is_searched_in_a_contest_as_in_a_run(tmp_path):
    runner = CountingRunner(write_recording(tmp_path / "r.jsonl.gz", SHRINK))

    tuned(runner, f"sqlite:///{tmp_path}/own.db", TRIALS, sampler="adaptive", seed=3)
    found = search(runner, SHAPE, sampler="adaptive", seed=3, budget=Budget(trials=TRIALS))

    assert [one.config for one in found.measurements] == runner.measured[:TRIALS]


def test_with_more_under_way_any_of_them_is_answered_next_and_each_once(tmp_path):
    runner = CountingRunner(write_recording(tmp_path / "r.jsonl.gz", SHRINK))
    ordered, shuffled = (
        search(
            runner, SHAPE, sampler="exhaustive", seed=3, budget=Budget(trials=TRIALS), lookahead=n
        )
        for n in (1, 8)
    )
    first, second = ([one.config for one in each.measurements] for each in (ordered, shuffled))
    assert first != second
    assert set(first) == set(second)
    assert len(second) == len(set(second)) == TRIALS
