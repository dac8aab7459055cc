"""Compares samplers on recorded spaces: how good a choice each finds after how many trials.

Every search replays a recording, and cuts slow configurations short as a run does. With
``lookahead`` several configurations are under way, and their answers come out of order, as in a run
on a GPU. Nothing is measured, so no GPU is needed.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from autotune.errors import AutotuneError, InputError
from autotune.launch.shape import KernelShape
from autotune.measure.cuda.worker import held_back, leave_to_owner
from autotune.measure.replay import ReplayRunner
from autotune.plan.effort import EFFORTS
from autotune.plan.file import ADAPTIVE, SAMPLERS
from autotune.search.budget import Budget
from autotune.search.contest.curves import Curve, Summary, curve_of
from autotune.search.contest.helion import LFBO
from autotune.search.contest.kernel_tuner import PREFIX, installed_peers, is_peer, search_as_peer
from autotune.search.contest.replayed import Replayed, search
from autotune.search.samplers.by_name import check_installed
from autotune.search.samplers.known import experience
from autotune.search.samplers.transfer import Neighbour, in_order

#: A contest's figures where none are given.
_TRIALS, _SEEDS, _LOOKAHEAD = 200, 3, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is compared.

    Attributes:
        samplers: Names of ``SAMPLERS``, or of other tuners' searches as in ``installed_peers``.
        trials: How many trials each search has.
        seeds: How many times each sampler searches each shape.
        lookahead: How many configurations are under way; any of them is answered next. Kernel
            Tuner's strategies ask for one at a time, or for a population.
        effort: One of ``EFFORTS``, by which searches end by themselves; None for searches that make
            all their trials. Other tuners' searches know no effort.
    """

    samplers: Sequence[str]
    trials: int = _TRIALS
    seeds: int = _SEEDS
    lookahead: int = _LOOKAHEAD
    effort: str | None = None

    @classmethod
    def of(
        cls,
        samplers: Sequence[str],
        *,
        trials: int | None = None,
        seeds: int | None = None,
        lookahead: int | None = None,
        effort: str | None = None,
    ) -> Comparison:
        """A contest where what is None is as usual: with an effort, the trials are the effort's."""
        if trials is None:
            trials = _TRIALS if effort is None else EFFORTS[effort].trials
        return cls(
            samplers=samplers,
            trials=trials,
            seeds=_SEEDS if seeds is None else seeds,
            lookahead=_LOOKAHEAD if lookahead is None else lookahead,
            effort=effort,
        )

    @property
    def budget(self) -> Budget:
        """The budget of each search."""
        return Budget.of(None if self.effort is None else EFFORTS[self.effort], self.trials)

    def as_dict(self, summaries: Iterable[Summary]) -> dict[str, Any]:
        """The comparison and its results as JSON-ready values."""
        own: dict[str, Any] = {"trials": self.trials, "seeds": self.seeds}
        own |= {"lookahead": self.lookahead, "effort": self.effort}
        return own | {"samplers": [each.as_dict() for each in summaries]}

    def tasks(self, number: int, runner: ReplayRunner) -> Iterator[_Task]:
        """The tasks of one recording, which may run side by side; ordered by sampler.

        Args:
            number: The runner's place among the runners.
            runner: Answers from the recording.
        """
        shapes = runner.shapes
        for sampler in self.samplers:
            for seed, shape in itertools.product(range(self.seeds), shapes):
                yield _Task(self, number, sampler, seed, (shape,))
            if sampler == ADAPTIVE:
                known = [each.shape for each in experience(runner)]
                yield from self._informed(number, shapes, known)

    def _informed(
        self, number: int, shapes: Sequence[KernelShape], known: Sequence[KernelShape]
    ) -> Iterator[_Task]:
        """The searches that know what a run knows: shipped recordings, and the shapes before."""
        shipped = bool(known)
        if shipped:
            for seed, shape in itertools.product(range(self.seeds), shapes):
                yield _Task(self, number, ADAPTIVE, seed, (shape,), shipped=shipped)
        if len(shapes) > 1:
            for seed in range(self.seeds):
                ordered = tuple(in_order(shapes, known))
                yield _Task(self, number, ADAPTIVE, seed, ordered, shipped=shipped)


