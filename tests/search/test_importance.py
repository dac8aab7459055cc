from __future__ import annotations

import pytest

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Outcome
from autotune.search.importance import LEAST_MEASURED, importances
from tests.recordings import SHRINK

SHAPE = KernelShape.from_mapping(SHRINK)


def measured(latency_us, outcome=Outcome.OK) -> list[Measurement]:
    """A grid of 36 configurations; the latency is a function of block_k and num_warps."""
    return [
        Measurement(
            shape=SHAPE,
            config=KernelConfig.from_mapping(
                SHAPE.op,
                {"block_m": 16, "block_n": 16, "block_k": k, "split_k": split}
                | {"num_warps": warps, "num_stages": 2},
            ),
            outcome=outcome,
            samples_us=(latency_us(k, warps),) * 3,
        )
        for k in (32, 64, 128)
        for warps in (2, 4, 8)
        for split in (1, 2, 4, 8)
    ]


def test_what_decides_comes_first_and_what_does_nothing_last():
    shares = importances(measured(lambda k, warps: k + warps / 10))
    assert set(shares) == {"block_k", "num_warps", "split_k"}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["split_k"] < 0.05 < min(shares["block_k"], shares["num_warps"])


def test_what_was_cut_short_counts_and_what_failed_does_not():
    slow = measured(lambda k, warps: k + warps / 10, Outcome.TOO_SLOW)
    failed = [
        Measurement(shape=SHAPE, config=one.config, outcome=Outcome.LAUNCH_FAILED, reason="no")
        for one in slow
    ]
    assert importances(slow)
    assert importances(failed) == {}
    assert importances([*slow, *failed]) == importances(slow)


def test_too_few_measurements_say_nothing():
    few = measured(lambda k, warps: k * warps)[: LEAST_MEASURED - 1]
    assert importances(few) == {}
    assert importances([]) == {}


def test_a_parameter_with_one_value_has_no_share():
    alike = [one for one in measured(lambda k, warps: warps) if one.config.block_k == 64]
    assert set(importances(alike)) == {"num_warps", "split_k"}


def test_where_all_are_as_fast_as_each_other_nothing_matters():
    assert importances(measured(lambda k, warps: 5.0)) == {}
