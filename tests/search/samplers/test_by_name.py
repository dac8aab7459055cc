"""Every sampler: each configuration once, the default first, the same seed the same choices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import optuna
import pytest

from autotune.errors import InputError
from autotune.plan.file import SAMPLERS
from autotune.search.samplers.by_name import make_sampler
from autotune.search.samplers.encoding import Positions
from autotune.search.samplers.untried import Untried
from autotune.testing import SamplerSuite
from tests.recordings import BEST, write_recording
from tests.search.cases import FEW, SHAPE, CountingRunner, tuned

DATABASE = "sqlite:///autotune.db"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runner(tmp_path) -> CountingRunner:
    return CountingRunner(write_recording(tmp_path / "r.jsonl.gz"))


def chosen(runner: CountingRunner, sampler: str, trials: int, **options: int) -> list[object]:
    """What a search in a database of its own measures, in order."""
    runner.measured.clear()
    name = f"sqlite:///{len(list(runner.compared))}-{sampler}.db"
    tuned(runner, name, trials, sampler=sampler, **options)
    return list(runner.measured)


def params(names: Iterable[str]) -> list[Any]:
    """A parameter for each sampler; Optuna's GP fits a model for seconds, so it is slow."""
    slow = {"gp": pytest.mark.slow}
    return [pytest.param(name, marks=slow.get(name, ())) for name in names]


@pytest.mark.parametrize("sampler", params(SAMPLERS))
class TestEverySampler(SamplerSuite):
    """Every sampler passes the suite that is shipped."""

    @pytest.fixture(autouse=True)
    def _named(self, sampler):
        self.name = sampler

    def make_sampler(self, space, untried, positions, *, seed):
        return make_sampler(self.name, space, untried, positions, seed=seed)


@pytest.mark.parametrize("sampler", params(sorted(set(SAMPLERS) - {"exhaustive"})))
def test_another_seed_makes_other_choices(runner, sampler):
    assert chosen(runner, sampler, 16, seed=7) != chosen(runner, sampler, 16, seed=8)


def test_the_exhaustive_search_goes_through_the_space_in_its_order(runner):
    assert chosen(runner, "exhaustive", 9) == list(runner.space(SHAPE, {}).configs[:9])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_tpe_finds_the_best_of_a_bowl_in_a_third_of_the_space(runner, seed):
    selection = tuned(runner, DATABASE, 55, sampler="tpe", seed=seed)
    assert selection is not None
    assert BEST.items() <= selection.config.as_dict().items()
    assert selection.trials == 55


def test_an_axis_that_is_not_searched_is_never_sampled(runner):
    space = runner.space(SHAPE, FEW)
    positions = Positions(space)
    sampler = make_sampler("random", space, Untried(space, positions), positions, seed="0")
    study = optuna.create_study(sampler=sampler)
    with pytest.raises(InputError, match="num_widgets is no axis of this search space"):
        study.ask().suggest_int("num_widgets", 1, 2)


@pytest.mark.slow
def test_trials_that_were_cut_short_count_as_random_ones_for_the_gaussian_process(runner):
    """A model that would wait for ten complete trials would draw most of a search at random."""
    pytest.importorskip("scipy")
    at_random = chosen(runner, "random", 20)
    by_model = chosen(runner, "gp", 20)
    same = [one == other for one, other in zip(at_random, by_model, strict=True)]
    assert all(same[:10])
    assert not any(same[10:])
