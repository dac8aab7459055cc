"""Session: what a run keeps open from its first shape to its last row."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from threadpoolctl import threadpool_limits

from autotune.choose.selection import Selection
from autotune.errors import InputError, WorkerDied
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Runner
from autotune.measure.recording import RecordingWriter
from autotune.plan.file import ADAPTIVE
from autotune.plan.study import StudyPlan
from autotune.search.crew import Crew
from autotune.search.dashboard.mirror import TrialMirror
from autotune.search.events import (
    Event,
    Opened,
    Planned,
    ShapeDone,
    Tuned,
    Watch,
    unwatched,
    watched_by,
)
from autotune.search.samplers.by_name import check_installed
from autotune.search.samplers.known import experience, finished_earlier
from autotune.search.samplers.transfer import Neighbour, in_order
from autotune.search.tuner import CONFIRMING_TRIALS, ShapeTuner
from autotune.search.writer import Writer
from autotune.store import Claims, Holder, Load, Patience, RunLog, Store, Taken, facts
from autotune.store.mounts import shared_warning
from autotune.store.patience import PATIENCE_S

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds between two looks at the shapes that other runs have.
POLL_S = 0.5


class Session:
    """One run: its plan, its runners, its database, and the shapes that it has searched so far.

    A context manager. Inside it the database says that the run is under way; at its end the
    database says how the run ended.

    Attributes:
        plan: What to tune, and the database to keep it in.
        crew: The runners, which measure configurations and write the recording if there is one.
        tell: The Watch of the run: passes every event to the database and to the caller's Watch.
        store: The run's database.
        claims: The shapes that the run has taken, so that no other run searches them meanwhile.
        earlier: Shapes that were searched before this run, to learn from.
        spaces: The spaces of the plan's shapes, in the order in which they are searched.
    """

    store: Store
    claims: Claims
    earlier: list[Neighbour]
    spaces: list[SearchSpace]

    def __init__(
        self,
        plan: StudyPlan,
        runner: Runner | Sequence[Runner],
        watch: Watch = unwatched,
        *,
        record: Path | None = None,
        known: Mapping[KernelShape, KernelConfig] = MappingProxyType({}),
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """Prepare a run. Files are opened when the session is entered.

        Args:
            plan: What to tune, and the database to keep it in.
            runner: Measures configurations; several of them do so side by side.
            watch: Called with every event, with one at a time.
            record: The file to record every measurement to, earlier runs included; None for no
                recording.
            known: Configurations that were chosen before for shapes with these kernels on this
                GPU, to be confirmed. A replay pays no attention to them: it must not know its
                answers.
            say: Called with a line when the database fails for a moment, and when it is back; and
                when a GPU is lost.

        Raises:
            InputError: The runners measure in different environments.
        """
        runners = [runner] if isinstance(runner, Runner) else list(runner)
        self._say = say
        self._telling, self._taking = threading.Lock(), threading.Lock()
        self._watch = watch
        self.tell = watched_by(self._write_down, self._pass_on)
        self.plan, self.crew = plan, Crew(runners, say=say, tell=self.tell)
        self._record = record
        self._known = known if self.runner.replayed is None else {}
        self._finished: dict[KernelShape, Neighbour] = {}
        self._said: set[Holder] = set()
        self._waits_for: set[Holder] = set()

    def __enter__(self) -> Self:
        """Open the recording and the database; the database only once every shape has its space.

        Raises:
            AutotuneError: The recording or the database cannot be used, or a shape cannot be
                measured.
        """
        plan = self.plan
        check_installed(plan.sampler)
        with ExitStack() as opened:
            # The sampler's matrices are small. Threads for them would wait for cores that compile:
            # a belief then took ten times as long (H100, 16 cores).
            opened.enter_context(threadpool_limits(1, user_api="blas"))
            if self._record is not None:
                environment, ceilings = self.runner.environment, self.runner.ceilings()
                replayed = self.runner.replayed
                writer = RecordingWriter(
                    self._record,
                    environment,
                    ceilings,
                    measured_at=None if replayed is None else replayed.measured_at,
                )
                self.crew.record(opened.enter_context(writer))
            self.earlier = _earlier(plan, self.runner)
            self.spaces = [self.space(shape) for shape in self._ordered()]
            if warning := shared_warning(plan.storage):
                self._say(warning)
            patience = Patience(PATIENCE_S, say=self._say)
            self.store = opened.enter_context(closing(Store(plan.storage, patience=patience)))
            mirror = opened.enter_context(closing(TrialMirror(plan.storage, patience=patience)))
            self._keep_facts()
            # It gives back what the run has taken, so it must end after the writer.
            log = RunLog(self.store, self.runner.environment, load=self._load)
            self._log = opened.enter_context(log)
            self.claims = Claims(
                self.store, self._log, budget=_budget_text(plan, confirms=bool(self._known))
            )
            self._writer = opened.enter_context(closing(Writer(self.store, mirror, self.claims)))
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.store.patience.hurry()
        if self._writer.mended:
            self._say(_mended_text(self._writer.mended))
        self._opened.__exit__(kind, error, traceback)

    @property
    def transfers(self) -> bool:
        """Whether the sampler learns from other shapes."""
        return self.plan.sampler == ADAPTIVE

    @property
    def runner(self) -> Runner:
        """For what any of the runners may do; see ``Crew.runner``."""
        return self.crew.runner

    def space(self, shape: KernelShape) -> SearchSpace:
        """The space of a shape, with the axes that the plan gives its op."""
        return self.runner.space(shape, self.plan.axes[shape.op])

    def known(self, space: SearchSpace) -> KernelConfig | None:
        """The configuration to confirm; None where none of the space is known."""
        found = self._known.get(space.shape)
        known = None if found is None else space.canonical(found)
        if known is None or space.rejection(known) is not None or not space.may_choose(known):
            return None
        return known

    def trials(self, space: SearchSpace) -> int:
        """The configurations of a shape that are measured at most, if the known one wins."""
        most = self.plan.trials if self.known(space) is None else CONFIRMING_TRIALS
        return min(most, self.plan.trials, len(space.configs))

    def tuner(
        self,
        space: SearchSpace,
        beside: Sequence[ShapeTuner] = (),
        runner: Runner | None = None,
    ) -> ShapeTuner:
        """The tuner of a shape, which may learn from every other shape that was searched.

        Args:
            space: The shape's configurations.
            beside: Tuners of other shapes that are searched now, to learn from what they know.
            runner: Measures the shape; any one if not given.
        """
        others = dict(self._finished)
        if self.transfers:
            others |= {each.shape: each.as_neighbour for each in beside}
        others.pop(space.shape, None)
        return ShapeTuner(
            runner or self.runner,
            space,
            writer=self._writer,
            sampler=self.plan.sampler,
            seed=self.plan.seed,
            finished=[*self.earlier, *others.values()],
            known=self.known(space),
            watch=self.tell,
        )

    def take(self, shapes: Sequence[KernelShape], *, is_idle: bool) -> Taken | None:
        """Take one of these shapes, so that no other run searches it; see ``Claims.take``.

        Says which other runs have some of them: once for each run, and again before this run waits.

        Args:
            shapes: The shapes, in the order in which they are wanted.
            is_idle: Whether this run has nothing else to do.
        """
        with self._taking:
            taken = self.claims.take(shapes)
            others, waits = self.claims.others, is_idle and taken is None
            if others.keys() - self._said or (waits and others.keys() - self._waits_for):
                self._say(_others_text(others, waits=waits))
            self._said |= others.keys()
            self._waits_for = set(others) if waits else set()
            return taken

    def wait_for(self, shape: KernelShape) -> Taken:
        """Take a shape; while another run has it, wait."""
        while True:
            taken = self.take([shape], is_idle=True)
            if taken is not None:
                return taken
            time.sleep(POLL_S)

    def latest(self, tuned: Mapping[KernelShape, Tuned]) -> list[Selection]:
        """The selections of shapes; where other runs have searched them too, those kept last."""
        own = [one.selection for one in tuned.values() if one.selection is not None]
        if not self.claims.has_company:
            return own
        records = [self.store.study_of(shape, self.runner.environment) for shape in tuned]
        kept = [self.store.selection(record) for record in records]
        return [one for one in kept if one is not None]

    def learn(self, tuner: ShapeTuner) -> None:
        """Remember what a tuner measured, for the shapes that come after it."""
        if self.transfers:
            neighbour = tuner.as_neighbour
            self._finished[neighbour.shape] = neighbour

    def _ordered(self) -> Sequence[KernelShape]:
        """The plan's shapes in the order in which they are searched."""
        shapes = self.plan.shapes
        if not self.transfers:
            return shapes
        return in_order(shapes, [each.shape for each in self.earlier])

    def _load(self) -> Load:
        return self.crew.load(writing_s=self._writer.busy_s)

    def _pass_on(self, event: Event) -> None:
        """Tell the caller's Watch, unless the run has ended meanwhile."""
        with self._telling:
            self.crew.check()
            self._watch(event)

    def _write_down(self, event: Event) -> None:
        """Write an event to the database, from which other processes see how far the run is."""
        match event:
            case Planned():
                self._log.plan(event.trials, event.defaults)
            case Opened():
                self._log.begin(event.shape)
            case ShapeDone():
                self._log.finish(event.tuned.shape)

    def _keep_facts(self) -> None:
        """Keep what reports need: the layers' names, and the device's measured limits."""
        runs, environment = self.plan.runs, self.runner.environment
        uses = {
            shape: facts.LayerUse(names=names, runs=runs[shape])
            for shape, names in self.plan.layers.items()
        }
        facts.keep_layers(self.store, environment, uses)
        if self.runner.replayed is not None:
            facts.keep_replayed(self.store, environment, uses, self.runner.replayed)
        if environment in facts.ceilings(self.store):
            return
        with contextlib.suppress(WorkerDied):  # only a report needs them; the search does not
            ceilings = self.runner.ceilings()
            if ceilings is not None:
                facts.keep_ceilings(self.store, environment, ceilings)


