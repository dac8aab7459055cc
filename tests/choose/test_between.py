"""Rows between the tuned ones: what they lose, which are added, and which are merged."""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.choose.between import CHEAP_LOSS, WORST_LOSS, refine
from autotune.choose.couple import couple
from autotune.choose.losses import Timings, unnoticed
from autotune.choose.selection import Selection
from autotune.launch.config import KernelConfig
from autotune.launch.op import MOE_OPS, LoraOp
from autotune.launch.shape import KernelShape
from autotune.measure import Comparison, EnoughRule, never_stop
from autotune.measure.replay import ReplayRunner
from autotune.measure.runners import replay_runner
from tests.moe import DEFAULT, moe_table
from tests.recordings import ENVIRONMENT

SHRINK = {"op": "shrink", "hidden_size": 4096, "rank": 16, "num_slices": 3, "max_loras": 8}
CONFIG = {"block_n": 16, "block_k": 64, "split_k": 8, "num_warps": 4, "num_stages": 2}
BLOCKS = (16, 32, 64, 128)


def write(path: Path, shapes: Iterable[dict[str, Any]], latency_us, default: int = 128) -> Path:
    """A recording of every ``block_m`` of these shapes, the default's marked."""
    with gzip.open(path, "wt") as file:
        header = {"schema": "autotune-recording/1", "environment": ENVIRONMENT}
        file.write(json.dumps(header) + "\n")
        for shape in shapes:
            is_moe = shape["op"].startswith("fused")
            for block_m in BLOCKS:
                us = latency_us(shape["num_tokens"], block_m)
                line = {
                    "shape": shape,
                    "config": (DEFAULT if is_moe else CONFIG) | {"block_m": block_m},
                    "outcome": "ok",
                    "samples_us": [round(us * (1 + 0.001 * (i % 3)), 4) for i in range(9)],
                }
                file.write(json.dumps(line | {"is_default": block_m == default}) + "\n")
    return path


def crossing(num_tokens: int, block_m: int) -> float:
    """The best ``block_m`` grows with the tokens, so that it changes between any two rows."""
    return 10 * (1 + 0.2 * abs(math.log2(block_m / 16) - math.log2(max(num_tokens, 12) / 12)))


def winners(runner: ReplayRunner, shapes: Iterable[KernelShape]) -> list[Selection]:
    """What an exhaustive search of these shapes chooses."""
    found = []
    for shape in shapes:
        space = runner.space(shape, {})
        samples = {
            config: measured.samples_us
            for config in space.configs
            if (measured := runner.measure(shape, [config], never_stop)).samples_us
        }
        outcomes = {"ok": len(samples)}
        found.append(Selection.of_samples(shape, space.default, samples, outcomes=outcomes))
    return found


def true_losses(
    runner: ReplayRunner, rows: Iterable[Selection], shapes: Iterable[KernelShape] = ()
) -> dict[int, float]:
    """The loss of the nearest row, against the best recorded, at every recorded batch size.

    Args:
        runner: Replays the recording.
        rows: The rows of one kernel.
        shapes: The kernel at every recorded batch size; every recorded shape if not given.
    """
    by_count = {one.shape.num_tokens: one.config for one in rows}
    losses = {}
    for shape in shapes or runner.shapes:
        nearest = min(sorted(by_count), key=lambda row: abs(row - shape.num_tokens))
        timed = {
            config: measured.latency_us
            for config in runner.space(shape, {}).configs
            if (measured := runner.measure(shape, [config], never_stop)).samples_us
        }
        losses[shape.num_tokens] = timed[by_count[nearest]] / min(timed.values()) - 1
    return losses


@pytest.fixture
def runner(tmp_path):
    """Every batch size that is captured, 1 to 128, of one shrink."""
    counts = (1, 2, 4, *range(8, 129, 8))
    shapes = [SHRINK | {"num_tokens": count} for count in counts]
    return ReplayRunner([write(tmp_path / "r.jsonl.gz", shapes, crossing)])


