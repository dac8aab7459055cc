"""Kernel Tuner's strategies on a recorded shape."""

from __future__ import annotations

import math

import pytest

from autotune.errors import InputError
from autotune.launch.shape import KernelShape
from autotune.measure.replay import ReplayRunner
from autotune.search.contest.helion import LFBO
from autotune.search.contest.kernel_tuner import PREFIX, installed_peers, search_as_peer
from tests.recordings import SHRINK, latency_us, lines, write_recording
from tests.search.cases import write_lines

SHAPE = KernelShape.from_mapping(SHRINK)


@pytest.fixture
def runner(tmp_path) -> ReplayRunner:
    pytest.importorskip("kernel_tuner", reason="the extra kernel-tuner is not installed")
    return ReplayRunner([write_recording(tmp_path / "r.jsonl.gz", SHRINK)])


@pytest.mark.parametrize(
    "strategy", ["brute_force", "genetic_algorithm", "diff_evo", "hybrid_vndx", "bayes_opt"]
)
def test_a_strategy_starts_with_the_default_and_has_its_number_of_trials(runner, strategy):
    assert PREFIX + strategy in installed_peers()
    found = search_as_peer(runner, SHAPE, strategy=PREFIX + strategy, seed=0, trials=30)
    configs = [each.config for each in found.measurements]
    assert len(configs) == 30
    assert configs[0] == found.space.default
    # The figures are the recording's own.
    timed = [each for each in found.measurements if each.samples_us]
    assert timed
    assert all(
        math.isclose(each.latency_us, latency_us(each.config.as_dict()), rel_tol=0.01)
        for each in timed
    )


def test_a_strategy_that_breaks_down_is_left_with_the_default(tmp_path):
    """diff_evo draws from a population of 20: in a space of 12 it fails."""
    pytest.importorskip("kernel_tuner", reason="the extra kernel-tuner is not installed")
    table = [line for line in lines(SHRINK) if "samples_us" in line][:12]
    table[3]["is_default"] = True
    runner = ReplayRunner([write_lines(tmp_path / "small.jsonl.gz", table)])
    found = search_as_peer(runner, SHAPE, strategy=PREFIX + "diff_evo", seed=0, trials=30)
    assert found.has_failed
    assert {each.config for each in found.measurements} == {found.space.default}
    assert not search_as_peer(
        runner, SHAPE, strategy=PREFIX + "brute_force", seed=0, trials=30
    ).has_failed


def test_the_seed_decides(runner):
    first, again, other = (
        search_as_peer(
            runner, SHAPE, strategy=PREFIX + "genetic_algorithm", seed=seed, trials=20
        ).measurements
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_an_unknown_strategy_is_named_with_those_that_there_are(runner):
    with pytest.raises(InputError, match=r"no strategy 'tpe'; it has .*kernel-tuner:diff_evo"):
        search_as_peer(runner, SHAPE, strategy=PREFIX + "tpe", seed=0, trials=3)


def test_a_missing_kernel_tuner_is_told_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "kernel_tuner", None)
    runner = ReplayRunner([write_recording(tmp_path / "r.jsonl.gz", SHRINK)])
    with pytest.raises(InputError, match=r"pip install '/path/to/clone\[kernel-tuner\]'"):
        search_as_peer(runner, SHAPE, strategy=PREFIX + "diff_evo", seed=0, trials=3)


@pytest.fixture
def helion_runner(tmp_path) -> ReplayRunner:
    pytest.importorskip("helion", reason="the extra helion is not installed")
    return ReplayRunner([write_recording(tmp_path / "r.jsonl.gz", SHRINK)])


def test_helion_starts_with_the_default_and_gets_nearer_than_it(helion_runner):
    assert LFBO in installed_peers()
    found = search_as_peer(helion_runner, SHAPE, strategy=LFBO, seed=0, trials=60)
    latencies = [each.latency_us for each in found.measurements if each.samples_us]
    assert found.measurements[0].config == found.space.default
    assert len(found.measurements) == 60
    assert min(latencies) < 0.8 * latencies[0]
    assert not found.has_failed


def test_the_seed_decides_what_helion_asks_for(helion_runner):
    first, again, other = (
        [
            each.config
            for each in search_as_peer(
                helion_runner, SHAPE, strategy=LFBO, seed=seed, trials=40
            ).measurements
        ]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_without_helion_its_search_is_refused_with_what_to_install(tmp_path):
    if LFBO in installed_peers():
        pytest.skip("Helion is installed")
    runner = ReplayRunner([write_recording(tmp_path / "r.jsonl.gz", SHRINK)])
    with pytest.raises(InputError, match=r"helion:lfbo needs Helion.*pip install '.*\[helion\]'"):
        search_as_peer(runner, SHAPE, strategy=LFBO, seed=0, trials=5)
