"""The search of one shape: ask Optuna, measure, tell Optuna, until the budget is spent.

Everything is in memory. A run writes every measurement to a database (``ShapeTuner``); a contest of
samplers does not. Both search with this loop, so that a contest shows what a run does.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import optuna
from optuna.study import Study
from optuna.trial import Trial, TrialState

from autotune.choose.finalists import best_latencies_us
from autotune.choose.reach import next_block_m
from autotune.launch.config import KernelConfig
from autotune.launch.space import SearchSpace
from autotune.measure import Measurement, Outcome, Runner
from autotune.measure.racing import SlowerThan
from autotune.search.attempt import Attempt, Made
from autotune.search.budget import Budget, expected_gain
from autotune.search.pruners import RacingPruner
from autotune.search.samplers.by_name import SamplerMaker, make_sampler
from autotune.search.samplers.encoding import Positions
from autotune.search.samplers.objective import CONSTRAINT, constraint, frozen_trial, verdict
from autotune.search.samplers.transfer import Neighbour, nearest
from autotune.search.samplers.untried import Untried
from autotune.store import study_name

#: Trials that every ``block_m`` gets even where the belief says that it is out of reach: the other
#: ops of its layer may leave no choice.
FEWEST_OF_BLOCK_M = 2


#: What is under way is given up only once this share of a budget's fewest trials is measured.
_SURE = 0.75


class SearchLoop:
    """An Optuna study in memory, and the configurations that are measured or under way.

    Call ``ask`` and then ``measure``, again and again, until ``ask`` returns False.

    Attributes:
        space: The configurations to choose from.
        measured: The measurement of every configuration tried, in the order in which they ended.
        sampler_s: Seconds spent so far on making the sampler and asking it.
    """

    def __init__(
        self,
        runner: Runner,
        space: SearchSpace,
        *,
        sampler: str | SamplerMaker,
        seed: int,
        finished: Sequence[Neighbour] = (),
        first: KernelConfig | None = None,
    ) -> None:
        """Begin a search.

        Args:
            runner: Measures configurations.
            space: The configurations to choose from.
            sampler: One of ``SAMPLERS``, or a function that makes another sampler.
            seed: The same seed makes the same choices.
            finished: Other shapes that were searched before, to learn from.
            first: The configuration to try right after the default; None for none.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self.measured: dict[KernelConfig, Measurement] = {}
        self._runner, self._shape = runner, space.shape
        self._first = [space.default, *([] if first is None else [first])]
        self._best_us: list[float] = []
        self._pending: dict[KernelConfig, Trial] = {}
        #: The rule that was made last, with what was measured and under way then.
        self._rule: tuple[tuple[int, tuple[KernelConfig, ...]], SlowerThan] | None = None
        #: The gains that were expected last, with how many were measured and under way then.
        self._said: tuple[tuple[int, int], Mapping[int | None, float]] | None = None
        #: How many were measured and under way when it was last asked whether to give up.
        self._kept_on: tuple[int, int] | None = None
        started = time.perf_counter()
        self._positions = Positions(space)
        self._untried = Untried(space, self._positions)
        make = sampler if callable(sampler) else partial(make_sampler, sampler)
        self._sampler = make(
            space,
            self._untried,
            self._positions,
            seed=f"{seed}/{study_name(runner.environment, self._shape)}",
            neighbours=nearest(self._shape, finished),
        )
        self._pruner = RacingPruner(alike="block_m" if self._shape.op.is_moe else None)
        self._study: Study = optuna.create_study(sampler=self._sampler, pruner=self._pruner)
        self.sampler_s = time.perf_counter() - started

    def take_over(self, measurement: Measurement) -> None:
        """Let the search know what an earlier run measured.

        A measurement outside the present space is passed over.
        """
        config = self.space.canonical(measurement.config)
        if self.space.rejection(config) is not None or config in self.measured:
            return
        if not self.space.may_choose(config):
            self._untried.take(config)
            self._note(config, measurement)
            return
        trial = frozen_trial(
            measurement,
            params=self._positions.params(config),
            distributions=self._positions.distributions,
        )
        self._study.add_trial(trial)
        self._untried.take(config)
        self._note(config, measurement)

    @property
    def pending(self) -> list[KernelConfig]:
        """The configurations under way, oldest first."""
        return list(self._pending)

    def ask(self, budget: Budget, *, at_most: int | None = None) -> bool:
        """Choose the next configurations.

        Args:
            budget: Says when the search is over.
            at_most: How many configurations to have under way; by default as many as the runner
                wants.

        Returns:
            Whether a configuration is under way. If not, the search is over.
        """
        started = time.perf_counter()
        most = self._runner.lookahead if at_most is None else at_most
        while len(self._pending) < most and len(self._untried):
            tried = len(self.measured) + len(self._pending)
            if budget.is_spent(tried) or self._is_enough(budget):
                self._give_up(budget)
                break
            self._choose()
        self.sampler_s += time.perf_counter() - started
        return bool(self._pending)

    def measure(self) -> Measurement:
        """Measure one of the configurations under way, whichever the runner has ready first."""
        return self.finish(self.attempt().made_by(self._runner))

    def attempt(self) -> Attempt:
        """A measurement of one of the configurations under way, for ``finish`` to learn from."""
        return Attempt(shape=self._shape, configs=tuple(self._pending), rule=self._slower_than())

    def finish(self, made: Made) -> Measurement:
        """Learn what was measured.

        It counts even where the search has given the configuration up meanwhile.
        """
        measurement = made.measurement
        trial = self._pending.pop(measurement.config, None)
        if trial is None:
            self.take_over(measurement)
            return measurement
        for samples_us in made.attempt.races:
            trial.report(statistics.median(samples_us), step=len(samples_us))
        if self.space.may_choose(measurement.config):
            trial.set_constraint(CONSTRAINT, constraint(measurement))
            state, value = verdict(measurement)
            self._study.tell(trial, value, state=state)
        else:  # no sampler reads such a trial, and no other is cut short for being slower
            self._study.tell(trial, state=TrialState.FAIL)
        self._note(measurement.config, measurement)
        return measurement

    def _slower_than(self) -> SlowerThan:
        """What is plainly too slow, by what is measured now.

        The default is needed in full: everything is compared with it.
        """
        known = len(self.measured), tuple(self._pending)
        if self._rule is None or self._rule[0] != known:
            best_us = self._pruner.bests_us(self._study)
            found = {
                config: best_us(self._positions.params(config))
                for config in self._pending
                if config != self.space.default
            }
            rule = SlowerThan({config: us for config, us in found.items() if us is not None})
            self._rule = known, rule
        return self._rule[1]

    @property
    def expected_gain(self) -> float:
        """Share of its latency that the shape is expected to gain if the search goes on."""
        return max(self._gains().values(), default=0.0)

    @property
    def outcomes(self) -> Counter[str]:
        """How many configurations ended in which outcome."""
        return Counter(one.outcome.value for one in self.measured.values())

    @property
    def best_us(self) -> float | None:
        """The lowest latency that may be chosen so far, microseconds; None where there is none."""
        best_us = self._lowest_us
        return None if math.isinf(best_us) else best_us

    @property
    def default_us(self) -> float | None:
        """The default's latency, microseconds; None where it is not measured or does not run."""
        found = self.measured.get(self.space.default)
        return found.latency_us if found is not None and found.outcome is Outcome.OK else None

    @property
    def _lowest_us(self) -> float:
        return self._best_us[-1] if self._best_us else math.inf

    def _note(self, config: KernelConfig, measurement: Measurement) -> None:
        self.measured[config] = measurement
        counts = measurement.outcome is Outcome.OK and self.space.may_choose(config)
        us = measurement.latency_us if counts else math.inf
        self._best_us.append(min(self._lowest_us, us))

    # ----------------------------------------------------------------- asking

    def _is_enough(self, budget: Budget) -> bool:
        tried = len(self.measured) + len(self._pending)
        if budget.least_gain is None or tried < budget.fewest:
            return False
        if not self._sampler.is_informed and len(self.space.configs) <= budget.trials:
            return False
        return budget.is_enough(self.expected_gain, tried)

    def _give_up(self, budget: Budget) -> None:
        """Drop what is under way, if that and all others are expected to gain too little.

        A configuration may be compiled for many seconds, and the slowest to compile win least.
        """
        if not self._pending or budget.least_gain is None or not self._sampler.is_informed:
            return
        counts = (len(self.measured), len(self._pending))
        if len(self.measured) < _SURE * budget.fewest or counts == self._kept_on:
            return
        self._kept_on = counts
        of: set[int | None] = {None}
        if self._shape.op.is_moe:
            of = {*self._untried.block_ms_left, *(config.block_m for config in self._pending)}
        gains = (
            self._sampler.expected_gain(self._study, block_m=block_m, undone=True) for block_m in of
        )
        if max(math.inf if gain is None else gain for gain in gains) < budget.least_gain:
            for config in {*self._pending} - {self.space.default}:
                self._study.tell(self._pending.pop(config), state=TrialState.FAIL)
                self._untried.put_back(config)

    def _gains(self) -> Mapping[int | None, float]:
        """The expected gain of going on.

        A MoE op needs the best of every ``block_m`` in reach, so it has a gain for each of them.
        """
        counts = (len(self.measured), len(self._pending))
        if self._said is None or self._said[0] != counts:
            of: list[int | None] = [None] * bool(len(self._untried))
            if self._shape.op.is_moe:
                of = [*sorted(self._untried.block_ms_left)]
            self._said = counts, {block_m: self._gain(block_m) for block_m in of}
        return self._said[1]

    def _gain(self, block_m: int | None) -> float:
        is_informed = self._sampler.is_informed
        if block_m is not None and not is_informed:
            return math.inf
        said = self._sampler.expected_gain(self._study, block_m=block_m)
        if said is not None and is_informed:
            return said
        # Without neighbours the model has only what it measured, and may miss a whole region.
        return max(expected_gain(self._best_us), said or 0.0)

    def _choose(self) -> None:
        # After an interruption the default may be unmeasured though later configurations are done.
        for config in self._first:
            if config not in self.measured and config not in self._pending:
                self._study.enqueue_trial(self._positions.params(config))
                break
        if self._shape.op.is_moe:
            self._untried.look_among(self._next_block_m())
        trial = self._study.ask(self._positions.distributions)
        config = self._positions.config(trial.params)
        self._pending[config] = trial
        self._untried.take(config)

    def _next_block_m(self) -> int | None:
        tried = Counter(dict.fromkeys(self.space.axes["block_m"], 0))
        tried.update(config.block_m for config in (*self.measured, *self._pending))
        if not self._sampler.is_informed:
            best_us = best_latencies_us(self.measured)
            return next_block_m(self._untried.block_ms_left, tried, best_us)
        gains = self._gains()
        new = [each for each in gains if each is not None and tried[each] < FEWEST_OF_BLOCK_M]
        return min(new, default=None) or max(gains, key=lambda each: gains[each], default=None)
