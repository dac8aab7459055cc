"""A whole search of a recorded shape in memory: what the tuner does, with no database beside it."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.study import Study
from optuna.trial import Trial

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Measurement, Runner
from autotune.plan.file import ADAPTIVE
from autotune.search.objective import CONSTRAINT, constraint, verdict
from autotune.search.pruners import RacingPruner
from autotune.search.samplers.by_name import make_sampler
from autotune.search.samplers.encoding import Positions
from autotune.search.samplers.transfer import Neighbour, nearest
from autotune.search.samplers.untried import Untried


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of a search.

    Attributes:
        space: What was searched.
        measurements: In the order in which they came.
        sampler_s: Time that making the sampler and asking it took, seconds.
        has_failed: Whether the sampler broke down, which only those of others may.
    """

    space: SearchSpace
    measurements: tuple[Measurement, ...]
    sampler_s: float
    has_failed: bool = False


def search(  # noqa: PLR0913 - a search has as many sides
    runner: Runner,
    shape: KernelShape,
    *,
    sampler: str,
    seed: int,
    trials: int,
    lookahead: int = 1,
    finished: Sequence[Neighbour] = (),
) -> Replayed:
    """Search one shape.

    Args:
        runner: Answers for the first of what it is given.
        shape: The shape.
        sampler: Its name.
        seed: The same seed makes the same choices, and the same order of answers.
        trials: Distinct configurations.
        lookahead: How many are under way; any of them is answered next.
        finished: Shapes that may be learned from.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = runner.space(shape, {})
    positions = Positions(space)
    untried = Untried(space, positions)
    text = f"{seed}/{shape.op.value}/{shape.label}"
    started = time.perf_counter()
    neighbours = nearest(shape, finished) if sampler == ADAPTIVE else ()
    chosen = make_sampler(sampler, space, untried, positions, seed=text, neighbours=neighbours)
    sampler_s = time.perf_counter() - started
    study = optuna.create_study(sampler=chosen, pruner=RacingPruner())
    study.enqueue_trial(positions.params(space.default))
    order = random.Random(text)  # noqa: S311 - no secret
    pending: dict[KernelConfig, Trial] = {}
    measurements: list[Measurement] = []
    while len(measurements) < min(trials, len(space.configs)):
        started = time.perf_counter()
        while len(pending) < lookahead and len(untried) and untried.taken < trials:
            trial = study.ask(positions.distributions)
            config = positions.config(trial.params)
            untried.take(config)
            pending[config] = trial
        sampler_s += time.perf_counter() - started
        config = order.choice(list(pending))
        measurements.append(_measured(runner, study, space, config, pending.pop(config)))
    return Replayed(space=space, measurements=tuple(measurements), sampler_s=sampler_s)


def _measured(
    runner: Runner, study: Study, space: SearchSpace, config: KernelConfig, trial: Trial
) -> Measurement:
    def is_too_slow(_config: KernelConfig, samples_us: Sequence[float]) -> bool:
        if config == space.default:
            return False
        trial.report(statistics.median(samples_us), step=len(samples_us))
        return trial.should_prune()

    measurement = runner.measure(space.shape, [config], is_too_slow)
    trial.set_constraint(CONSTRAINT, constraint(measurement))
    state, value = verdict(measurement)
    study.tell(trial, value, state=state)
    return measurement
