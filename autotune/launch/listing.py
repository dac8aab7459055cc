"""Listing: the configurations of a space in their order, and what is asked of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from autotune.launch.config import KernelConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_NAMES = tuple(field.name for field in fields(KernelConfig))


class Listing:
    """Configurations in a fixed order, the default first, each launch once.

    Spaces that are alike share one: it may have 30,000 configurations, and a run 200 spaces.

    Attributes:
        configs: The configurations.
        canonical: By launch, the configuration that stands for it.
        is_empty: Whether there is nothing but a default that was not among the configurations.
    """

    def __init__(
        self,
        default: tuple[KernelConfig, KernelConfig],
        launches: Iterable[tuple[KernelConfig, KernelConfig]],
    ) -> None:
        """List configurations; of those that launch alike the first one stays.

        Args:
            default: vLLM's configuration, and how it is launched.
            launches: Configurations, each with how it is launched.
        """
        config, launch = default
        self.canonical = {launch: config}
        valid = [self.canonical.setdefault(launch, config) for config, launch in launches]
        self.configs = tuple(dict.fromkeys([config, *valid]))
        self.is_empty = not valid

    @cached_property
    def axes(self) -> Mapping[str, tuple[Any, ...]]:
        """The values of each parameter that occur, ascending; without None."""
        values = {name: {getattr(each, name) for each in self.configs} for name in _NAMES}
        return {name: tuple(sorted(those - {None})) for name, those in values.items()}

    @cached_property
    def places(self) -> Mapping[KernelConfig, int]:
        """The place of every configuration, from 0."""
        return {config: place for place, config in enumerate(self.configs)}

    @cached_property
    def columns(self) -> Mapping[str, npt.NDArray[np.float64]]:
        """The values of every parameter, as ``columns``."""
        return columns(self.configs)


def columns(configs: Iterable[KernelConfig]) -> Mapping[str, npt.NDArray[np.float64]]:
    """The values of every parameter, (configurations,); 1 where an op does not have it."""
    import numpy as np  # it takes long

    listed = list(configs)
    return {
        name: np.array([getattr(config, name) or 1 for config in listed], dtype=float)
        for name in _NAMES
    }


@lru_cache(maxsize=64)
def listing_of(terms: tuple[Any, ...], default: tuple[KernelConfig, KernelConfig]) -> Listing:
    """The launches of a grid.

    Args:
        terms: The arguments of ``grid.launches``.
        default: As for ``Listing``.
    """
    from autotune.launch.grid import launches  # it imports numpy

    return Listing(default, launches(*terms).items())
