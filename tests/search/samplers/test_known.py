"""Learning from an older database."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.errors import InputError, StorageError
from autotune.launch.shape import KernelShape
from autotune.plan.study import StudyPlan
from autotune.search.samplers.known import finished_earlier
from tests.recordings import EXPAND, NEAR_BEST, SHRINK, write_recording
from tests.search.cases import CountingRunner, tune

OLD = "sqlite:///old.db"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """A folder with a recording, and a database of two searched shapes, 80 configurations each."""
    folder: Path = tmp_path_factory.mktemp("searched")
    path = write_recording(folder / "r.jsonl.gz")
    storage = f"sqlite:///{folder}/old.db"
    tune(plan_of(CountingRunner(path), trials=80, storage=storage), CountingRunner(path))
    return folder


@pytest.fixture
def runner(searched, tmp_path) -> CountingRunner:
    """Answers from the recording; the database lies beside."""
    shutil.copy(searched / "old.db", tmp_path)
    return CountingRunner(searched / "r.jsonl.gz")


def plan_of(runner: CountingRunner, **options: object) -> StudyPlan:
    return replace(StudyPlan.of_shapes(runner.shapes), effort=None, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_warm_start_asks_for_the_old_winners_first(runner):
    tune(plan_of(runner, trials=10, warm_start=OLD), runner)
    for first in (runner.measured[:3], runner.measured[10:13]):
        assert any(NEAR_BEST.items() <= config.as_dict().items() for config in first)


def test_every_shape_of_the_same_gpu_and_provider_is_found(runner):
    found = finished_earlier(OLD, replace(runner.environment, driver="999", triton="9"))
    assert {each.shape for each in found} == {
        KernelShape.from_mapping(table) for table in (SHRINK, EXPAND)
    }
    assert [len(each.measurements) for each in found] == [80, 80]


@pytest.mark.parametrize("other", [{"gpu": "NVIDIA Other"}, {"provider": "vllm"}])
def test_another_gpu_or_provider_teaches_nothing_and_is_told(runner, other):
    with pytest.raises(InputError, match=r"old\.db holds no finished shape of NVIDIA .* kernels"):
        finished_earlier(OLD, replace(runner.environment, **other))


def test_a_database_that_is_not_there_is_told_and_not_made(runner):
    with pytest.raises(StorageError, match=r"there is no database absent\.db"):
        tune(plan_of(runner, warm_start="sqlite:///absent.db"), runner)
    assert not Path("absent.db").exists()


def test_a_sampler_that_learns_from_no_other_search_is_refused(runner):
    with pytest.raises(InputError, match=r"--warm-start is for the sampler adaptive: got tpe"):
        tune(plan_of(runner, warm_start=OLD, sampler="tpe"), runner)
