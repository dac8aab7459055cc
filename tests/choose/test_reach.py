"""How the trials of a MoE op are spread over block_m, and what comes of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from autotune.choose.finalists import FINALISTS_OF_BLOCK_M
from autotune.choose.reach import ENOUGH_TRIALS, REACH, in_reach, next_block_m
from autotune.launch.op import MOE_OPS, LoraOp
from autotune.measure import Outcome
from autotune.search import Budget
from tests.moe import moe_latency_us, moe_lines, moe_shape
from tests.search.cases import CountingRunner, opened, tuned, write_lines

DATABASE = "sqlite:///autotune.db"

MANY = ENOUGH_TRIALS + 5


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recording(tmp_path) -> Path:
    lines = [line for op in MOE_OPS for line in moe_lines(moe_shape(op).as_dict())]
    return write_lines(tmp_path / "moe.jsonl.gz", lines)


@pytest.fixture
def runner(recording) -> CountingRunner:
    return CountingRunner(recording)


# ------------------------------------------------------------------ whose turn it is


def test_the_block_m_with_the_fewest_trials_is_next():
    assert next_block_m({16, 32, 64}, {16: 3, 32: 1, 64: 2}, {}) == 32


def test_a_block_m_is_given_up_once_it_is_clearly_slower_after_enough_trials():
    tried, far = {16: MANY, 32: MANY - 1}, 10 * REACH + 0.1
    assert in_reach(tried, {16: 10.0, 32: far}) == {16}
    assert in_reach(tried, {16: 10.0, 32: far - 0.2}) == {16, 32}
    assert in_reach(tried | {32: ENOUGH_TRIALS - 1}, {16: 10.0, 32: far}) == {16, 32}


def test_a_block_m_at_which_nothing_runs_is_given_up_too():
    assert in_reach({16: MANY, 32: MANY}, {16: 10.0}) == {16}


def test_any_block_m_will_do_once_those_in_reach_are_used_up():
    assert next_block_m({32}, {16: MANY, 32: MANY}, {16: 10.0, 32: 99.0}) is None


# ------------------------------------------------------------------ whole searches


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random", "exhaustive"])
def test_every_block_m_in_reach_gets_the_same_share_of_trials(runner, sampler):
    tuned(runner, DATABASE, 80, sampler=sampler, shape=moe_shape(LoraOp.W13_SHRINK))

    counts = Counter(config.block_m for config in runner.measured)
    assert set(counts.values()) == {20}
    assert len(set(runner.measured)) == 80


@pytest.mark.slow
def test_a_block_m_out_of_reach_gets_few_and_the_others_its_share(runner):
    tuned(runner, DATABASE, 80, shape=moe_shape(LoraOp.W13_EXPAND))

    counts = Counter(config.block_m for config in runner.measured)
    assert counts[128] <= ENOUGH_TRIALS + 1
    assert counts[32] > 80 / 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_every_block_m_in_reach_is_among_the_finalists(runner, seed):
    op = LoraOp.W2_SHRINK
    selection = tuned(runner, DATABASE, 100, shape=moe_shape(op), seed=seed)

    assert selection is not None
    (finalists,) = runner.compared
    assert Counter(c.block_m for c in finalists)[16] <= FINALISTS_OF_BLOCK_M
    for block_m in (16, 32, 64, 128):
        best = min(
            moe_latency_us(op, config.as_dict())
            for config in finalists
            if config.block_m == block_m
        )
        recorded = runner._recorded(moe_shape(op))
        assert best == min(
            moe_latency_us(op, c.as_dict()) for c in recorded if c.block_m == block_m
        )


def test_a_slow_block_m_keeps_configurations_that_were_timed_in_full(runner):
    shape = moe_shape(LoraOp.W13_EXPAND)
    with opened(runner, DATABASE, shape=shape) as tuner:
        while tuner.ask(Budget(trials=40)):
            tuner.measure()
        done = {c.block_m for c, m in tuner._loop.measured.items() if m.outcome is Outcome.OK}
    assert done == {16, 32, 64, 128}


@pytest.mark.slow
def test_the_whole_space_is_searched_where_the_budget_allows(runner):
    shape = moe_shape(LoraOp.W13_EXPAND)
    tuned(runner, DATABASE, 1_000, shape=shape)
    assert set(runner.measured) == set(runner.space(shape, {}).configs)


@pytest.mark.slow
def test_an_interrupted_search_goes_on_alike(recording):
    shape = moe_shape(LoraOp.W2_EXPAND)
    whole = CountingRunner(recording)
    uninterrupted = tuned(whole, "sqlite:///whole.db", 60, shape=shape)

    first = CountingRunner(recording, interrupted_after=31)
    with pytest.raises(KeyboardInterrupt):
        tuned(first, DATABASE, 60, shape=shape)
    second = CountingRunner(recording)
    assert tuned(second, DATABASE, 60, shape=shape) == uninterrupted
    assert first.measured + second.measured == whole.measured


def test_a_moe_selection_stands_where_nothing_was_measured_since(runner):
    shape = moe_shape(LoraOp.W2_EXPAND)
    first = tuned(runner, DATABASE, 40, shape=shape)
    assert tuned(runner, DATABASE, 40, shape=shape) == first
    assert len(runner.compared) == 1
