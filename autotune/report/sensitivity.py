"""What each parameter of a shape is worth: around vLLM's default, alone and in pairs.

For shapes of which whole spaces were measured: what a search cut short is not looked at, and of
what it did not try nothing is known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import sizes_text
from autotune.measure import Measurement, Outcome
from autotune.report.frames import frame_of
from autotune.search.importance import importances
from autotune.store.results import ShapeResult

if TYPE_CHECKING:
    import pandas as pd

_LatencyOf = Mapping[KernelConfig, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What the parameters of one shape are worth. Latencies are microseconds.

    Attributes:
        shape: The shape.
        kernels: Whose they were, such as ``vllm-0.33.0``.
        default_us: Of vLLM's default; None where it does not run.
        base: Around what one or two parameters are changed: the default where the space goes on
            around it, else the nearest configuration that it does around (``base_of``).
        base_us: Its latency.
        best_us: Of the fastest of all.
        alone_us: Per parameter of which there are several values the lowest latency of those that
            differ from the base in it alone, the base included.
        pairs_us: The same for two of them.
        kept_us: Per parameter the lowest latency of those that have the base's value of it.
        importance: PED-ANOVA's share of each parameter (``autotune.search.importance``).
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
        """What is known of one shape; None where no two configurations run."""
        latency_of = {
            one.config: one.latency_us for one in result.measurements if one.outcome is Outcome.OK
        }
        if result.default is None or len(latency_of) < 2:
            return None
        base = base_of(result.default, latency_of)
        lowest = _lowest_around(base, latency_of)
        names = list(varied(latency_of, default=result.default))
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
        tokens = "1 token" if self.shape.num_tokens == 1 else f"{self.shape.num_tokens} tokens"
        return f"{sizes_text(self.shape)}, {tokens}"

    @property
    def gains(self) -> dict[str, float]:
        """How many times as fast as the base it gets by each parameter alone."""
        return {name: self.base_us / us for name, us in self.alone_us.items()}

    @property
    def losses(self) -> dict[str, float]:
        """How many times as slow as the best it stays where a parameter is left as the base's."""
        return {name: us / self.best_us for name, us in self.kept_us.items()}

    @property
    def pair_gains(self) -> dict[tuple[str, str], float]:
        """How many times as fast as the base it gets by each pair."""
        return {pair: self.base_us / us for pair, us in self.pairs_us.items()}

    @property
    def synergies(self) -> dict[tuple[str, str], float]:
        """How many times as fast each pair is as the better of the two alone."""
        return {
            pair: min(self.alone_us[name] for name in pair) / us
            for pair, us in self.pairs_us.items()
        }


def sensitivities(results: Iterable[ShapeResult]) -> list[Sensitivity]:
    """One for each shape with two configurations that run, by op, rank, sizes and tokens."""
    found = [one for one in map(Sensitivity.of, results) if one is not None]
    return sorted(found, key=lambda one: _order(one.shape))


def _order(shape: KernelShape) -> tuple[object, ...]:
    return shape.op.value, shape.rank, shape.hidden_size, shape.num_slices, shape.num_tokens


def base_of(default: KernelConfig, latency_of: _LatencyOf) -> KernelConfig:
    """The default, or what stands for it where the space does not go on around it.

    vLLM's default may have blocks larger than the batch, which are not searched: then nothing
    differs from it in one other parameter alone. The nearest configuration stands for it: fewest
    doublings away in all, and of several the one that first keeps the blocks.

    Args:
        default: vLLM's configuration.
        latency_of: Of everything that runs, microseconds.
    """
    neighbours = {next(iter(names)) for c in latency_of if len(names := _changed(default, c)) == 1}
    if default in latency_of and neighbours >= varied(latency_of, default=default).keys():
        return default
    others = [config for config in latency_of if config != default]
    return min(others, key=lambda config: _doublings(default, config))


def around(
    base: KernelConfig, measurements: Iterable[Measurement], parameters: Collection[str]
) -> list[Measurement]:
    """The measurements that differ from the base in these parameters only."""
    return [one for one in measurements if _changed(base, one.config) <= set(parameters)]


def varied(configs: Iterable[KernelConfig], *, default: KernelConfig) -> dict[str, list[int]]:
    """The parameters of which others than the default have several values, with their values."""
    tables = [config.as_dict() for config in configs if config != default]
    axes = {name: sorted({table[name] for table in tables}) for name in default.as_dict()}
    return {name: values for name, values in axes.items() if len(values) > 1}


def _changed(base: KernelConfig, config: KernelConfig) -> set[str]:
    values = config.as_dict()
    return {name for name, value in base.as_dict().items() if values[name] != value}


def _doublings(default: KernelConfig, config: KernelConfig) -> tuple[float, tuple[float, ...]]:
    values = config.as_dict()
    each = tuple(abs(math.log2(values[name] / own)) for name, own in default.as_dict().items())
    return sum(each), each


def _lowest_around(base: KernelConfig, latency_of: _LatencyOf) -> dict[frozenset[str], float]:
    """By the parameters that differ from the base, two at most, the lowest latency."""
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


def sensitivities_frame(found: Iterable[Sensitivity]) -> pd.DataFrame:
    """One row a shape: how far one and two changed parameters come from the default to the best.

    ``one`` names the parameter that gains most, ``two`` the pair that gains more than it; they are
    empty where none does. ``*_us`` are latencies.

    Raises:
        InputError: pandas is not installed.
    """
    return frame_of([_row(each) for each in found], _COLUMNS, {"default_us": "float64"})


_COLUMNS = (
    *("kernels", "op", "sizes", "rank", "num_tokens"),
    *("default_us", "base_us", "one_us", "two_us", "best_us"),
    *("one", "two"),
)


def _row(one: Sensitivity) -> dict[str, Any]:
    shape, base_us = one.shape, one.base_us
    alone = min(one.alone_us, key=lambda name: one.alone_us[name], default="")
    pair = min(one.pairs_us, key=lambda names: one.pairs_us[names], default=("", ""))
    one_us, two_us = one.alone_us.get(alone, base_us), one.pairs_us.get(pair, base_us)
    return {
        "kernels": one.kernels,
        "op": shape.op.value,
        "sizes": sizes_text(shape),
        "rank": shape.rank,
        "num_tokens": shape.num_tokens,
        "default_us": one.default_us,
        "base_us": one.base_us,
        "one_us": one_us,
        "two_us": two_us,
        "best_us": one.best_us,
        "one": alone if one_us < base_us else "",
        "two": " + ".join(pair) if two_us < one_us else "",
    }
