"""Rows that keep a server from compiling while it serves, and what they cost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.choose.couple import couple
from autotune.choose.keep_warm import KeptWarm, keep_warm
from autotune.choose.layer_rows import MOST_LOSS
from autotune.choose.losses import Timings
from autotune.choose.selection import Selection
from autotune.choose.served import Distinct, served_lines
from autotune.launch.config import KernelConfig
from autotune.launch.op import MOE_OPS, LoraOp
from autotune.launch.shape import KernelShape
from autotune.launch.warmed import WarmedSizes
from autotune.measure.replay import ReplayRunner
from tests.choose.test_between import BLOCKS, CONFIG, SHRINK, winners, write
from tests.moe import moe_table

#: A server that captures up to 40 tokens, and whose largest step has 128.
CAPTURED = (1, 2, 4, 8, 16, 24, 32, 40)
SIZES = WarmedSizes((*CAPTURED, 128), (range(41, 129),))

#: The batch sizes that are recorded.
RECORDED = (*CAPTURED, 64, 96, 128)

Latency = Callable[[int, int], float]


def recorded(
    folder: Path, latency_us: Latency, tables: Sequence[dict[str, Any]] = (SHRINK,)
) -> ReplayRunner:
    shapes = [table | {"num_tokens": count} for table in tables for count in RECORDED]
    return ReplayRunner([write(folder / "r.jsonl.gz", shapes, latency_us)])


def kept(
    runner: ReplayRunner,
    rows: Sequence[int],
    sizes: WarmedSizes = SIZES,
    *,
    searched: Callable[[KernelShape], dict[KernelConfig, float]] = lambda _shape: {},
    **more: bool,
) -> tuple[list[Selection], KeptWarm]:
    tuned = couple(winners(runner, [s for s in runner.shapes if s.num_tokens in rows]))
    timings = Timings(runner, searched=searched)
    found = keep_warm(tuned, timings, sizes=lambda _kind: sizes, release="0.33.0", **more)
    return tuned, found


def searched_with(block_m: int, us: float) -> Callable[[KernelShape], dict[KernelConfig, float]]:
    """What a search found where one ``block_m`` took so long, and all others 10 µs."""

    def searched(_shape: KernelShape) -> dict[KernelConfig, float]:
        configs = (
            KernelConfig.from_mapping(LoraOp.SHRINK, CONFIG | {"block_m": m}) for m in BLOCKS
        )
        return {config: us if config.block_m == block_m else 10.0 for config in configs}

    return searched


def best_at(*, far_loss: float, near_loss: float = 0.01) -> Latency:
    """Latencies where large batches are best with 64 rows, and the largest with 128.

    Args:
        far_loss: What every other value loses.
        near_loss: What 64 and 128 rows lose in each other's place, beyond 16 tokens.
    """

    def latency_us(num_tokens: int, block_m: int) -> float:
        best = 16 if num_tokens <= 16 else 64 if num_tokens < 128 else 128
        if block_m == best:
            return 10.0
        is_near = num_tokens > 16 and block_m in (64, 128)
        return 10 * (1 + (near_loss if is_near else far_loss))

    return latency_us


def block_ms(found: KeptWarm) -> dict[int, int]:
    return {one.shape.num_tokens: one.config.block_m for one in found.selections}


def late_count(found: Sequence[Selection], runner: ReplayRunner, sizes: WarmedSizes = SIZES) -> int:
    line = served_lines(found, lambda _kind: sizes, runner.environment)[-1]
    return int(line.partition("serves: ")[2].split(",")[0].rstrip("."))


# ------------------------------------------------------------------ rows of the start


def test_every_batch_size_of_the_start_gets_a_row(tmp_path):
    runner = recorded(tmp_path, best_at(far_loss=0.5))
    _, found = kept(runner, [1, 16, 40, 64, 128])

    assert set(block_ms(found)) == {*CAPTURED, 64, 128}
    assert sorted(shape.num_tokens for shape in found.added) == [2, 4, 8, 24, 32]
    assert {one.shape.num_tokens for one in found.selections if not one.trials} == {2, 4, 8, 24, 32}


def test_a_row_of_the_start_takes_the_faster_neighbour_and_else_the_nearest(tmp_path):
    def latency_us(num_tokens: int, block_m: int) -> float:
        # 24 is as near to 16 as to 32, and vLLM takes 16. The one is a third slower there, the
        # others are equally fast but for the noise.
        if num_tokens == 24:
            return {16: 15, 64: 10.0}.get(block_m, 20)
        if num_tokens == 8:
            return {16: 10.05, 64: 10.0}.get(block_m, 20)
        return 10.0 if block_m == (16 if num_tokens < 32 else 64) else 20

    _, found = kept(recorded(tmp_path, latency_us), [1, 16, 32, 40, 128])
    assert (block_ms(found)[24], block_ms(found)[8]) == (64, 16)


def test_what_a_replay_does_not_hold_gets_no_row(tmp_path):
    runner = recorded(tmp_path, best_at(far_loss=0.5))
    sizes = WarmedSizes((*CAPTURED, 48, 128), SIZES.later)
    _, found = kept(runner, [1, 16, 40, 64, 128], sizes)
    assert 48 not in block_ms(found)


def test_no_row_is_added_where_rows_are_to_be_few(tmp_path):
    runner = recorded(tmp_path, best_at(far_loss=0.5))
    _, found = kept(runner, [1, 16, 40, 64, 128], add_rows=False)
    assert found.added == ()
    assert set(block_ms(found)) == {1, 16, 40, 64, 128}


# ------------------------------------------------------------------ exchanges


def test_a_later_row_takes_what_the_start_launches(tmp_path):
    runner = recorded(tmp_path, best_at(far_loss=0.5))
    tuned, found = kept(runner, [1, 16, 40, 64, 128])

    assert late_count(tuned, runner) > 0
    assert late_count(found.selections, runner) == 0
    # 128 rows are launched at 128 tokens only, a multiple of 16: the row takes 64 ones.
    assert block_ms(found)[128] == 64
    (row,) = (one for one in found.selections if one.exchanged)
    assert row.exchanged is not None
    assert row.exchanged.own == replace(row.config, block_m=128)
    assert row.exchanged.loss == pytest.approx(0.01)
    assert row.ratio is not None
    assert row.ratio.value == pytest.approx(1 / 1.01, rel=1e-6)
    assert found.exchanged == (row.shape,)


def test_a_row_that_would_lose_too_much_keeps_its_own_and_that_is_said(tmp_path):
    runner = recorded(tmp_path, best_at(far_loss=0.5, near_loss=MOST_LOSS + 0.005))
    _, found = kept(runner, [1, 16, 40, 64, 128])

    assert found.exchanged == ()
    assert late_count(found.selections, runner) == 1
    *_, line = served_lines(found.selections, lambda _kind: SIZES, runner.environment)
    assert "nothing that its start launches is within 3%: shrink m=97,k=4096,n=16" in line
    assert line.endswith("compile them beforehand with autotune warm.")


@pytest.mark.parametrize(
    ("block_m", "us", "taken"),
    [(64, 20.0, 128), (64, math.inf, 128), (64, 10.6, 64), (128, 20.0, 64)],
    ids=["slow", "never ran", "slow within the noise", "its own is slow"],
)
def test_what_a_search_saw_lose_by_far_is_not_tried(tmp_path, block_m, us, taken):
    runner = recorded(tmp_path, best_at(far_loss=0.5))
    searched = searched_with(block_m, us)
    _, found = kept(runner, [1, 16, 40, 64, 128], searched=searched)
    assert block_ms(found)[128] == taken


def test_a_row_of_the_start_takes_what_later_ones_need(tmp_path):
    def latency_us(num_tokens: int, block_m: int) -> float:
        # 128 rows are the best from 64 tokens on, by far, and at 40 tokens nearly the best.
        if num_tokens >= 64:
            return 10.0 if block_m == 128 else 20.0
        if num_tokens == 40:
            return {64: 10.0, 128: 10.2}.get(block_m, 20.0)
        return 10.0 if block_m == 64 else 20.0

    runner = recorded(tmp_path, latency_us)
    tuned, found = kept(runner, [1, 16, 40, 64, 128])

    # Steps of 64 to 128 tokens that are no multiple of 16 have no other way than 40 tokens.
    assert (late_count(tuned, runner), late_count(found.selections, runner)) == (1, 0)
    assert {n: m for n, m in block_ms(found).items() if n >= 32} == {
        32: 64,
        40: 128,
        64: 128,
        128: 128,
    }


def test_two_rows_take_together_what_is_best_for_neither(tmp_path):
    def latency_us(num_tokens: int, block_m: int) -> float:
        own = 16 if num_tokens <= 40 else 64
        return {own: 10.0, 32: 10.2}.get(block_m, 20.0)

    runner = recorded(tmp_path, latency_us)
    tuned, found = kept(runner, [1, 16, 40, 128])

    assert (late_count(tuned, runner), late_count(found.selections, runner)) == (1, 0)
    changed = {
        one.shape.num_tokens: one.config.block_m for one in found.selections if one.exchanged
    }
    assert changed == {40: 32, 128: 32}


def test_exchanges_never_leave_more_late_kernels_nor_lose_more_than_allowed(tmp_path):
    def latency_us(num_tokens: int, block_m: int) -> float:
        distance = abs(math.log2(block_m / 16) - math.log2(max(num_tokens, 12) / 12))
        return 10 * (1 + 0.02 * distance)

    runner = recorded(tmp_path, latency_us)
    tuned, found = kept(runner, [1, 8, 16, 40, 64, 96, 128])

    assert late_count(found.selections, runner) <= late_count(tuned, runner)
    losses = [one.exchanged.loss for one in found.selections if one.exchanged]
    assert losses
    assert max(losses) <= MOST_LOSS


def test_a_second_pass_over_own_choices_finds_the_same(tmp_path):
    runner = recorded(tmp_path, best_at(far_loss=0.5))
    tuned, found = kept(runner, [1, 16, 40, 64, 128])
    again = [one.own for one in found.selections if one.shape in {t.shape for t in tuned}]

    assert [one.config for one in again] == [one.config for one in tuned]
    second = keep_warm(again, Timings(runner), sizes=lambda _kind: SIZES, release="0.33.0")
    assert block_ms(second) == block_ms(found)


def test_a_moe_layer_changes_as_one_and_is_not_chosen_for_again(tmp_path):
    tables = [moe_table(op) for op in MOE_OPS]
    for table in tables:
        table.pop("num_tokens", None)

    def latency_us(num_tokens: int, block_m: int) -> float:
        # 64 rows are best at 64 and 96 tokens only, and 128 rows hardly slower.
        if num_tokens in (64, 96):
            return {64: 10.0, 128: 10.1}.get(block_m, 20.0)
        return 10.0 if block_m == (128 if num_tokens == 128 else 16) else 20.0

    runner = recorded(tmp_path, latency_us, tables)
    tuned, found = kept(runner, [1, 16, 40, 64, 128])

    assert late_count(tuned, runner) > late_count(found.selections, runner)
    later = [one for one in found.selections if one.shape.num_tokens == 64]
    assert {one.config.block_m for one in later} == {128}
    assert all(one.exchanged for one in later)
    assert [one.config for one in couple(later)] == [one.config for one in later]


def test_an_exchange_is_read_back(tmp_path):
    runner = recorded(tmp_path, best_at(far_loss=0.5))
    _, found = kept(runner, [1, 16, 40, 64, 128])
    for one in found.selections:
        assert Selection.from_json(json.dumps(one.as_dict())) == one


# ------------------------------------------------------------------ what is said


def test_distinct_configurations_are_counted_with_what_exchanges_cost(tmp_path):
    runner = recorded(tmp_path, best_at(far_loss=0.5))
    _, found = kept(runner, [1, 16, 40, 64, 128])
    assert Distinct.of(found.selections).line == (
        "Distinct configurations a kernel: 2, 2 in all for 10 rows; 1 row took one that the "
        "server launches at its start, at a loss of 1.0% at most."
    )
    assert Distinct.of([]).line == ""


@pytest.mark.parametrize("losses", [[-0.552], [0.0, -0.01], [0.0004]])
def test_rows_that_are_faster_for_an_exchange_lose_nothing(losses):
    line = Distinct({KernelShape.from_mapping(SHRINK | {"num_tokens": 1}): 2}, 10, losses).line
    assert line.endswith("that the server launches at its start, at no loss.")


def test_kernel_shapes_of_several_layers_share_what_is_launched(tmp_path):
    """A second layer's start launches what the first one needs later."""
    other = SHRINK | {"hidden_size": 8192}

    runner = recorded(tmp_path, lambda _n, block_m: 10 if block_m == 128 else 20, [SHRINK, other])
    rows = winners(runner, [s for s in runner.shapes if s.num_tokens in (16, 64)])
    sizes = {
        KernelShape.from_mapping(SHRINK | {"num_tokens": 1}): WarmedSizes((), SIZES.later),
        KernelShape.from_mapping(other | {"num_tokens": 1}): WarmedSizes((8, 16), ()),
    }
    (*_, line) = served_lines(rows, sizes.__getitem__, runner.environment)
    assert line == "Kernels that a server compiles while it serves: 0."