def refined(runner: ReplayRunner, tuned: Iterable[int], search=None, **more):
    rows = winners(runner, [s for s in runner.shapes if s.num_tokens in set(tuned)])
    counts = sorted({shape.num_tokens for shape in runner.shapes})
    return rows, refine(
        couple(rows),
        Timings(runner, more.pop("looked", unnoticed)),
        captured=more.pop(
            "captured", lambda kind: [replace(kind, num_tokens=count) for count in counts]
        ),
        search=search or (lambda shape: winners(runner, [shape])[0]),
        **more,
    )


# ------------------------------------------------------------------ adding


def test_rows_are_added_until_no_batch_size_loses_more_than_five_percent(runner):
    rows, after = refined(runner, [1, 16, 128])

    before_us, after_us = (true_losses(runner, each) for each in (rows, after.selections))
    assert max(before_us.values()) > 0.1
    assert max(after_us.values()) < max(before_us.values())
    assert after.worst_before > WORST_LOSS >= after.worst_after
    assert after.added
    assert {one.shape for one in rows} < {one.shape for one in after.selections}
    assert (after.looked_at, after.missing) == (len(runner.shapes), 0)


def test_looked_is_called_for_every_batch_size_that_is_timed(runner):
    looked: list[KernelShape] = []
    refined(runner, [1, 16, 128], looked=looked.append)
    assert set(looked) == set(runner.shapes)


def test_what_finalists_were_timed_for_is_not_timed_again(runner):
    looked: list[KernelShape] = []
    rows, after = refined(runner, [1, 16, 128])
    timings = Timings(runner, looked.append)
    timings.know(rows)
    captured = [shape.num_tokens for shape in runner.shapes]
    again = refine(
        couple(rows),
        timings,
        captured=lambda kind: [replace(kind, num_tokens=count) for count in captured],
        search=lambda shape: winners(runner, [shape])[0],
    )
    assert set(looked) == set(runner.shapes) - {one.shape for one in rows}
    assert again == after


class Expecting(ReplayRunner):
    """Notes what it is told to expect, and what it compares unexpectedly at first sight."""

    def __init__(self, recordings: Sequence[Path]) -> None:
        super().__init__(recordings)
        self.expected: set[tuple[KernelShape, KernelConfig]] = set()
        self.compared: set[KernelShape] = set()
        self.surprises: list[KernelShape] = []

    def expect(self, configs: Mapping[KernelShape, Sequence[KernelConfig]]) -> None:
        self.expected |= {(shape, each) for shape, those in configs.items() for each in those}

    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        if shape not in self.compared and not {(shape, one) for one in configs} <= self.expected:
            self.surprises.append(shape)
        self.compared.add(shape)
        return super().compare(shape, configs, enough)


def test_a_batch_size_is_expected_before_it_is_compared(tmp_path):
    shapes = [SHRINK | {"num_tokens": count} for count in (1, 2, 4, *range(8, 129, 8))]
    runner = Expecting([write(tmp_path / "r.jsonl.gz", shapes, crossing)])
    refined(runner, [1, 16, 128])
    assert runner.compared == set(runner.shapes)
    assert runner.surprises == []


def test_every_batch_size_has_its_loss_before_and_after(runner):
    rows, after = refined(runner, [1, 16, 128])

    assert [one.shape for one in after.between] == sorted(
        runner.shapes, key=lambda shape: shape.num_tokens
    )
    of = {one.shape: one for one in after.between}
    assert all(of[row.shape].before == of[row.shape].after == 0 for row in rows)
    assert all(of[shape].after <= of[shape].before for shape in after.added)
    assert max(one.before for one in after.between) == after.worst_before


def test_the_report_says_the_worst_loss_before_and_after(runner):
    _, after = refined(runner, [1, 16, 128])

    (line,) = after.lines
    assert line.startswith(f"Worst loss over {len(runner.shapes)} shapes at captured batch sizes")
    assert f"rows added: {len(after.added)}, merged: 0" in line
    assert f"{after.worst_before:.1%} before, {after.worst_after:.1%} after" in line


