from __future__ import annotations

import gzip
import json
import math

import pytest

from autotune.errors import InputError
from autotune.launch.shape import KernelShape
from autotune.measure.replay import ReplayRunner
from autotune.measure.runners import replay_runners
from autotune.report.plots.contest import nearness_plot, write_comparison_plot
from autotune.search.contest.compare import Comparison, compare, sampler_names
from autotune.search.contest.curves import Curve, _expected_random, by_sampler, by_shape, summaries
from autotune.search.contest.kernel_tuner import installed_peers
from tests.recordings import SHRINK, write_recording

pytestmark = pytest.mark.slow

SHAPE = KernelShape.from_mapping(SHRINK)


def curve(*regret: float, expected: tuple[float, ...] = (1.0, 0.5, 0.5)) -> Curve:
    return Curve(
        sampler="adaptive",
        environment="gpu/builtin",
        shape=SHAPE,
        seed=0,
        regret=regret,
        expected_random=expected,
        sampler_s=0.3,
    )


def test_regret_after_more_trials_than_there_are_is_that_at_the_end():
    assert curve(1.0, 0.5, 0.1).after(2) == 0.5
    assert curve(1.0, 0.5, 0.1).after(100) == 0.1


def test_the_trials_to_a_regret_are_counted_from_one():
    assert curve(1.0, 0.5, 0.01).trials_to(0.02) == 3
    assert math.isinf(curve(1.0, 0.5, 0.1).trials_to(0.02))


def test_the_score_is_0_for_random_search_and_1_for_the_best_at_once():
    assert curve(1.0, 0.5, 0.5).score == 0
    assert curve(1.0, 0.0, 0.0).score == 1
    assert curve(math.inf, 9.0, 9.0).score == -1
    assert curve(0.0, 0.0, 0.0, expected=(0.0, 0.0, 0.0)).score == 1


def test_what_random_search_is_expected_to_reach():
    # Two of three others: 0.0 is among them in two of three cases, else 0.2 is the lowest.
    expected = _expected_random(3.0, [0.2, 0.0, 0.8], 4)
    assert expected == pytest.approx((1.0, 1 / 3, 0.2 / 3, 0.0))


def test_a_default_that_is_better_than_others_stays():
    assert _expected_random(0.1, [0.5, 0.0], 2) == pytest.approx((0.1, 0.05))


@pytest.fixture
def runner(tmp_path) -> ReplayRunner:
    return ReplayRunner([write_recording(tmp_path / "r.jsonl.gz")])


def test_samplers_are_compared_on_every_recorded_shape(runner):
    told: list[tuple[int, int]] = []
    comparison = Comparison(samplers=["random", "adaptive"], trials=40, seeds=2)
    curves = compare([runner], comparison, processes=2, progress=lambda *it: told.append(it))
    # Two shapes, two seeds: eight searches that know nothing, four that know what comes with
    # autotune, and four in two chains.
    assert len(curves) == 16
    assert told == [(n, 14) for n in range(1, 15)]
    found = summaries(curves)
    names = ["random", "adaptive", "adaptive, shipped", "adaptive, transfer"]
    assert [each.name for each in found] == names
    assert found[1].score > found[0].score
    as_json = json.loads(json.dumps(comparison.as_dict(found)))
    assert as_json["trials"] == 40
    assert as_json["samplers"][1]["searches"] == 4


def test_with_an_effort_searches_end_by_themselves(runner):
    comparison = Comparison.of(["adaptive"], effort="instant", seeds=1)
    assert (comparison.trials, comparison.seeds, comparison.lookahead) == (6, 1, 1)
    curves = compare([runner], comparison, processes=1)
    assert all(3 <= len(each.regret) <= 6 for each in curves)
    for found in summaries(curves):
        assert 3 <= found.trials <= 6
        assert found.at_end[0] <= found.at_end[1]
    assert comparison.as_dict([])["effort"] == "instant"


def test_trials_go_before_those_of_an_effort():
    assert Comparison.of(["random"], effort="quick", trials=7).trials == 7
    assert Comparison.of(["random"], lookahead=4) == Comparison(samplers=["random"], lookahead=4)


def test_how_many_processes_work_changes_nothing(runner):
    comparison = Comparison(samplers=["adaptive"], trials=15, seeds=1)
    one, two = (
        [curve.regret for curve in compare([runner], comparison, processes=count)]
        for count in (1, 2)
    )
    assert one == two


def test_recordings_of_two_environments_are_compared_but_tell_nothing_of_each_other(tmp_path):
    paths = [write_recording(tmp_path / "a.jsonl.gz", SHRINK), tmp_path / "b.jsonl.gz"]
    with gzip.open(paths[0], "rt") as one, gzip.open(paths[1], "wt") as other:
        other.write(one.read().replace('"580"', '"590"'))
    runners = replay_runners([*paths])
    assert [each.environment.driver for each in runners] == ["580", "590"]
    curves = compare(runners, Comparison(samplers=["adaptive"], trials=5, seeds=1), processes=1)
    assert {curve.transfer for curve in curves} == {False}


def test_an_unknown_sampler_is_named_with_those_that_there_are():
    with pytest.raises(InputError, match=r"some of adaptive, tpe.*STRATEGY: got 'tp'"):
        sampler_names("random, tp")


def test_the_samplers_compared_by_default_are_quick():
    names = sampler_names(None)
    assert names[:3] == ["random", "tpe", "adaptive"]
    assert names[3:] == installed_peers()


# ------------------------------------------------------------------ what is shown


def test_the_plot_holds_a_line_for_each_sampler_and_needs_no_network(runner, tmp_path):
    comparison = Comparison(samplers=["random", "adaptive"], trials=10, seeds=1)
    curves = compare([runner], comparison, processes=1)
    groups = {name: by_shape(those) for name, those in by_sampler(curves).items()}
    write_comparison_plot(groups, tmp_path / "plot.html")
    text = (tmp_path / "plot.html").read_text(encoding="utf-8")
    assert "adaptive, transfer" in text
    assert "<script src=" not in text


def test_the_share_of_searches_that_are_near_the_best_grows_with_the_trials():
    never, soon, late = curve(1.0, 0.5, 0.3), curve(1.0, 0.04, 0.0), curve(0.5, 0.2, 0.01)
    (trace,) = nearness_plot({"adaptive": [never, soon, late, late]}, 0.05).data
    assert list(trace.x) == [1, 2, 3]
    assert list(trace.y) == [0, 0.25, 0.75]
