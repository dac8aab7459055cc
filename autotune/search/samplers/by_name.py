"""The samplers by their names on the command line.

Every sampler hands out each configuration of a space once. What Optuna's own samplers propose is
moved to the nearest configuration that is valid and untried.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.errors import InputError, install_hint
from autotune.launch.config import KernelConfig
from autotune.launch.space import SearchSpace
from autotune.plan.file import ADAPTIVE
from autotune.search.samplers._base import UntriedSampler
from autotune.search.samplers.adaptive import AdaptiveSampler
from autotune.search.samplers.encoding import Positions
from autotune.search.samplers.transfer import Neighbour
from autotune.search.samplers.untried import Untried

#: Trials drawn at random before a model is asked: Optuna's default for TPE and GP. Those that were
#: cut short or failed count too: Optuna's GP would count only complete ones, of which few are left.
_STARTUP_TRIALS = 10

#: The states of trials that are over.
_OVER = (TrialState.COMPLETE, TrialState.PRUNED)


class ExhaustiveSampler(UntriedSampler):
    """Every configuration in the space's order."""

    def choose(self, study: Study, trial: FrozenTrial, seed: int) -> KernelConfig:
        """The first configuration left."""
        return self._untried.first()


class RandomSampler(UntriedSampler):
    """Every untried configuration is equally likely."""

    def choose(self, study: Study, trial: FrozenTrial, seed: int) -> KernelConfig:
        """A random configuration of those left."""
        return self._untried.any(np.random.default_rng(seed))


class ModelSampler(UntriedSampler):
    """One of Optuna's samplers, with its proposals moved to untried configurations."""

    def __init__(
        self,
        untried: Untried,
        positions: Positions,
        *,
        seed: str,
        model: Callable[[int], BaseSampler],
    ) -> None:
        """Choose what an Optuna sampler proposes.

        Args:
            untried: The configurations that are left.
            positions: The encoding of trial parameters.
            seed: Any text; the same text makes the same choices.
            model: Makes an Optuna sampler from a seed. A new one is made for every trial, because a
                sampler cannot be told where in its random sequence to go on.
        """
        super().__init__(untried, positions, seed=seed)
        self._model = model

    def choose(self, study: Study, trial: FrozenTrial, seed: int) -> KernelConfig:
        """The untried configuration nearest to what the model proposes.

        A random one for the first trials, and while the model has nothing to propose from.
        """
        rng = np.random.default_rng(seed)
        if len(study.get_trials(deepcopy=False, states=_OVER)) < _STARTUP_TRIALS:
            return self._untried.any(rng)
        proposed = self._model(seed).sample_relative(study, trial, self._positions.distributions)
        return self._untried.nearest(proposed, rng) if proposed else self._untried.any(rng)


def _tpe(seed: int) -> BaseSampler:
    # constant_liar: trials under way count as slow, so that the next ones are tried elsewhere.
    return _quietly(
        optuna.samplers.TPESampler,
        seed=seed,
        n_startup_trials=_STARTUP_TRIALS,
        multivariate=True,
        constant_liar=True,
    )


def _gp(seed: int) -> BaseSampler:
    return _quietly(optuna.samplers.GPSampler, seed=seed, n_startup_trials=1)


def check_installed(name: str) -> None:
    """Refuse a sampler whose libraries are not installed, before anything is searched.

    Raises:
        InputError: The sampler is ``gp``, and scipy cannot be imported.
    """
    if name != "gp":
        return
    try:  # Optuna imports it once it fits a model, which is after the random trials
        importlib.import_module("scipy.optimize")
    except ImportError as error:
        raise InputError(
            f"the sampler 'gp' needs scipy ({error}); install it with: {install_hint('gp')}, "
            "or use 'tpe'"
        ) from None


def _quietly(make: Callable[..., BaseSampler], **options: Any) -> BaseSampler:  # noqa: ANN401 - options differ by sampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return make(**options)


_MODELS: Mapping[str, Callable[[int], BaseSampler]] = {"tpe": _tpe, "gp": _gp}
_PLAIN: Mapping[str, type[UntriedSampler]] = {
    "random": RandomSampler,
    "exhaustive": ExhaustiveSampler,
}


#: Makes a sampler; called with the arguments of ``make_sampler`` without the name.
SamplerMaker = Callable[..., UntriedSampler]


def make_sampler(
    name: str,
    space: SearchSpace,
    untried: Untried,
    positions: Positions,
    *,
    seed: str,
    neighbours: Sequence[Neighbour] = (),
) -> UntriedSampler:
    """The sampler of that name, one of ``SAMPLERS``.

    Args:
        name: The sampler's name.
        space: The configurations to choose from.
        untried: The configurations that are left.
        positions: The encoding of trial parameters.
        seed: Any text; the same text makes the same choices.
        neighbours: Finished shapes that are near, the nearest first; only ``adaptive`` uses them.
    """
    if name == ADAPTIVE:
        return AdaptiveSampler(untried, positions, space, seed=seed, neighbours=neighbours)
    if name in _MODELS:
        return ModelSampler(untried, positions, seed=seed, model=_MODELS[name])
    return _PLAIN[name](untried, positions, seed=seed)