def test_an_added_row_has_the_winner_of_a_neighbour_with_its_evidence(runner):
    rows, after = refined(runner, [16, 128], search=lambda _: None)

    of = {one.shape: one for one in after.selections}
    for shape in after.added:
        one = of[shape]
        assert one.config in {each.config for each in rows} | {one.default}
        assert one.samples_us.keys() >= {one.config, one.default}
        assert (one.trials, one.outcomes) == (0, {})  # a neighbour's winner: nothing was searched


def test_where_neither_neighbour_beats_the_default_a_short_search_fills_the_row(tmp_path):
    def lonely(num_tokens: int, block_m: int) -> float:
        # One tile is best at the ends, another in the middle, where the ends' is worse than the
        # default's, 128.
        best = {1: 16, 16: 32, 64: 16}[num_tokens]
        return 10 if block_m == best else (15 if block_m == 128 else 20)

    shapes = [SHRINK | {"num_tokens": count} for count in (1, 16, 64)]
    runner = ReplayRunner([write(tmp_path / "r.jsonl.gz", shapes, lonely)])
    searched = []

    def search(shape: KernelShape) -> Selection:
        searched.append(shape.num_tokens)
        return winners(runner, [shape])[0]

    _, after = refined(runner, [1, 64], search)

    assert searched == [16]
    (added,) = (one for one in after.selections if one.shape in after.added)
    assert added.config.block_m == 32
    assert (after.worst_before, after.worst_after) == (pytest.approx(1.0), 0.0)


def test_rows_that_lose_nothing_between_them_stay_as_they_are(tmp_path):
    shapes = [SHRINK | {"num_tokens": count} for count in (1, 8, 16)]
    flat = write(tmp_path / "r.jsonl.gz", shapes, lambda _, block_m: 10 + block_m / 16)

    _, after = refined(ReplayRunner([flat]), [1, 16])

    assert (after.added, after.worst_before, after.worst_after) == ((), 0.0, 0.0)


def test_batch_sizes_that_a_recording_does_not_hold_are_left_out_and_counted(runner):
    def captured(kind: KernelShape) -> list[KernelShape]:
        return [replace(kind, num_tokens=count) for count in (1, 8, 12, 16, 20)]

    _, after = refined(runner, [1, 16], captured=captured)

    assert (after.looked_at, after.without_row, after.missing) == (
        3,
        1,
        2,
    )  # 12 and 20 are not there
    assert re.match(r"Shapes .* that the recording does not hold, .*: 2\.", after.lines[1])


def test_where_nothing_between_the_rows_was_recorded_no_worst_loss_is_claimed(runner):
    def captured(kind: KernelShape) -> list[KernelShape]:
        return [replace(kind, num_tokens=count) for count in (1, 12, 16)]

    _, after = refined(runner, [1, 16], captured=captured)

    (line,) = after.lines
    assert re.match(r"Shapes .* that the recording does not hold, .*: 1\.", line)


def test_a_batch_size_is_timed_where_only_the_nearest_rows_winner_was_recorded_there(tmp_path):
    shapes = [SHRINK | {"num_tokens": count} for count in (1, 8, 64)]
    path = write(tmp_path / "r.jsonl.gz", shapes, lambda n, b: 10 if b == (16, 64)[n > 32] else 20)
    with gzip.open(path, "rt") as file:
        lines = [json.loads(text) for text in file]
    kept = [
        line
        for line in lines
        if not ("shape" in line and line["shape"]["num_tokens"] == 8)
        or line["config"]["block_m"] != 64
    ]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)

    _, after = refined(ReplayRunner([path]), [1, 64])

    assert (after.looked_at, after.missing, after.worst_before) == (3, 0, 0.0)


