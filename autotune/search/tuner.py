"""Tuning one shape: an Optuna study in memory, asked and told until the budget is spent."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial

import optuna
from optuna.study import Study
from optuna.trial import Trial

from autotune.choose.finalists import best_latencies_us, finalists
from autotune.choose.reach import next_block_m
from autotune.choose.selection import Selection, is_settled, is_settled_at_every_block_m, select
from autotune.launch.config import KernelConfig
from autotune.launch.space import SearchSpace
from autotune.measure import Measurement, Outcome, Runner
from autotune.search.budget import Budget, expected_gain
from autotune.search.dashboard.mirror import TrialMirror
from autotune.search.events import Choosing, Opened, Tried, Watch, unwatched
from autotune.search.objective import CONSTRAINT, constraint, frozen_trial, verdict
from autotune.search.pruners import RacingPruner
from autotune.search.samplers.by_name import make_sampler
from autotune.search.samplers.encoding import Positions
from autotune.search.samplers.transfer import Neighbour, nearest
from autotune.search.samplers.untried import Untried
from autotune.search.writer import StudyWriter
from autotune.store import Finished, Store
from autotune.store.store import study_name


class ShapeTuner:
    """Finds the best configuration of one shape."""

    def __init__(  # noqa: PLR0913 - each by its name
        self,
        runner: Runner,
        space: SearchSpace,
        *,
        store: Store,
        mirror: TrialMirror,
        sampler: str,
        seed: int,
        finished: Sequence[Neighbour] = (),
        watch: Watch = unwatched,
    ) -> None:
        """Open the shape's study and take over what was measured before.

        Args:
            runner: Measures.
            space: Of the shape.
            store: Keeps measurements and selections.
            mirror: Keeps Optuna's trials.
            sampler: One of ``SAMPLERS``.
            seed: The same seed makes the same choices.
            finished: Other shapes, searched on the same device with the same kernels.
            watch: Told of every trial.
        """
        self._watch = watch
        self._runner, self._space, self._shape = runner, space, space.shape
        self._store = store
        name = study_name(runner, self._shape)
        self._record = store.study(name, self._shape, runner.environment)
        self._writer = StudyWriter(store, mirror, self._record)
        self._positions = Positions(space)
        self._untried = Untried(space, self._positions)
        self._study: Study = optuna.create_study(
            sampler=make_sampler(
                sampler,
                space,
                self._untried,
                self._positions,
                seed=f"{seed}/{name}",
                neighbours=nearest(self._shape, finished),
            ),
            pruner=RacingPruner(alike="block_m" if self._shape.op.is_moe else None),
        )
        self._measured: dict[KernelConfig, Measurement] = {}
        self._best_us: list[float] = []
        self._pending: dict[KernelConfig, Trial] = {}
        for item in self._writer.earlier:
            self._take_over(item.measurement)
        runner.recall(self._measured.values())

    def run(self, budget: Budget) -> Selection | None:
        """Search, time the finalists beside the default, and choose.

        A shape whose selection stands, with nothing measured since, is not timed again.

        Returns:
            The selection; None where no configuration works.
        """
        most = min(budget.trials, len(self._space.configs))
        best = {"best_us": self._fastest_us, "default_us": self._default_us}
        self._watch(Opened(shape=self._shape, tried=len(self._measured), most=most, **best))
        try:
            self._search(budget)
        finally:
            self._writer.close()
        kept = self._store.selection(self._record)
        if kept is not None and self._stands(kept):
            return kept
        selection = self._select()
        if selection is not None:
            self._store.keep_selection(self._record, selection)
            self._writer.keep_note(selection)
        return selection

    @property
    def as_neighbour(self) -> Neighbour:
        """What other shapes may learn from this one."""
        return Neighbour(self._shape, tuple(self._measured.values()))

    @property
    def expected_gain(self) -> float:
        """By what share of its latency going on is expected to make the shape faster."""
        return expected_gain(self._best_us) if len(self._untried) else 0.0

    @property
    def outcomes(self) -> Counter[str]:
        """How many configurations ended in which outcome."""
        return Counter(m.outcome.value for m in self._measured.values())

    @property
    def _fastest_us(self) -> float | None:
        """The lowest latency so far, microseconds; None where nothing has worked."""
        best_us = self._best_us[-1] if self._best_us else math.inf
        return None if math.isinf(best_us) else best_us

    @property
    def _default_us(self) -> float | None:
        """The default's latency, microseconds; None where it is not known, or does not run."""
        measured = self._measured.get(self._space.default)
        works = measured is not None and measured.outcome is Outcome.OK
        return measured.latency_us if measured is not None and works else None

    # ----------------------------------------------------------------- searching

    def _search(self, budget: Budget) -> None:
        while True:
            self._fill_pending(budget)
            if not self._pending:
                return
            started_at = _now()
            measurement = self._runner.measure(self._shape, list(self._pending), self._is_too_slow)
            self._tell(measurement)
            self._writer.put(
                Finished(measurement=measurement, started_at=started_at, finished_at=_now())
            )
            self._watch(
                Tried(
                    measurement=measurement,
                    tried=len(self._measured),
                    best_us=self._fastest_us,
                    default_us=self._default_us,
                )
            )

    def _fill_pending(self, budget: Budget) -> None:
        while len(self._pending) < self._runner.lookahead and len(self._untried):
            if budget.is_spent(len(self._measured) + len(self._pending)):
                return
            if self._is_enough(budget):
                return
            config = self._ask()
            self._untried.take(config)

    def _is_enough(self, budget: Budget) -> bool:
        # Of a MoE op the best of every block_m is wanted, not only the best of all.
        if self._shape.op.is_moe:
            return False
        return budget.is_enough(self._best_us, configs=len(self._space.configs))

    def _ask(self) -> KernelConfig:
        default = self._space.default
        # An interruption may have left the default unmeasured while others beside it were done.
        if default not in self._measured and default not in self._pending:
            self._study.enqueue_trial(self._positions.params(default))
        if self._shape.op.is_moe:
            self._untried.look_among(self._next_block_m())
        trial = self._study.ask(self._positions.distributions)
        config = self._positions.config(trial.params)
        self._pending[config] = trial
        return config

    def _next_block_m(self) -> int | None:
        tried = Counter(dict.fromkeys(self._space.axes["block_m"], 0))
        tried.update(config.block_m for config in (*self._measured, *self._pending))
        best_us = best_latencies_us(self._measured)
        return next_block_m(self._untried.block_ms_left, tried, best_us)

    def _is_too_slow(self, config: KernelConfig, samples_us: Sequence[float]) -> bool:
        if config == self._space.default:  # needed in full: everything is compared with it
            return False
        trial = self._pending[config]
        trial.report(statistics.median(samples_us), step=len(samples_us))
        return trial.should_prune()

    def _tell(self, measurement: Measurement) -> None:
        trial = self._pending.pop(measurement.config)
        trial.set_constraint(CONSTRAINT, constraint(measurement))
        state, value = verdict(measurement)
        self._study.tell(trial, value, state=state)
        self._note(measurement.config, measurement)

    def _take_over(self, measurement: Measurement) -> None:
        """Let the search know what an earlier run measured."""
        config = self._space.canonical(measurement.config)
        if self._space.rejection(config) is not None or config in self._measured:
            return
        trial = frozen_trial(
            measurement,
            params=self._positions.params(config),
            distributions=self._positions.distributions,
        )
        self._study.add_trial(trial)
        self._untried.take(config)
        self._note(config, measurement)

    def _note(self, config: KernelConfig, measurement: Measurement) -> None:
        self._measured[config] = measurement
        best_us = self._best_us[-1] if self._best_us else math.inf
        us = measurement.latency_us if measurement.outcome is Outcome.OK else math.inf
        self._best_us.append(min(best_us, us))

    # ----------------------------------------------------------------- choosing

    def _stands(self, kept: Selection) -> bool:
        """Whether a selection was made from exactly what is measured of the present axes."""
        return kept.config in self._measured and kept.outcomes == dict(self.outcomes)

    def _select(self) -> Selection | None:
        default, is_moe = self._space.default, self._shape.op.is_moe
        those = finalists(default, self._measured, is_moe=is_moe)
        if not those:
            return None
        self._watch(Choosing(shape=self._shape, finalists=len(those)))
        rule = is_settled_at_every_block_m if is_moe else is_settled
        comparison = self._runner.compare(self._shape, those, partial(rule, default))
        samples = comparison.samples_us
        if not samples:
            return None
        config, ratio = select(default, samples)
        return Selection(
            shape=self._shape,
            config=config,
            default=default,
            samples_us=samples,
            ratio=ratio,
            trials=len(self._measured),
            outcomes=dict(self.outcomes),
            states=comparison.states,
        )


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(tzinfo=None)
