"""Session: what a run holds open, from its first shape to its last row."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from autotune.errors import InputError, WorkerDied
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Runner
from autotune.measure.recording import RecordingRunner, RecordingWriter
from autotune.plan.file import ADAPTIVE
from autotune.plan.study import StudyPlan
from autotune.search.dashboard.mirror import TrialMirror
from autotune.search.events import Event, Opened, Planned, ShapeDone, Watch, unwatched, watched_by
from autotune.search.samplers.known import experience, finished_earlier
from autotune.search.samplers.transfer import Neighbour
from autotune.search.tuner import ShapeTuner
from autotune.store import RunLog, Store, facts

if TYPE_CHECKING:
    from typing_extensions import Self


class Session:
    """One run: its plan and its runner, its database, and what it has learned so far.

    A context manager. While it is entered, the database says that the run is under way; at its end
    it says how the run ended.

    Attributes:
        plan: What to tune, and where to keep it.
        runner: Measures. With a recording to write, everything goes through it.
        tell: The Watch of the run: tells the database and whoever watches.
        store: The run's database.
        earlier: Shapes that may be learned from and were searched before this run.
    """

    store: Store
    earlier: list[Neighbour]

    def __init__(
        self,
        plan: StudyPlan,
        runner: Runner,
        watch: Watch = unwatched,
        *,
        record: Path | None = None,
    ) -> None:
        """Open nothing yet.

        Args:
            plan: What to tune, and where to keep it.
            runner: Measures.
            watch: Told of every trial and every shape.
            record: A recording to write of everything measured, earlier runs included.
        """
        self.plan, self.runner = plan, runner
        self.tell = watched_by(self._write_down, watch)
        self._record = record
        self._finished: dict[KernelShape, Neighbour] = {}

    def __enter__(self) -> Self:
        """Open the recording and the database.

        Raises:
            AutotuneError: One of them cannot be used.
        """
        plan = self.plan
        with ExitStack() as opened:
            if self._record is not None:
                environment, ceilings = self.runner.environment, self.runner.ceilings()
                writer = opened.enter_context(RecordingWriter(self._record, environment, ceilings))
                self.runner = RecordingRunner(self.runner, writer)
            self.earlier = _earlier(plan, self.runner)
            self.store = opened.enter_context(closing(Store(plan.storage)))
            self._mirror = opened.enter_context(closing(TrialMirror(plan.storage)))
            self._keep_facts()
            self._log = opened.enter_context(RunLog(self.store, self.runner.environment))
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.__exit__(kind, error, traceback)

    @property
    def transfers(self) -> bool:
        """Whether the sampler learns from other shapes."""
        return self.plan.sampler == ADAPTIVE

    def space(self, shape: KernelShape) -> SearchSpace:
        """The space of a shape, with the axes that the plan gives its op."""
        return self.runner.space(shape, self.plan.axes[shape.op])

    def tuner(self, space: SearchSpace) -> ShapeTuner:
        """What searches a shape. It learns from every other shape that is known."""
        others = [each for shape, each in self._finished.items() if shape != space.shape]
        return ShapeTuner(
            self.runner,
            space,
            store=self.store,
            mirror=self._mirror,
            sampler=self.plan.sampler,
            seed=self.plan.seed,
            finished=[*self.earlier, *others],
            watch=self.tell,
        )

    def learn(self, tuner: ShapeTuner) -> None:
        """Remember what a search measured, for the shapes that come after it."""
        if self.transfers:
            neighbour = tuner.as_neighbour
            self._finished[neighbour.shape] = neighbour

    def _write_down(self, event: Event) -> None:
        """Tell the database, for whoever asks how far the run is."""
        match event:
            case Planned():
                self._log.plan(event.trials, event.defaults)
            case Opened():
                self._log.begin(event.shape)
            case ShapeDone():
                self._log.finish(event.tuned.shape)

    def _keep_facts(self) -> None:
        """Keep what only a run knows: the layers' names, and what the device reaches at best."""
        runs, environment = self.plan.runs, self.runner.environment
        uses = {
            shape: facts.LayerUse(names=names, runs=runs[shape])
            for shape, names in self.plan.layers.items()
        }
        facts.keep_layers(self.store, environment, uses)
        if environment in facts.ceilings(self.store):
            return
        with contextlib.suppress(WorkerDied):  # only a report needs them; the search does not
            ceilings = self.runner.ceilings()
            if ceilings is not None:
                facts.keep_ceilings(self.store, environment, ceilings)


def _earlier(plan: StudyPlan, runner: Runner) -> list[Neighbour]:
    """What there is to learn from: what comes with autotune, and what ``--warm-start`` gives."""
    if plan.sampler == ADAPTIVE:
        older = finished_earlier(plan.warm_start, runner.environment) if plan.warm_start else []
        return [*older, *experience(runner)]
    if plan.warm_start is not None:
        raise InputError(
            f"--warm-start is for the sampler {ADAPTIVE}: got {plan.sampler}, which learns from no "
            "other search; leave one of them out"
        )
    return []
