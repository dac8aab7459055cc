"""Tuning one shape: a search that keeps its measurements and its selection in the database."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from autotune.choose.finalists import finalists
from autotune.choose.selection import Selection, is_settled, is_settled_at_every_block_m
from autotune.launch.config import KernelConfig
from autotune.launch.space import SearchSpace
from autotune.measure import Outcome, Runner
from autotune.search.attempt import Attempt, Made
from autotune.search.budget import Budget
from autotune.search.events import Choosing, Opened, Tried, Watch, unwatched
from autotune.search.loop import SearchLoop
from autotune.search.samplers.transfer import Neighbour
from autotune.search.writer import Writer
from autotune.store import Finished

#: Configurations that are measured to confirm a known one: the default, this one, and the one that
#: the belief puts first.
CONFIRMING_TRIALS = 3


class ShapeTuner:
    """Finds the best configuration of one shape, at once (``run``) or step by step.

    Attributes:
        shape: The shape.
    """

    def __init__(  # noqa: PLR0913 - each by its name
        self,
        runner: Runner,
        space: SearchSpace,
        *,
        writer: Writer,
        sampler: str,
        seed: int,
        finished: Sequence[Neighbour] = (),
        known: KernelConfig | None = None,
        watch: Watch = unwatched,
    ) -> None:
        """Open the shape's study and take over what was measured before.

        Args:
            runner: Measures configurations.
            space: The shape's configurations.
            writer: Keeps measurements and selections.
            sampler: One of ``SAMPLERS``.
            seed: The same seed makes the same choices.
            finished: Other shapes that were searched before, to learn from.
            known: A configuration that was chosen for this shape before, on another machine: it is
                confirmed in a few trials, and the shape is searched only where it does not win.
            watch: Called with every event.
        """
        self._watch = watch
        self._runner, self._space, self.shape = runner, space, space.shape
        self._store = writer.store
        self._record = self._store.study_of(self.shape, runner.environment)
        self._writer = writer.open(self._record, device=runner.device)
        self._untold: deque[Tried] = deque()
        self._told = 0
        self._known = known
        self._loop = SearchLoop(
            runner, space, sampler=sampler, seed=seed, finished=finished, first=known
        )
        for item in self._writer.earlier:
            self._loop.take_over(item.measurement)
        self._tried_before = len(self._loop.measured)

    def run(self, budget: Budget) -> Selection | None:
        """Search, and choose.

        Returns:
            The selection; None where no configuration works.
        """
        self.begin(budget)
        while self.ask(budget):
            self.measure()
        return self.choose()

    # ----------------------------------------------------------------- step by step

    def begin(self, budget: Budget) -> None:
        """Tell that the search begins, or goes on, and the runner what was measured before."""
        loop = self._loop
        self._runner.recall(loop.measured.values())
        self._watch(
            Opened(
                shape=self.shape,
                tried=len(loop.measured),
                most=min(self._confirming(budget).trials, len(self._space.configs)),
                best_us=loop.best_us,
                default_us=loop.default_us,
                device=self._runner.device,
            )
        )

    def ask(self, budget: Budget, *, at_most: int | None = None) -> bool:
        """Choose the next configurations; see ``SearchLoop.ask``.

        Returns:
            Whether a configuration is under way. If not, the search is over.
        """
        return self._loop.ask(self._confirming(budget), at_most=at_most)

    @property
    def pending(self) -> list[KernelConfig]:
        """The configurations under way, oldest first."""
        return self._loop.pending

    def measure(self) -> None:
        """Measure one of the configurations under way, whichever the runner has ready first."""
        self.finish(self.attempt().made_by(self._runner))

    def attempt(self) -> Attempt:
        """A measurement of one of the configurations under way; see ``SearchLoop.attempt``."""
        return self._loop.attempt()

    def finish(self, made: Made) -> None:
        """Learn what was measured, and keep it."""
        loop, measurement = self._loop, self._loop.finish(made)
        self._writer.put(
            Finished(
                measurement=measurement,
                started_at=made.started_at,
                finished_at=made.finished_at,
            )
        )
        self._untold.append(
            Tried(
                measurement=measurement,
                tried=len(loop.measured),
                best_us=loop.best_us,
                default_us=loop.default_us,
            )
        )
        self._tell_kept()

    def choose(self) -> Selection | None:
        """Time the finalists beside the default, choose, and keep the selection.

        A selection that was made from exactly these measurements is returned as it is.

        Returns:
            The selection; None where no configuration works.
        """
        self.flush()
        kept = self._store.selection(self._record)
        if kept is not None and self._stands(kept.own):
            if kept.exchanged is not None:
                self._store.keep_selection(self._record, kept.own)
            return kept.own
        selection = self._select()
        if selection is not None:
            self._writer.keep_selection(selection)
        return selection

    def flush(self) -> None:
        """Wait until everything that was measured is in the database.

        Raises:
            ClaimLost: Another run has taken the study over.
            StorageError: It cannot be written.
        """
        self._writer.flush()
        self._tell_kept()

    @property
    def as_neighbour(self) -> Neighbour:
        """The shape and its measurements, for other shapes to learn from."""
        return Neighbour(self.shape, tuple(self._loop.measured.values()))

    @property
    def expected_gain(self) -> float:
        """Share of its latency that the shape is expected to gain if the search goes on.

        It is 0 for a shape whose known configuration was confirmed: it was searched before.
        """
        return 0.0 if self._is_confirmed else self._loop.expected_gain

    @property
    def has_grown(self) -> bool:
        """Whether anything was measured."""
        return len(self._loop.measured) > self._tried_before

    @property
    def outcomes(self) -> Counter[str]:
        """How many configurations ended in which outcome."""
        return self._loop.outcomes

    def _tell_kept(self) -> None:
        """Tell of the trials that are in the database: a kill never loses what was told."""
        while self._untold and self._told < self._writer.kept:
            self._told += 1
            self._watch(self._untold.popleft())

    # ----------------------------------------------------------------- confirming

    @property
    def _is_confirmed(self) -> bool:
        """Whether a configuration is known, and nothing measured speaks against it."""
        known, default = self._known, self._loop.measured.get(self._space.default)
        if known is None:
            return False
        found = self._loop.measured.get(known)
        if found is None or default is None or default.outcome is not Outcome.OK:
            return found is None or found.outcome is Outcome.OK
        return found.outcome is Outcome.OK and found.latency_us <= default.latency_us

    def _confirming(self, budget: Budget) -> Budget:
        """The budget, or the few trials that confirm a known configuration."""
        if not self._is_confirmed:
            return budget
        return replace(budget, trials=min(budget.trials, CONFIRMING_TRIALS))

    # ----------------------------------------------------------------- choosing

    def _stands(self, kept: Selection) -> bool:
        """Whether a selection was made from exactly the measurements in the present space."""
        return kept.config in self._loop.measured and kept.outcomes == dict(self.outcomes)

    def _select(self) -> Selection | None:
        default, is_moe = self._space.default, self.shape.op.is_moe
        those = finalists(default, self._loop.measured, is_moe=is_moe)
        if not any(map(self._space.may_choose, those)):
            return None
        self._watch(Choosing(shape=self.shape, finalists=len(those)))
        rule = is_settled_at_every_block_m if is_moe else is_settled
        deterministic = self._space.is_deterministic
        comparison = self._runner.compare(
            self.shape, those, partial(rule, default, deterministic=deterministic)
        )
        if not any(map(self._space.may_choose, comparison.samples_us)):
            return None
        return Selection.of_samples(
            self.shape,
            default,
            comparison.samples_us,
            outcomes=self.outcomes,
            states=comparison.states,
            replayed=self._runner.replayed,
            deterministic=deterministic,
        )
