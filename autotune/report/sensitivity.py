"""How much each parameter of a shape gains around vLLM's default, alone and in pairs.

This needs shapes whose whole space was measured. Only configurations that were timed in full
count: a search cuts most of them short, and does not try the others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import sizes_text
from autotune.measure import Measurement, Outcome
from autotune.report.axes import varied
from autotune.report.words import counted
from autotune.search.importance import importances
from autotune.store.results import ShapeResult

_LatencyOf = Mapping[KernelConfig, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """How much the parameters of one shape gain. Latencies are microseconds.

    Attributes:
        shape: The shape.
        kernels: Whose kernels were timed, such as ``vllm-0.33.0``.
        default_us: The latency of vLLM's default; None where the default does not run.
        base: The configuration whose parameters are changed: the default, or the nearest one in
            the space (``base_of``).
        base_us: The base's latency.
        best_us: The lowest latency of all.
        alone_us: By parameter, the lowest latency of the base and of configurations that differ
            from it in that parameter alone. Parameters with a single value are left out.
        pairs_us: By pair, the lowest latency of configurations that differ from the base in these
            two parameters at most.
        kept_us: By parameter, the lowest latency of configurations with the base's value of it.
        importance: By parameter, its share by PED-ANOVA (``autotune.search.importance``).
    """

    shape: KernelShape
    kernels: str
    default_us: float | None
    base: KernelConfig
    base_us: float
    best_us: float
    alone_us: Mapping[str, float]
    pairs_us: Mapping[tuple[str, str], float]
    kept_us: Mapping[str, float]
    importance: Mapping[str, float]

    @classmethod
    def of(cls, result: ShapeResult) -> Sensitivity | None:
        """The sensitivity of one shape.

        Returns:
            None where the default is not known, or fewer than two configurations run.
        """
        latency_of = {
            one.config: one.latency_us for one in result.measurements if one.outcome is Outcome.OK
        }
        if result.default is None or len(latency_of) < 2:
            return None
        base = base_of(result.default, latency_of)
        lowest = _lowest_around(base, latency_of)
        names = list(_searched_axes(result.default, latency_of))
        return cls(
            shape=result.shape,
            kernels=result.environment.kernels,
            default_us=latency_of.get(result.default),
            base=base,
            base_us=latency_of[base],
            best_us=min(latency_of.values()),
            alone_us={name: _lowest_of(lowest, {name}) for name in names},
            pairs_us={
                pair: _lowest_of(lowest, set(pair)) for pair in itertools.combinations(names, 2)
            },
            kept_us={name: _lowest_with(name, base, latency_of) for name in names},
            importance=importances(result.measurements),
        )

    @property
    def name(self) -> str:
        """The shape on one line, such as ``4096>16 x3, 128 tokens``."""
        return f"{sizes_text(self.shape)}, {counted(self.shape.num_tokens, 'token')}"

    @property
    def gains(self) -> dict[str, float]:
        """By parameter, how many times as fast as the base the kernel gets by it alone."""
        return {name: self.base_us / us for name, us in self.alone_us.items()}

    @property
    def losses(self) -> dict[str, float]:
        """By parameter, how many times as slow as the best the kernel stays without changing it."""
        return {name: us / self.best_us for name, us in self.kept_us.items()}

    @property
    def pair_gains(self) -> dict[tuple[str, str], float]:
        """By pair, how many times as fast as the base the kernel gets by it."""
        return {pair: self.base_us / us for pair, us in self.pairs_us.items()}

    @property
    def synergies(self) -> dict[tuple[str, str], float]:
        """By pair, how many times as fast it is as the better of its two parameters alone."""
        return {
            pair: min(self.alone_us[name] for name in pair) / us
            for pair, us in self.pairs_us.items()
        }


def sensitivities(results: Iterable[ShapeResult]) -> list[Sensitivity]:
    """The sensitivity of each shape that has one, ordered by op, rank, sizes and tokens."""
    found = [one for one in map(Sensitivity.of, results) if one is not None]
    return sorted(found, key=lambda one: _order(one.shape))


def _order(shape: KernelShape) -> tuple[object, ...]:
    return shape.op.value, shape.rank, shape.hidden_size, shape.num_slices, shape.num_tokens


def base_of(default: KernelConfig, latency_of: _LatencyOf) -> KernelConfig:
    """The configuration whose parameters are changed: the default, or the nearest to it.

    vLLM's default may have blocks larger than the batch. Such blocks are not searched, so that no
    other configuration differs from the default in a single parameter. The nearest configuration
    then takes its place: the one with the fewest doublings and halvings between the two, and of
    equally near ones the one that keeps the blocks.

    Args:
        default: vLLM's configuration.
        latency_of: The latency of each configuration that runs, microseconds.
    """
    neighbours = {next(iter(names)) for c in latency_of if len(names := _changed(default, c)) == 1}
    if default in latency_of and neighbours >= _searched_axes(default, latency_of).keys():
        return default
    others = [config for config in latency_of if config != default]
    return min(others, key=lambda config: _doublings(default, config))


def around(
    base: KernelConfig, measurements: Iterable[Measurement], parameters: Collection[str]
) -> list[Measurement]:
    """The measurements that differ from the base in these parameters only."""
    return [one for one in measurements if _changed(base, one.config) <= set(parameters)]


def _searched_axes(default: KernelConfig, configs: Iterable[KernelConfig]) -> dict[str, list[int]]:
    """The parameters that vary without the default, whose values may lie outside the space."""
    return varied(config for config in configs if config != default)


def _changed(base: KernelConfig, config: KernelConfig) -> set[str]:
    values = config.as_dict()
    return {name for name, value in base.as_dict().items() if values[name] != value}


def _doublings(default: KernelConfig, config: KernelConfig) -> tuple[float, tuple[float, ...]]:
    values = config.as_dict()
    each = tuple(abs(math.log2(values[name] / own)) for name, own in default.as_dict().items())
    return sum(each), each


def _lowest_around(base: KernelConfig, latency_of: _LatencyOf) -> dict[frozenset[str], float]:
    """The lowest latency for each set of at most two parameters that differ from the base."""
    lowest: dict[frozenset[str], float] = {}
    for config, us in latency_of.items():
        changed = frozenset(_changed(base, config))
        if len(changed) <= 2:
            lowest[changed] = min(us, lowest.get(changed, math.inf))
    return lowest


def _lowest_of(lowest: Mapping[frozenset[str], float], free: set[str]) -> float:
    return min(us for changed, us in lowest.items() if changed <= free)


def _lowest_with(name: str, base: KernelConfig, latency_of: _LatencyOf) -> float:
    kept = base.as_dict()[name]
    return min(us for config, us in latency_of.items() if config.as_dict()[name] == kept)