@dataclass(frozen=True, slots=True)
class _Task:
    """The searches of one process, which learn from the shapes before them.

    With ``shipped`` they also learn from the recordings that come with autotune.
    """

    comparison: Comparison
    runner: int
    sampler: str
    seed: int
    shapes: tuple[KernelShape, ...]
    shipped: bool = False

    @property
    def transfer(self) -> bool:
        return len(self.shapes) > 1

    def curves(self, runner: ReplayRunner) -> list[Curve]:
        finished = list(experience(runner)) if self.shipped else []
        curves = []
        for shape in self.shapes:
            replayed = self._search(runner, shape, finished)
            finished.append(Neighbour(shape, replayed.measurements))
            curve = curve_of(runner, replayed, self.sampler, self.seed)
            curves.append(replace(curve, transfer=self.transfer, shipped=self.shipped))
        return curves

    def _search(
        self, runner: ReplayRunner, shape: KernelShape, finished: Sequence[Neighbour]
    ) -> Replayed:
        trials = self.comparison.trials
        if is_peer(self.sampler):
            return search_as_peer(
                runner, shape, strategy=self.sampler, seed=self.seed, trials=trials
            )
        return search(
            runner,
            shape,
            sampler=self.sampler,
            seed=self.seed,
            budget=self.comparison.budget,
            lookahead=self.comparison.lookahead,
            finished=finished,
        )


def sampler_names(text: str | None) -> list[str]:
    """The samplers named in a list with commas; for None the samplers that are quick to compare.

    Without a list Optuna's GP is left out, which takes 110 ms a trial in a search of 200 trials,
    and so is ``exhaustive``.

    Raises:
        InputError: One of the names is not that of a sampler, or it is not installed.
    """
    if text is None:
        return ["random", "tpe", ADAPTIVE, *installed_peers()]
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in SAMPLERS and not is_peer(name):
            raise InputError(
                f"--samplers must be some of {', '.join(SAMPLERS)}, {LFBO} and {PREFIX}STRATEGY: "
                f"got {name!r}"
            )
        check_installed(name)
    return names


def compare(
    runners: Sequence[ReplayRunner],
    comparison: Comparison,
    *,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Curve]:
    """Search every recorded shape with every sampler, also with transfer for ``adaptive``.

    Args:
        runners: The recordings, one runner for each environment. Shapes of different environments
            do not learn from each other.
        comparison: What is compared.
        processes: How many processes work at a time; one per core if not given.
        progress: Called with the number of finished tasks and the number of all tasks.

    Raises:
        AutotuneError: A sampler is not installed, a recording cannot be searched, or a process of
            the pool ended, as it does where a script calls this outside
            ``if __name__ == "__main__":``.
    """
    tasks = [
        task for number, runner in enumerate(runners) for task in comparison.tasks(number, runner)
    ]
    curves: list[Curve] = []
    # Fresh processes with one thread each, so that samplers do not slow each other down.
    with (
        _one_thread_each(),
        ProcessPoolExecutor(
            max_workers=min(processes or os.cpu_count() or 1, len(tasks)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(tuple(runners),),
        ) as pool,
    ):
        try:
            with held_back(*_FOR_THE_MAIN_PROCESS):
                results = pool.map(_work, tasks)
            for done, those in enumerate(results, start=1):
                curves += those
                if progress is not None:
                    progress(done, len(tasks))
        except BrokenProcessPool as error:
            reason = "a process that compares samplers ended"
            hint = 'in a script, call compare under `if __name__ == "__main__":`'
            raise AutotuneError(f"{reason}; {hint}") from error
    return curves


#: Signals that a terminal sends to all processes. SIGTERM is how a pool ends its own.
_FOR_THE_MAIN_PROCESS = (signal.SIGINT, signal.SIGHUP)

_runners: tuple[ReplayRunner, ...] = ()


def _start(runners: tuple[ReplayRunner, ...]) -> None:
    """Begin a process of the pool: keep the recordings, and leave signals to the main process."""
    global _runners  # noqa: PLW0603 - a pool's initializer has no other way to pass them on
    _runners = runners
    leave_to_owner(*_FOR_THE_MAIN_PROCESS)


def _work(task: _Task) -> list[Curve]:
    return task.curves(_runners[task.runner])


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Make processes that are started inside use one core each, in linear algebra too."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
