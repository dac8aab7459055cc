"""From samples taken side by side to one configuration."""

import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autotune.choose.selection import Ratio, Selection, is_settled, select
from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from tests.export.examples import EXPAND_CONFIG, qkv_shrink, selection, selections

DEFAULT = KernelConfig.from_mapping(LoraOp.EXPAND, EXPAND_CONFIG | {"block_m": 64})
FAST = KernelConfig.from_mapping(LoraOp.EXPAND, EXPAND_CONFIG)
OTHER = KernelConfig.from_mapping(LoraOp.EXPAND, EXPAND_CONFIG | {"block_m": 32})


def noisy(latency_us: float, count: int, seed: int) -> list[float]:
    """Samples that scatter by 1 %, as one configuration's do from run to run."""
    return list(latency_us * np.exp(np.random.default_rng(seed).normal(0, 0.01, count)))


def test_the_interval_holds_the_ratio_and_narrows_with_more_samples():
    widths = []
    for count in (8, 32, 512):
        ratio = Ratio.of(noisy(20, count, seed=1), noisy(10, count, seed=2))
        assert ratio.low <= ratio.value <= ratio.high
        assert ratio.value == pytest.approx(2, rel=0.02)
        widths.append(ratio.high - ratio.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.01


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says():
    ratios = [
        Ratio.of(noisy(12, 30, seed=seed), noisy(10, 30, seed=1_000 + seed)) for seed in range(200)
    ]
    held = sum(ratio.low <= 1.2 <= ratio.high for ratio in ratios)
    assert held >= 180


def test_the_same_samples_give_the_same_interval():
    samples = noisy(20, 30, seed=1), noisy(10, 30, seed=2)
    assert Ratio.of(*samples) == Ratio.of(*samples)


def test_a_drift_that_both_share_does_not_widen_the_interval():
    drift = np.linspace(1, 3, 30)
    ratio = Ratio.of(list(20 * drift), list(10 * drift))
    assert [ratio.low, ratio.high] == pytest.approx([2, 2])


def test_the_fastest_wins_where_it_is_faster_beyond_the_noise():
    samples = {
        DEFAULT: noisy(12, 20, seed=1),
        FAST: noisy(10, 20, seed=2),
        OTHER: noisy(11, 20, seed=3),
    }
    config, ratio = select(DEFAULT, samples)

    assert config == FAST
    assert ratio == Ratio.of(samples[DEFAULT], samples[FAST])


def test_the_default_wins_where_the_fastest_is_within_the_noise():
    default_us = noisy(10, 8, seed=1)
    alike = [us * factor for us, factor in zip(default_us, [0.98, 1.01] * 4, strict=True)]

    assert select(DEFAULT, {DEFAULT: default_us, FAST: alike}) == (
        DEFAULT,
        Ratio(value=1.0, low=1.0, high=1.0),
    )


def test_the_default_wins_where_it_is_the_fastest_itself():
    samples = {DEFAULT: noisy(10, 8, seed=1), FAST: noisy(12, 8, seed=2)}

    assert select(DEFAULT, samples)[0] == DEFAULT


def test_the_fastest_wins_without_a_ratio_where_the_default_does_not_run():
    samples = {OTHER: noisy(12, 8, seed=1), FAST: noisy(10, 8, seed=2)}

    assert select(DEFAULT, samples) == (FAST, None)


@given(selections())
def test_a_selection_reads_back_what_it_writes(one):
    assert Selection.from_json(json.dumps(one.as_dict())) == one


def test_a_selection_without_a_running_default_reads_back_too():
    table = selection(qkv_shrink()).as_dict()
    table |= {"samples_us": table["samples_us"][:1], "ratio": None}
    one = Selection.from_json(json.dumps(table))

    assert one.as_dict() == table
    assert (one.default_latency_us, one.ratio) == (None, None)


def test_latencies_are_medians_and_the_default_is_known_by_its_values():
    one = selection(qkv_shrink())

    assert (one.latency_us, one.default_latency_us) == (10.123456, 20.25)
    assert not one.is_default
    assert selection(qkv_shrink(), num_warps=16).is_default


# ------------------------------------------------------------------ deterministic


def splitting(split_k: int, block_n: int = 16) -> KernelConfig:
    usual = {"block_m": 16, "block_n": block_n, "block_k": 64, "num_warps": 4, "num_stages": 3}
    return KernelConfig.from_mapping(LoraOp.SHRINK, usual | {"split_k": split_k})


@given(
    st.dictionaries(
        st.tuples(st.sampled_from([1, 2, 64]), st.sampled_from([16, 32, 64])),
        st.floats(1.0, 100.0),
        min_size=1,
    ),
    st.sampled_from([1, 64]),
    st.floats(1.0, 100.0),
)
def test_nothing_that_splits_is_chosen_and_the_fastest_of_the_others_is(found, split_k, default_us):
    default = splitting(split_k, block_n=128)
    samples = {splitting(*key): (us,) * 3 for key, us in found.items()}
    samples[default] = (default_us,) * 3
    whole = {config: each for config, each in samples.items() if not config.splits_k}
    assume(whole)
    chosen, ratio = select(default, samples, deterministic=True)
    assert chosen in whole
    assert ratio is not None
    if split_k == 1:  # then the default may be chosen, and wins where nothing is faster
        assert samples[chosen] <= samples[default]
    else:
        assert samples[chosen] == min(whole.values())


def test_a_default_that_may_not_be_chosen_settles_nothing():
    """It is the fastest, and its ratio to itself is known at once."""
    default, other = splitting(64), splitting(1)
    noisy = {default: (1.0, 1.1, 0.9, 1.0), other: (5.0, 9.0, 3.0, 7.0)}
    assert is_settled(default, noisy)
    assert not is_settled(default, noisy, deterministic=True)
    assert is_settled(default, {default: (1.0,)}, deterministic=True)


def test_what_clearly_loses_needs_no_exact_figure():
    fast, slow, alike = noisy(10, 8, seed=1), noisy(15, 8, seed=2), noisy(10.3, 8, seed=3)
    assert not is_settled(OTHER, {FAST: fast, OTHER: slow})
    assert is_settled(OTHER, {FAST: fast, OTHER: slow}, loss=0.06)
    assert not is_settled(OTHER, {FAST: fast, OTHER: alike}, loss=0.06)


def test_a_deterministic_selection_is_read_back_as_one():
    default, other = splitting(64), splitting(1)
    samples = {default: (1.0, 1.0), other: (2.0, 2.0)}
    one = Selection.of_samples(qkv_shrink(), default, samples, deterministic=True)
    assert one.config == other
    assert not one.beats_default
    assert Selection.from_json(json.dumps(one.as_dict())) == one
    assert set(one.choosable_us) == {other}
