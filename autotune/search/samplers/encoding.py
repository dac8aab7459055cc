"""How a KernelConfig becomes the parameters of a trial, and back.

There are two encodings. A search works on ordinals, so its parameters are the *positions* of values
on their axes. The database is read by people, dashboards and later versions, so it keeps the
*values*: their meaning does not change when an axis gains a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, IntDistribution

from autotune.launch.config import LARGEST_VALUE, KernelConfig
from autotune.launch.listing import Listing
from autotune.launch.op import LoraOp
from autotune.launch.space import SearchSpace


class Positions:
    """Configurations as positions on the axes of a space. Axes of one value are left out."""

    def __init__(self, space: SearchSpace) -> None:
        self.axes = {name: values for name, values in space.axes.items() if len(values) > 1}
        self._fixed = {name: values[0] for name, values in space.axes.items()}
        self.distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, len(values) - 1) for name, values in self.axes.items()
        }

    def params(self, config: KernelConfig) -> dict[str, int]:
        """The trial parameters of a configuration."""
        values = config.as_dict()
        return {name: axis.index(values[name]) for name, axis in self.axes.items()}

    def table(self, listing: Listing) -> npt.NDArray[np.float64]:
        """The trial parameters of many configurations, (configurations, len(axes))."""
        columns = [np.searchsorted(axis, listing.columns[name]) for name, axis in self.axes.items()]
        table = np.array(columns, dtype=float).reshape(len(columns), len(listing.configs))
        params: npt.NDArray[np.float64] = table.T
        return params

    def config(self, params: Mapping[str, Any]) -> KernelConfig:
        """The configuration of a trial's parameters."""
        chosen = {name: axis[params[name]] for name, axis in self.axes.items()}
        return KernelConfig(**(self._fixed | chosen))


def value_distributions(op: LoraOp) -> dict[str, BaseDistribution]:
    """Distributions over the values themselves.

    They are logarithmic, so that dashboards draw powers of two evenly. They are the same for every
    space, because Optuna computes the importance of a parameter only where its distribution is the
    same throughout a study.
    """
    return {name: IntDistribution(1, LARGEST_VALUE, log=True) for name in op.parameters}