def test_on_an_h100s_recording_rows_between_are_added_and_lose_less():
    """An expand of one slice: rows at 1 and 1024 tokens, the other recorded sizes between."""
    runner = replay_runner(())
    shapes = [s for s in runner.shapes if (s.op, s.num_slices) == (LoraOp.EXPAND, 1)]
    rows = winners(runner, [shape for shape in shapes if shape.num_tokens in {1, 1024}])

    after = refine(
        rows,
        Timings(runner),
        captured=lambda kind: [replace(kind, num_tokens=count) for count in (1, 16, 128)],
        search=lambda shape: winners(runner, [shape])[0],
    )

    assert {shape.num_tokens for shape in after.added} == {16, 128}
    assert after.worst_before > 0.5
    assert after.worst_after <= WORST_LOSS
    before_us, after_us = (true_losses(runner, each, shapes) for each in (rows, after.selections))
    assert max(before_us.values()) > 0.5
    assert max(after_us.values()) <= WORST_LOSS


def test_a_configuration_that_does_not_run_at_a_batch_size_gets_a_row_there(tmp_path):
    shapes = [SHRINK | {"num_tokens": count} for count in (1, 8, 64)]
    path = write(tmp_path / "r.jsonl.gz", shapes, lambda n, b: 10 if b == (16, 64)[n > 32] else 20)
    with gzip.open(path, "rt") as file:
        lines = [json.loads(text) for text in file]
    for line in lines[1:]:
        if (line["shape"]["num_tokens"], line["config"]["block_m"]) == (8, 16):
            del line["samples_us"]
            line |= {"outcome": "launch_failed", "reason": "OutOfResources"}
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)

    _, after = refined(ReplayRunner([path]), [1, 64])

    assert math.isinf(after.worst_before)
    assert "does not run before, 0.0% after" in after.lines[0]
    assert [shape.num_tokens for shape in after.added] == [8]


# ------------------------------------------------------------------ merging


def test_rows_are_merged_where_that_costs_nothing(tmp_path):
    counts = (1, 2, 4, 8, 16, 32, 64)
    shapes = [SHRINK | {"num_tokens": count} for count in counts]
    step = write(tmp_path / "r.jsonl.gz", shapes, lambda n, b: 10 if b == (16, 64)[n > 16] else 20)

    rows, after = refined(ReplayRunner([step]), counts, rows_max=2)

    assert len(after.selections) == 2
    assert len(after.merged) == len(rows) - 2
    assert (after.worst_after, after.too_many) == (0.0, 0)
    # The nearest row is the right one at every batch size.
    assert max(true_losses(ReplayRunner([step]), after.selections).values()) < CHEAP_LOSS


def test_rows_stay_where_merging_them_would_cost_one_percent(runner):
    rows, after = refined(runner, [1, 16, 32, 64, 128], rows_max=1)

    assert 1 < len(after.selections) <= len(rows) + len(after.added)
    assert after.too_many == 1
    assert after.worst_after <= WORST_LOSS + CHEAP_LOSS
    assert "Layers that keep more rows than asked for: 1;" in after.lines[-1]


# ------------------------------------------------------------------ mixtures of experts


def test_the_four_ops_of_a_layer_get_a_row_together_with_one_block_m(tmp_path):
    counts = (1, 8, 16, 24, 32, 48, 64)
    shapes = [moe_table(op, num_tokens=count) for count in counts for op in MOE_OPS]
    runner = ReplayRunner([write(tmp_path / "r.jsonl.gz", shapes, crossing, default=64)])

    _, after = refined(runner, [1, 64])

    by_count: dict[int, list[Selection]] = {}
    for one in after.selections:
        by_count.setdefault(one.shape.num_tokens, []).append(one)
    assert after.added
    assert after.worst_after <= WORST_LOSS < after.worst_before
    for those in by_count.values():
        assert {one.shape.op for one in those} == set(MOE_OPS)
        assert len({one.config.block_m for one in those}) == 1
