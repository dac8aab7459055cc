"""The tables of one shape."""

from __future__ import annotations

from autotune.report.compared import compared_rows, explained
from tests.report.examples import HOSTILE, configs, shape, shape_of


def test_parameters_that_were_changed_are_marked(odd_device):
    rows = {row.name: row for row in compared_rows(shape_of(odd_device, f"shrink {HOSTILE}", 16))}
    assert rows["block_k"].differs
    assert not rows["split_k"].differs
    assert rows["share of the roofline"].tuned.endswith("%")
    assert not rows["µs per launch"].differs
    assert (rows["registers"].tuned, rows["spills"].tuned) == ("40", "–")


def test_reasons_are_counted(odd_device):
    (why,) = explained(shape_of(odd_device, "expand o, down", 64))
    assert (why.outcome, why.count) == ("launch failed", 4)
    assert why.reasons[0][1] == len(configs(shape(), 4))
