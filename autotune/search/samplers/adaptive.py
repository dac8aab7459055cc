"""A sampler of our own: it scores untried configurations, and learns from every outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.choose.reach import REACH
from autotune.launch.config import KernelConfig
from autotune.launch.space import SearchSpace
from autotune.search.samplers._base import UntriedSampler
from autotune.search.samplers.chooser import Chooser
from autotune.search.samplers.encoding import Positions
from autotune.search.samplers.objective import CONSTRAINT
from autotune.search.samplers.picker import History
from autotune.search.samplers.transfer import Neighbour
from autotune.search.samplers.untried import Untried


class AdaptiveSampler(UntriedSampler):
    """The sampler that learns from all trials, and from finished shapes that are near."""

    def __init__(
        self,
        untried: Untried,
        positions: Positions,
        space: SearchSpace,
        *,
        seed: str,
        neighbours: Sequence[Neighbour] = (),
    ) -> None:
        """Prepare to search one space.

        Args:
            untried: The configurations that are left.
            positions: The encoding of trial parameters.
            space: The space.
            seed: Any text; the same text makes the same choices.
            neighbours: Finished shapes that are near, the nearest first.
        """
        super().__init__(untried, positions, seed=seed)
        self._configs = space.configs
        self._chooser = Chooser(space, neighbours)
        self._seen: dict[int, _Seen] = {}
        self.is_informed = self._chooser.is_informed

    def choose(self, study: Study, trial: FrozenTrial, seed: int) -> KernelConfig:
        """The untried configuration with the highest score."""
        free, rng = self._untried.candidates, np.random.default_rng(seed)
        return self._configs[self._chooser.choose(self._history(study, trial), free, rng)]

    def expected_gain(
        self, study: Study, *, block_m: int | None = None, undone: bool = False
    ) -> float | None:
        """The model's expected gain; None while it knows neither neighbours nor measurements."""
        free = self._untried.left_of(block_m)
        history = self._history(study)
        if undone:
            under_way = np.array(history.rows, dtype=int)[~history.done]
            alike = [row for row in under_way if block_m in (None, self._configs[row].block_m)]
            free = np.union1d(free, np.array(alike, dtype=int))
            history = history.of_done()
        if not len(free):
            return 0.0
        if not self._chooser.is_ready(history):
            return None
        return self._chooser.expected_gain(history, free, reach=block_m and REACH)

    def _place(self, params: Mapping[str, Any]) -> int | None:
        if params.keys() != self._positions.axes.keys():
            return None
        return self._untried.place(self._positions.config(params))

    def _history(self, study: Study, trial: FrozenTrial | None = None) -> History:
        seen: dict[int, _Seen] = {}
        number = None if trial is None else trial.number
        for other in study.get_trials(deepcopy=False):
            # FAIL is a fault of the tool or the machine: it says nothing about the configuration.
            if other.number == number or other.state is TrialState.FAIL:
                continue
            found = self._look_at(other)
            if found.place is not None:
                seen[found.place] = found
        failed = np.array([each.has_failed for each in seen.values()], dtype=bool)
        logs = np.array([each.log for each in seen.values()], dtype=float)
        done = np.array([each.trial.state.is_finished() for each in seen.values()], dtype=bool)
        return History(list(seen), logs, failed, done)

    def _look_at(self, trial: FrozenTrial) -> _Seen:
        """What a trial says; Optuna has another object for it once that changes."""
        kept = self._seen.get(trial.number)
        if kept is None or kept.trial is not trial:
            place = self._place(trial.params)
            kept = _Seen(trial, place, _has_failed(trial), _log_latency(trial))
            self._seen[trial.number] = kept
        return kept


class _Seen(NamedTuple):
    """What is read from a trial.

    Attributes:
        trial: The trial.
        place: The place of its configuration; None where it is outside the space.
        has_failed: Whether its configuration cannot work.
        log: The logarithm of its latency; NaN where that is unknown.
    """

    trial: FrozenTrial
    place: int | None
    has_failed: bool
    log: float


def _has_failed(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.PRUNED and trial.constraints.get(CONSTRAINT, 0.0) > 0.0


def _log_latency(trial: FrozenTrial) -> float:
    """Logarithm of a trial's median latency, or of its latest median if it was cut short."""
    if not trial.state.is_finished() or _has_failed(trial):
        return math.nan
    latency = trial.value if trial.state is TrialState.COMPLETE else None
    if latency is None and trial.intermediate_values:
        latency = trial.intermediate_values[max(trial.intermediate_values)]
    return math.log(latency) if latency is not None and latency > 0.0 else math.nan
