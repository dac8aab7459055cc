"""The configurations of a space that no trial has had yet."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from autotune.launch.config import KernelConfig
from autotune.launch.space import SearchSpace
from autotune.search.samplers.encoding import Positions


class Untried:
    """Knows which configurations of a space are left, and finds one of them."""

    def __init__(self, space: SearchSpace, positions: Positions) -> None:
        self._configs, self._index = space.configs, space.listing.places
        self._names = tuple(positions.axes)
        self._points = positions.table(space.listing)
        self._block_m = space.listing.columns["block_m"].astype(int)
        self._left = np.ones(len(self._configs), dtype=bool)
        self._among = np.ones(len(self._configs), dtype=bool)
        self.taken = 0

    def __len__(self) -> int:
        """How many configurations are left."""
        return len(self._configs) - self.taken

    def place(self, config: KernelConfig) -> int | None:
        """The place of a configuration in the space's ``configs``; None where it is not in it."""
        return self._index.get(config)

    def take(self, config: KernelConfig) -> None:
        """Note that a trial has this configuration now."""
        index = self._index[config]
        self.taken += int(self._left[index])
        self._left[index] = False

    def put_back(self, config: KernelConfig) -> None:
        """Note that the trial with this configuration was given up."""
        index = self._index[config]
        self.taken -= int(not self._left[index])
        self._left[index] = True

    @property
    def block_ms_left(self) -> set[int]:
        """Every ``block_m`` with configurations left."""
        return set(self._block_m[self._left].tolist())

    def left_of(self, block_m: int | None) -> npt.NDArray[np.intp]:
        """Places of all configurations left with this ``block_m``, ascending; None for any."""
        alike = True if block_m is None else self._block_m == block_m
        return np.flatnonzero(self._left & alike)

    def look_among(self, block_m: int | None) -> None:
        """From now on find only configurations with this ``block_m``; None for any."""
        self._among = (
            np.full(len(self._left), True) if block_m is None else self._block_m == block_m
        )

    @property
    def candidates(self) -> npt.NDArray[np.intp]:
        """Places, in the space's ``configs``, of the configurations to choose from, ascending."""
        return np.flatnonzero(self._left & self._among)

    def first(self) -> KernelConfig:
        """The first configuration left, in the space's order."""
        return self._configs[int(self.candidates[0])]

    def any(self, rng: np.random.Generator) -> KernelConfig:
        """One of the configurations left, all equally likely."""
        return self._configs[int(rng.choice(self.candidates))]

    def nearest(self, params: Mapping[str, float], rng: np.random.Generator) -> KernelConfig:
        """The configuration left that is the fewest axis steps away; ties are broken at random.

        Args:
            params: The wanted position on every axis.
            rng: Breaks ties.
        """
        wanted = np.array([params[name] for name in self._names])
        steps = np.abs(self._points - wanted).sum(axis=1)
        steps[~(self._left & self._among)] = np.inf
        return self._configs[int(rng.choice(np.flatnonzero(steps == steps.min())))]
