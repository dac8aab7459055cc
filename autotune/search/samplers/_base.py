"""The base of all samplers: a sampler hands out every configuration of a space once."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autotune.errors import InputError
from autotune.launch.config import KernelConfig
from autotune.search.samplers.encoding import Positions
from autotune.search.samplers.untried import Untried

#: numpy's and Optuna's generators take seeds of 32 bits.
_SEEDS = 2**32


class UntriedSampler(BaseSampler):
    """Base of the samplers that hand out every configuration once.

    A choice depends on the seed and on how many configurations were handed out, not on the state of
    a random generator. So a search that goes on after an interruption makes the same choices.

    Attributes:
        is_informed: Whether it knows other shapes that were searched before.
    """

    is_informed: bool = False

    def __init__(self, untried: Untried, positions: Positions, *, seed: str) -> None:
        """Choose from ``untried``. The search marks what was chosen as taken.

        Args:
            untried: The configurations that are left.
            positions: The encoding of trial parameters.
            seed: Any text; the same text makes the same choices.
        """
        self._untried, self._positions, self._seed = untried, positions, seed

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All axes: they are always chosen together."""
        return self._positions.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the configuration to try next."""
        digest = hashlib.sha256(f"{self._seed}/{self._untried.taken}".encode()).digest()
        seed = int.from_bytes(digest[:8], "big") % _SEEDS
        return self._positions.params(self.choose(study, trial, seed))

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:  # noqa: ANN401 - Optuna's signature
        """Optuna never calls this: all parameters are sampled together.

        Raises:
            InputError: Optuna asked for a parameter that is not an axis of the space.
        """
        raise InputError(f"{param_name} is no axis of this search space")

    def expected_gain(
        self, study: Study, *, block_m: int | None = None, undone: bool = False
    ) -> float | None:
        """By what share of its latency the shape is expected to get faster if the search goes on.

        Args:
            study: The study that is searched.
            block_m: Only what configurations with this ``block_m`` gain counts; None for all.
            undone: Whether trials under way count as untried. Otherwise they count as known.

        Returns:
            The share; None where the sampler has no model to tell it from.
        """
        return None

    @abstractmethod
    def choose(self, study: Study, trial: FrozenTrial, seed: int) -> KernelConfig:
        """One of the untried configurations."""
