"""Chooses the next configuration of a space, however large.

What is expected of a configuration is reckoned anew for each after every measurement, and a space
of rank 64 has 30,000. So in a large one only the most promising are looked at: first by what
finished shapes predict, and again by what was measured each time that has doubled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autotune.launch.space import SearchSpace
from autotune.search.samplers.features import features, scaled
from autotune.search.samplers.picker import History, Picker
from autotune.search.samplers.surrogate import Floats, Rows, Surrogate
from autotune.search.samplers.transfer import Neighbour, belief

#: How many configurations are looked at.
_LOOKED_AT = 2048

#: Measurements by which the first look is taken again.
_FIRST_LOOK = 8


class Chooser:
    """Chooses one configuration of a space after another. Knows nothing of Optuna."""

    def __init__(
        self,
        space: SearchSpace,
        neighbours: Sequence[Neighbour] = (),
        *,
        looked_at: int = _LOOKED_AT,
    ) -> None:
        """Prepare the model of a space.

        Args:
            space: The configurations to choose from.
            neighbours: Finished shapes that are near, the nearest first.
            looked_at: How many configurations to look at. Without neighbours it is all of them.
        """
        self._raw = features(space.shape, space.listing.columns)
        self._prior = belief(space.shape, self._raw, neighbours)
        self.is_informed = self._prior is not None
        self._most = looked_at if self.is_informed else len(self._raw)
        # The layer of a MoE op needs the best of each block_m, so some of each are looked at.
        self._groups = self._raw[:, 0] if space.shape.op.is_moe else np.zeros(len(self._raw))
        self._stage = 0
        every = np.arange(len(self._raw))
        self._look(every if self._prior is None else self._promising(every, self._prior))

    def choose(self, history: History, free: Rows, rng: np.random.Generator) -> int:
        """The place of the configuration to try next.

        Args:
            history: The configurations asked for so far.
            free: The places that may be chosen, at least one.
            rng: Draws the candidates of space-filling picks.
        """
        seen, near = self._seen(history, free)
        return int(self._places[self._picker.pick(seen, near, rng)])

    def is_ready(self, history: History) -> bool:
        """Whether the model knows enough to be asked."""
        return self._picker.is_ready(history)

    def expected_gain(self, history: History, free: Rows, *, reach: float | None = None) -> float:
        """The expected gain of as many trials again; see ``Picker.expected_gain``."""
        seen, near = self._seen(history, free)
        return self._picker.expected_gain(seen, near, reach=reach)

    def _look(self, places: Rows) -> None:
        """From now on look at these configurations."""
        self._places = places
        self._number = np.full(len(self._raw), -1)
        self._number[places] = np.arange(len(places))
        self._picker = Picker(
            self._raw[places], None if self._prior is None else self._prior[places]
        )

    def _look_again(self, history: History, free: Rows) -> None:
        """Look at other configurations where those that are looked at will not do any more."""
        rows, known = np.array(history.rows, dtype=int), np.flatnonzero(np.isfinite(history.logs))
        stage = len(known).bit_length() if len(known) >= _FIRST_LOOK else 0
        is_of_use = (self._number[free] >= 0).any() and (self._number[rows] >= 0).all()
        if stage == self._stage and is_of_use:
            return
        self._stage, expected, among = stage, self._prior, np.arange(len(self._raw))
        assert expected is not None  # noqa: S101 - for mypy: without it all are looked at
        if stage:  # by the first ones alone, so that a search that goes on looks at the same
            first = known[: 1 << (stage - 1)]
            model = Surrogate(scaled(self._raw), self._prior)
            expected = model.mean(rows[first], history.logs[first])
            among = np.setdiff1d(among, rows[first])
        promising = self._promising(among, expected)
        if not np.isin(free, promising).any():
            promising = self._promising(free, expected)
        self._look(np.union1d(promising, rows))

    def _promising(self, places: Rows, expected: Floats) -> Rows:
        """The places of which the least is expected, as many of each group, ascending."""
        group = self._groups[places]
        groups = [places[group == one] for one in np.unique(group)]
        most = -(-self._most // len(groups))
        best = [those[np.argsort(expected[those], kind="stable")[:most]] for those in groups]
        return np.sort(np.concatenate(best))

    def _seen(self, history: History, free: Rows) -> tuple[History, npt.NDArray[np.intp]]:
        """The history, and what is free, by their numbers among those that are looked at."""
        if self._most < len(self._raw):
            self._look_again(history, free)
        rows = self._number[history.rows].tolist()
        near = self._number[free]
        return History(rows, history.logs, history.failed, history.done), near[near >= 0]
