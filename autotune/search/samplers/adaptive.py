"""A sampler of our own: every untried configuration is scored, every outcome teaches.

A Gaussian process ranks the whole list (``surrogate``) by figures that mean the same for every
shape (``features``). Configurations under way lower the spread around them, so that a batch spreads
out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.launch.config import KernelConfig
from autotune.launch.space import SearchSpace
from autotune.search.samplers._base import UntriedSampler
from autotune.search.samplers.encoding import Positions
from autotune.search.samplers.features import RAW, features, scaled
from autotune.search.samplers.objective import CONSTRAINT
from autotune.search.samplers.surrogate import Expected, Floats, Surrogate
from autotune.search.samplers.transfer import Neighbour, belief
from autotune.search.samplers.untried import Untried

#: Latencies that the model needs before it is asked, where no neighbour tells anything. With 8 or
#: 14 of them a search took 5 and 8 trials more to within 2 % of the best (shipped recording).
_FEWEST = 4

#: Candidates of which a space-filling pick takes the one farthest from what was asked for.
_DRAWN = 16

#: Spreads below the mean by which the exploring picks rate a configuration. With 3 the mean
#: regret after 100 trials was lower than with 1 or 2 one at a time, and no different in batches.
_BOLDNESS = 3.0

#: Logarithm over the fastest that is expected up to which configurations are explored: twice its
#: latency. Squashed, all that is slow is alike, and one in three exploring picks took ten times it.
_EXPLORED = 0.7

#: Of so many picks one explores and one polishes; the others take the expected improvement.
_CYCLE = 4

#: Of the largest spread, what a neighbour of the incumbent must have to be worth a look: below that
#: it is a copy of something measured, such as another number of stages for a loop without any.
_UNKNOWN = 0.3

#: Configurations that work or fail as if seen before anything was: nine in ten work.
_WORKING, _FAILING = 0.9, 0.1

#: More than any difference of two squashed logarithms.
_FIRST = 1.0

_erf = np.frompyfunc(math.erf, 1, 1)


@dataclass(frozen=True, slots=True)
class History:
    """What was asked for, in the order of asking.

    Attributes:
        rows: Places in the list of configurations.
        logs: Logarithms of latencies; NaN for what failed or is under way.
        failed: Whether the configuration cannot work.
        done: Whether anything is known.
    """

    rows: list[int]
    logs: Floats
    failed: npt.NDArray[np.bool_]
    done: npt.NDArray[np.bool_]


class Chooser:
    """Picks the next of a list of configurations. Knows nothing of Optuna."""

    def __init__(self, space: SearchSpace, neighbours: Sequence[Neighbour] = ()) -> None:
        """Look at a space.

        Args:
            space: What is chosen from.
            neighbours: Finished shapes that are near, the nearest first.
        """
        raw = features(space.shape, space.configs)
        self._raw = raw[:, :RAW]
        self._points = scaled(raw)
        self._surrogate = Surrogate(self._points, belief(space, neighbours))
        self._is_informed = bool(neighbours)

    def choose(self, history: History, free: npt.NDArray[np.int_], rng: np.random.Generator) -> int:
        """The place of the configuration to try next.

        Args:
            history: What was asked for so far.
            free: Places that may be chosen, at least one.
            rng: Draws the space-filling picks.
        """
        if np.isfinite(history.logs).sum() < _FEWEST and not self._is_informed:
            return self._far_away(history, free, rng)
        expected = self._surrogate.predict(history.rows, history.logs)
        return self._best(history, free, expected)

    def _far_away(
        self, history: History, free: npt.NDArray[np.int_], rng: np.random.Generator
    ) -> int:
        """Of some drawn at random, the one farthest from all that was asked for."""
        drawn = rng.choice(free, min(_DRAWN, len(free)), replace=False)
        if not history.rows:
            return int(drawn[0])
        apart = self._points[drawn][:, None] - self._points[history.rows]
        distance = (apart**2).sum(axis=2).min(axis=1)
        return int(drawn[np.argmax(distance * self._chance(history, drawn))])

    def _best(self, history: History, free: npt.NDArray[np.int_], expected: Expected) -> int:
        mean, spread, slowness = expected
        rows = np.array(history.rows, dtype=int)
        # Where only some block_m may be chosen, the best of these is what must be improved upon.
        known = rows[np.isfinite(history.logs)]
        known = known[np.isin(self._raw[known, 0], self._raw[free, 0])]
        cycle, turn = divmod(len(rows), _CYCLE)
        ceiling = mean[free].max()
        if turn == 2 or not len(known):
            score = ceiling - mean[free] + _BOLDNESS * spread[free]
            score[slowness[free] > slowness[free].min() + _EXPLORED] = 0.0
        elif turn == 0:
            incumbent = known[np.argmin(mean[known])]
            # Its neighbours come first; where none is left, whatever has the lowest mean.
            near = self._is_near(free, incumbent, changes=1 + cycle % 2)
            near &= spread[free] > _UNKNOWN * spread[free].max()
            score = ceiling - mean[free] + _FIRST * near
        else:
            score = _improvement(mean[known].min(), mean[free], spread[free])
        return int(free[np.argmax(score * self._chance(history, free))])

    def _is_near(
        self, free: npt.NDArray[np.int_], row: int, *, changes: int
    ) -> npt.NDArray[np.bool_]:
        """Whether a configuration differs from that of ``row`` by one step in so many parameters.

        Where one block is halved and another number doubled, each step alone may be slower.
        """
        steps = np.abs(self._raw[free] - self._raw[row])
        near: npt.NDArray[np.bool_] = (steps > 0).sum(axis=1) == changes
        near &= steps.max(axis=1) <= 1
        return near

    def _chance(self, history: History, free: npt.NDArray[np.int_]) -> Floats:
        """How likely configurations are to work, by what became of those alike."""
        if not history.failed.any():
            return np.ones(len(free))
        works = history.done & ~history.failed
        working, failing = (
            self._surrogate.votes(history.rows, each.astype(float))[free]
            for each in (works, history.failed)
        )
        chance: Floats = (_WORKING + working) / (_WORKING + _FAILING + working + failing)
        return chance


def _improvement(best: float, mean: Floats, spread: Floats) -> Floats:
    """Expected improvement on ``best`` (Jones, Schonlau and Welch, 1998, equation 15)."""
    z = (best - mean) / spread
    density = np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
    below = 0.5 * (1.0 + np.asarray(_erf(z / math.sqrt(2.0)), dtype=float))
    improvement: Floats = spread * (z * below + density)
    # Far below anything that floats tell apart, the order is that of z.
    return np.maximum(improvement, 0.0) + 1e-12 / (1.0 + np.exp(np.clip(-z, -50.0, 50.0)))


class AdaptiveSampler(UntriedSampler):
    """Learns from all trials of a study, and from finished shapes that are near."""

    def __init__(
        self,
        untried: Untried,
        positions: Positions,
        space: SearchSpace,
        *,
        seed: str,
        neighbours: Sequence[Neighbour] = (),
    ) -> None:
        """Learn about one space.

        Args:
            untried: What is left of the space.
            positions: The encoding of trial parameters.
            space: The space.
            seed: Any text; the same text makes the same choices.
            neighbours: Finished shapes that are near, the nearest first.
        """
        super().__init__(untried, positions, seed=seed)
        self._configs = space.configs
        self._places = {
            tuple(positions.params(config).values()): place
            for place, config in enumerate(space.configs)
        }
        self._chooser = Chooser(space, neighbours)

    def choose(self, study: Study, trial: FrozenTrial, seed: int) -> KernelConfig:
        """The configuration with the best prospects."""
        free, rng = self._untried.candidates, np.random.default_rng(seed)
        return self._configs[self._chooser.choose(self._history(study, trial), free, rng)]

    def _history(self, study: Study, trial: FrozenTrial) -> History:
        seen: dict[int, FrozenTrial] = {}
        for other in study.get_trials(deepcopy=False):
            key = tuple(other.params[name] for name in self._positions.axes if name in other.params)
            place = self._places.get(key)
            # FAIL is a fault of the tool or the machine: it says nothing of the configuration.
            if place is None or other.number == trial.number or other.state is TrialState.FAIL:
                continue
            seen[place] = other
        trials = list(seen.values())
        failed = np.array([_has_failed(other) for other in trials], dtype=bool)
        logs = np.array([_log_latency(other) for other in trials], dtype=float)
        done = np.array([other.state.is_finished() for other in trials], dtype=bool)
        return History(list(seen), logs, failed, done)


def _has_failed(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.PRUNED and trial.constraints.get(CONSTRAINT, 0.0) > 0.0


def _log_latency(trial: FrozenTrial) -> float:
    """Logarithm of the median in full, or of the running one where it was cut short."""
    if not trial.state.is_finished() or _has_failed(trial):
        return math.nan
    latency = trial.value if trial.state is TrialState.COMPLETE else None
    if latency is None and trial.intermediate_values:
        latency = trial.intermediate_values[max(trial.intermediate_values)]
    return math.log(latency) if latency is not None and latency > 0.0 else math.nan
