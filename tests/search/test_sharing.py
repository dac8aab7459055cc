"""Several runs on one database share the shapes, whatever happens to one of them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, StopRule
from autotune.plan.study import StudyPlan
from autotune.search import TrialMirror
from autotune.search.events import Tuned
from autotune.search.session import Session
from autotune.search.tune import tune
from autotune.store import Store, schema
from autotune.testing.landscape import Landscape, shrink
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.slow

SHAPES = [shrink(num_tokens=1 << power) for power in range(5)]
TRIALS = 6


class Noting(Landscape):
    """Notes what it measures."""

    def __init__(self, lookahead: int = 1) -> None:
        super().__init__(stride=61, lookahead=lookahead)
        self.measured: list[tuple[KernelShape, KernelConfig]] = []

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        found = super().measure(shape, pending, stop)
        self.measured.append((shape, found.config))
        return found


class Running:
    """A run in a thread of its own."""

    def __init__(self, url: str, runner: Noting, **options: object) -> None:
        plan = StudyPlan.of_shapes(SHAPES).override(storage=url, sampler="random")
        self._plan = plan.override(**({"trials": TRIALS} | options))  # type: ignore[arg-type]
        self.runner = runner
        self.tuned: Sequence[Tuned] = ()
        self.said: list[str] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with Session(self._plan, self.runner, say=self.said.append) as session:
            self.tuned = tune(session)

    def ended(self) -> Sequence[Tuned]:
        self.thread.join(PATIENCE_S)
        return self.tuned


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/autotune.db"


def kept(url: str) -> Counter[tuple[KernelShape, KernelConfig]]:
    with closing(Store(url)) as store:
        return Counter(
            (study.shape, one.measurement.config)
            for study in store.studies()
            for one in store.finished(study)
        )


@pytest.mark.parametrize("lookahead", [1, 6])
def test_runs_measure_every_configuration_once_and_all_have_all_shapes(url, lookahead):
    runs = [Running(url, Noting(lookahead)) for _ in range(3)]
    tuned = [run.ended() for run in runs]
    measured = Counter(each for run in runs for each in run.runner.measured)
    assert measured == kept(url)
    assert set(measured.values()) == {1}
    assert Counter(shape for shape, _ in measured) == dict.fromkeys(SHAPES, TRIALS)
    for each in tuned:
        assert [one.selection for one in each] == [one.selection for one in tuned[0]]
        assert [one.shape for one in each] == SHAPES


def test_each_run_searches_until_its_own_trials_are_spent(url):
    few, many = Running(url, Noting()), Running(url, Noting(), trials=TRIALS + 3)
    few.ended()
    assert [one.trials for one in many.ended()] == [TRIALS + 3] * len(SHAPES)
    assert set(kept(url).values()) == {1}


class Robbed(Noting):
    """Loses all that it has taken to another run in the middle of a shape, which then ends."""

    def __init__(self, url: str, lookahead: int) -> None:
        super().__init__(lookahead)
        self._url = url

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        if len(self.measured) == TRIALS // 2:
            with closing(Store(self._url)) as store, store.engine.begin() as connection:
                connection.execute(sa.update(schema.claims).values(run_id=None))
        return super().measure(shape, pending, stop)


@pytest.mark.parametrize("lookahead", [1, 4])
def test_a_run_goes_on_after_others_have_taken_over_what_it_had(url, lookahead):
    run = Running(url, Robbed(url, lookahead))
    tuned = run.ended()
    assert [one.trials for one in tuned] == [TRIALS] * len(SHAPES)
    assert Counter(shape for shape, _ in kept(url)) == dict.fromkeys(SHAPES, TRIALS)
    assert set(kept(url).values()) == {1}


def test_a_run_says_who_has_the_shapes_that_it_waits_for(url):
    class Held(Noting):
        def measure(
            self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
        ) -> Measurement:
            at_work.set()
            free.wait(PATIENCE_S)
            return super().measure(shape, pending, stop)

    at_work, free = threading.Event(), threading.Event()
    first = Running(url, Held())
    at_work.wait(PATIENCE_S)
    second = Running(url, Noting())
    while not any(line.startswith("Waiting: 1 shape is being tuned by ") for line in second.said):
        assert second.thread.is_alive()
    free.set()
    assert second.ended() == first.ended()
    assert second.said[0].endswith(".")


def test_trials_that_are_there_twice_are_mended_with_a_line(url):
    Running(url, Noting()).ended()
    with closing(Store(url)) as store, closing(TrialMirror(url)) as mirror:
        for study in store.studies()[:2]:
            opened = mirror.open_study(study)
            mirror.add(opened, opened.get_trials()[1:3])
    run = Running(url, Noting())
    run.ended()
    assert run.said == [
        "Optuna's tables had 4 trials twice, in 2 studies: the second ones are deleted."
    ]
    again = Running(url, Noting())
    again.ended()
    assert again.said == []


@pytest.mark.parametrize("options", [{"effort": "quick", "trials": None}, {"time_budget_s": 3.0}])
def test_runs_that_go_on_in_rounds_end_together(url, options):
    runs = [Running(url, Noting(), **options) for _ in range(3)]
    for run in runs:
        assert [one.shape for one in run.ended()] == SHAPES
    assert set(kept(url).values()) == {1}
