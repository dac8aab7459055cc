"""A sampler of our own: it scores every untried configuration, and learns from every outcome.

A Gaussian process (``surrogate``) ranks the whole list by figures that mean the same for every
shape (``features``). Configurations under way lower the spread around them, so that configurations
chosen together lie far apart.
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

#: Latencies that the model needs before it is asked, unless it learns from a neighbour. With 8 or
#: 14 a search took 5 or 8 trials more to come within 2 % of the best (shipped recording).
_FEWEST = 4

#: A space-filling pick takes the farthest of this many random candidates.
_DRAWN = 16

#: An exploring pick rates a configuration by its mean less this many spreads. With 3
#: the mean regret after 100 trials was lower than with 1 or 2 where one configuration at a time was
#: under way, and the same where several were.
_BOLDNESS = 3.0

#: Only configurations within twice the fastest expected latency (e^0.7) are explored. Without this
#: limit one in three exploring picks took ten times the fastest latency, because squashed
#: logarithms make all slow configurations alike.
_EXPLORED = 0.7

#: Of this many picks one explores, one looks beside the best, and two go by expected improvement.
_CYCLE = 4

#: A configuration beside the best is worth a look if its spread is above this share of the largest
#: spread. Below, it is a copy of one measured: only the stages differ, say, of a loop without any.
_UNKNOWN = 0.3

#: What a search begins with, as if it had seen one configuration: nine in ten work.
_WORKING, _FAILING = 0.9, 0.1

#: Added to a score to put it first: more than any difference of two squashed logarithms.
_FIRST = 1.0

_erf = np.frompyfunc(math.erf, 1, 1)


@dataclass(frozen=True, slots=True)
class History:
    """The configurations asked for so far, in the order of asking.

    Attributes:
        rows: The configurations' places in the list of all.
        logs: Logarithms of their latencies; NaN where a configuration failed or is under way.
        failed: Whether each configuration cannot work.
        done: Whether each configuration's trial has ended.
    """

    rows: list[int]
    logs: Floats
    failed: npt.NDArray[np.bool_]
    done: npt.NDArray[np.bool_]


class Chooser:
    """Picks the next configuration from a list. Knows nothing of Optuna."""

    def __init__(self, space: SearchSpace, neighbours: Sequence[Neighbour] = ()) -> None:
        """Prepare the model of a space.

        Args:
            space: The configurations to choose from.
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
            history: The configurations asked for so far.
            free: The places that may be chosen, at least one.
            rng: Draws the candidates of space-filling picks.
        """
        if np.isfinite(history.logs).sum() < _FEWEST and not self._is_informed:
            return self._far_away(history, free, rng)
        expected = self._surrogate.predict(history.rows, history.logs)
        return self._best(history, free, expected)

    def _far_away(
        self, history: History, free: npt.NDArray[np.int_], rng: np.random.Generator
    ) -> int:
        """Of some random candidates, the one farthest from everything asked for so far."""
        drawn = rng.choice(free, min(_DRAWN, len(free)), replace=False)
        if not history.rows:
            return int(drawn[0])
        apart = self._points[drawn][:, None] - self._points[history.rows]
        distance = (apart**2).sum(axis=2).min(axis=1)
        return int(drawn[np.argmax(distance * self._chance(history, drawn))])

    def _best(self, history: History, free: npt.NDArray[np.int_], expected: Expected) -> int:
        mean, spread, slowness = expected
        rows = np.array(history.rows, dtype=int)
        # Where only some values of block_m may be chosen, only their latencies are to be beaten.
        known = rows[np.isfinite(history.logs)]
        known = known[np.isin(self._raw[known, 0], self._raw[free, 0])]
        cycle, turn = divmod(len(rows), _CYCLE)
        ceiling = mean[free].max()
        if turn == 2 or not len(known):
            score = ceiling - mean[free] + _BOLDNESS * spread[free]
            score[slowness[free] > slowness[free].min() + _EXPLORED] = 0.0
        elif turn == 0:
            incumbent = known[np.argmin(mean[known])]
            # Its neighbours come first. Where none is left, the lowest mean wins.
            near = self._is_near(free, incumbent, changes=1 + cycle % 2)
            near &= spread[free] > _UNKNOWN * spread[free].max()
            score = ceiling - mean[free] + _FIRST * near
        else:
            score = _improvement(mean[known].min(), mean[free], spread[free])
        return int(free[np.argmax(score * self._chance(history, free))])

    def _is_near(
        self, free: npt.NDArray[np.int_], row: int, *, changes: int
    ) -> npt.NDArray[np.bool_]:
        """Whether configurations differ from ``row`` by one step in exactly ``changes`` parameters.

        Two changes together may be faster where each alone is slower: a block halved and another
        doubled, for example.
        """
        steps = np.abs(self._raw[free] - self._raw[row])
        near: npt.NDArray[np.bool_] = (steps > 0).sum(axis=1) == changes
        near &= steps.max(axis=1) <= 1
        return near

    def _chance(self, history: History, free: npt.NDArray[np.int_]) -> Floats:
        """How likely configurations are to work, judged by similar ones that worked or failed."""
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
    # Where all improvements are too small for floats to tell apart, z decides the order.
    return np.maximum(improvement, 0.0) + 1e-12 / (1.0 + np.exp(np.clip(-z, -50.0, 50.0)))


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
        self._places = {
            tuple(positions.params(config).values()): place
            for place, config in enumerate(space.configs)
        }
        self._chooser = Chooser(space, neighbours)

    def choose(self, study: Study, trial: FrozenTrial, seed: int) -> KernelConfig:
        """The untried configuration with the highest score."""
        free, rng = self._untried.candidates, np.random.default_rng(seed)
        return self._configs[self._chooser.choose(self._history(study, trial), free, rng)]

    def _history(self, study: Study, trial: FrozenTrial) -> History:
        seen: dict[int, FrozenTrial] = {}
        for other in study.get_trials(deepcopy=False):
            key = tuple(other.params[name] for name in self._positions.axes if name in other.params)
            place = self._places.get(key)
            # FAIL is a fault of the tool or the machine: it says nothing about the configuration.
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
    """Logarithm of a trial's median latency, or of its latest median if it was cut short."""
    if not trial.state.is_finished() or _has_failed(trial):
        return math.nan
    latency = trial.value if trial.state is TrialState.COMPLETE else None
    if latency is None and trial.intermediate_values:
        latency = trial.intermediate_values[max(trial.intermediate_values)]
    return math.log(latency) if latency is not None and latency > 0.0 else math.nan
