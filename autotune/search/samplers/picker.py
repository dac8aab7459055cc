"""Picks the next configuration from a list: it scores all that are untried.

A Gaussian process (``surrogate``) ranks the whole list by figures that mean the same for every
shape (``features``). Configurations under way lower the spread around them, so that configurations
chosen together lie far apart. Knows nothing of Optuna.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autotune.search.samplers.features import RAW, scaled
from autotune.search.samplers.surrogate import (
    Expected,
    Floats,
    Surrogate,
    expected_improvement,
)

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

#: An informed search begins with the default and the configurations that the belief puts first. The
#: best of a space was among the first twelve in nine of ten recorded shapes.
_BELIEVED = 6

#: The expected gain is that of as many trials again, of this many at least, told from so many draws
#: of their latencies.
_LIKELY, _DRAWS = 8, 256

#: How much the model is trusted when it says what is to be gained: a gain of 3 % that it promised
#: and that did not come halves what it says.
_TRUST = 0.03


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

    def of_done(self) -> History:
        """The history without trials under way."""
        rows = [row for row, is_done in zip(self.rows, self.done, strict=True) if is_done]
        return History(rows, self.logs[self.done], self.failed[self.done], self.done[self.done])


class Picker:
    """Picks one configuration of a list after another."""

    def __init__(self, raw: Floats, prior: Floats | None) -> None:
        """Prepare the model of the list.

        Args:
            raw: The ``features`` of its configurations, (configurations, figures).
            prior: The squashed logarithms of latencies that finished shapes predict,
                (configurations,); None where none is known.
        """
        self._raw = raw[:, :RAW]
        self._points = scaled(raw)
        self._surrogate = Surrogate(self._points, prior)
        self.is_informed = prior is not None
        kinds: dict[bytes, int] = {}
        self._kinds = np.array([kinds.setdefault(row.tobytes(), len(kinds)) for row in raw])

    def pick(self, history: History, free: npt.NDArray[np.int_], rng: np.random.Generator) -> int:
        """The place of the configuration to try next.

        Args:
            history: The configurations asked for so far.
            free: The places that may be chosen, at least one.
            rng: Draws the candidates of space-filling picks.
        """
        free = self._unlike(history, free)
        if not self.is_ready(history):
            return self._far_away(history, free, rng)
        if self.is_informed and len(history.rows) <= _BELIEVED:
            prior = self._surrogate.prior[free]
            return int(free[np.argmax((prior.max() - prior) * self._chance(history, free))])
        expected = self._surrogate.predict(history.rows, history.logs)
        return self._best(history, free, expected)

    def _unlike(self, history: History, free: npt.NDArray[np.int_]) -> npt.NDArray[np.int_]:
        """The places without copies of what was asked for, while there are others.

        Configurations of equal figures compile to one binary: they differ in the stages of a masked
        loop, which Triton does not pipeline (554 of 554 pairs of vLLM 0.33.0's shrink, Triton 3.6).
        """
        fresh = free[~np.isin(self._kinds[free], self._kinds[history.rows])]
        return fresh if len(fresh) else free

    def is_ready(self, history: History) -> bool:
        """Whether the model knows enough to be asked."""
        return self.is_informed or bool(np.isfinite(history.logs).sum() >= _FEWEST)

    def expected_gain(
        self, history: History, free: npt.NDArray[np.int_], *, reach: float | None = None
    ) -> float:
        """The expected gain of as many trials again, as a share of the latency.

        It is the mean, over draws from the model, of how much faster than the best known one the
        fastest of the likeliest configurations is. The model's spread is scaled by how wrong its
        predictions of this shape were so far, and what it says by how much of what it promised has
        come.

        Args:
            history: The configurations asked for so far.
            free: The places that are left to choose from, at least one.
            reach: Where these are all of one ``block_m``: how many times as long as the best of
                all its best may take and still count. None where it is the whole space.
        """
        expected = self._surrogate.predict(history.rows, history.logs)
        rows = np.array(history.rows, dtype=int)
        known = rows[np.isfinite(history.logs)]
        if not len(known):
            return math.inf
        best = expected.mean[known].min()
        if reach is not None:
            alike = known[np.isin(self._raw[known, 0], self._raw[free, 0])]
            within = best + math.log(reach)
            best = min(within, expected.mean[alike].min(initial=np.inf))
        chance = self._chance(history, free)
        improvement = chance * expected_improvement(
            best, expected.mean[free], expected.spread[free]
        )
        likely = _largest(improvement, max(_LIKELY, len(rows)))
        drawn = self._surrogate.draws(history.rows, expected, free[likely], _DRAWS)
        works = np.random.default_rng(1).random(drawn.shape) < chance[likely]
        fastest = np.where(works, drawn, np.inf).min(axis=1)
        gained, promised = self._surrogate.hindsight(history.rows, history.logs)
        kept = (gained + _TRUST) / (promised + _TRUST)
        return kept * float(np.maximum(best - fastest, 0.0).mean())

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
            score = expected_improvement(mean[known].min(), mean[free], spread[free])
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
        weights = np.array((works, history.failed), dtype=float)
        working, failing = self._surrogate.votes(history.rows, weights)[:, free]
        chance: Floats = (_WORKING + working) / (_WORKING + _FAILING + working + failing)
        return chance


def _largest(values: Floats, count: int) -> npt.NDArray[np.intp]:
    """Places of the largest values, the largest first, and of equal ones the first first."""
    least = np.partition(values, -count)[-count] if count < len(values) else -np.inf
    some = np.flatnonzero(values >= least)
    return some[np.argsort(-values[some], kind="stable")[:count]]