def _budget_text(plan: StudyPlan, *, confirms: bool) -> str:
    """What ends a plan's searches, apart from what they measure."""
    limits: dict[str, object] = {
        "trials": plan.trials,
        "effort": plan.effort,
        "seconds": plan.time_budget_s,
    }
    return json.dumps(limits | ({"confirms": True} if confirms else {}))


def _mended_text(mended: Counter[str]) -> str:
    studies = "1 study" if len(mended) == 1 else f"{len(mended)} studies"
    return (
        f"Optuna's tables had {mended.total()} trials twice, in {studies}: the second ones are "
        "deleted."
    )


def _others_text(others: Counter[Holder], *, waits: bool) -> str:
    """Such as ``3 shapes are being tuned by host b, process 4711``."""
    those = ", ".join(
        f"{count} shape{' is' if count == 1 else 's are'} being tuned by host {by.host}, process "
        f"{by.process}"
        for by, count in others.items()
    )
    return f"Waiting: {those}." if waits else f"{those}."


def _earlier(plan: StudyPlan, runner: Runner) -> list[Neighbour]:
    """The shapes to learn from: of ``--warm-start``, and of the recordings in autotune.

    Raises:
        InputError: ``--warm-start`` is given for a sampler that learns from no other search.
    """
    if plan.sampler == ADAPTIVE:
        older = finished_earlier(plan.warm_start, runner.environment) if plan.warm_start else []
        return [*older, *experience(runner)]
    if plan.warm_start is not None:
        raise InputError(
            f"--warm-start is for the sampler {ADAPTIVE}: got {plan.sampler}, which learns from no "
            "other search; leave one of them out"
        )
    return []
