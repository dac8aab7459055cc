"""From samples taken side by side to the one configuration of a shape, with its evidence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from autotune.choose.exchanged import Exchanged
from autotune.choose.written import RatioFigures, SelectionTable
from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.measure import DeviceState
from autotune.measure.measurement import Replayed
from autotune.untrusted import read_json

#: The interval contains the true ratio in this share of cases.
CONFIDENCE = 0.95

#: Timing stops when the interval is narrower than this share of the ratio: half a run's noise.
SETTLED_WIDTH = 0.005

#: Samples of one configuration, in the form in which they were given.
Samples = TypeVar("Samples", bound=Sequence[float])

#: Bootstrap resamples: with 2,000 the ends of a 95 % interval rest on 50 resamples each.
_RESAMPLES = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times as fast as the default, with a confidence interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, default_us: Sequence[float], config_us: Sequence[float]) -> Ratio:
        """Compare samples that were taken side by side.

        The value is the median of the pairwise ratios. The interval is a percentile bootstrap of
        that median (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13).
        The resampling is seeded: the same samples give the same interval.

        Args:
            default_us: Samples of the default, microseconds.
            config_us: As many samples of the configuration, each taken beside one of the default.
        """
        logs = np.log(np.asarray(default_us)) - np.log(np.asarray(config_us))  # (pairs,)
        picks = np.random.default_rng(0).integers(len(logs), size=(_RESAMPLES, len(logs)))
        low, high = _interval(np.median(logs[picks], axis=1))
        return cls(
            value=float(np.exp(np.median(logs))), low=float(np.exp(low)), high=float(np.exp(high))
        )

    @classmethod
    def of_sums(cls, pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Ratio:
        """Compare the summed latencies of several ops that run one after the other.

        The value is the ratio of the sums of the medians. The interval is a percentile bootstrap
        of that ratio. It resamples every op by itself: the two sides of an op were taken side by
        side, the samples of two ops were not.

        Args:
            pairs: For every op the samples of the default, and as many of the configuration.
        """
        random = np.random.default_rng(0)
        default_us, config_us = np.zeros(_RESAMPLES), np.zeros(_RESAMPLES)
        for default, config in pairs:
            picks = random.integers(len(default), size=(_RESAMPLES, len(default)))
            default_us += np.median(np.asarray(default)[picks], axis=1)  # (resamples,)
            config_us += np.median(np.asarray(config)[picks], axis=1)  # (resamples,)
        low, high = _interval(default_us / config_us)
        defaults, configs = (sum(map(statistics.median, side)) for side in zip(*pairs, strict=True))
        return cls(value=float(defaults / configs), low=low, high=high)

    def as_list(self) -> list[float]:
        """The ratio and the ends of its interval as JSON-ready values."""
        return [self.value, self.low, self.high]

    @property
    def verdict(self) -> str:
        """``faster`` or ``slower`` than the default where that is certain, else ``same``."""
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "same"


def _interval(resampled: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the percentile interval of a statistic that was resampled, (resamples,)."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


#: The ratio of the default to itself.
SAME = Ratio(value=1.0, low=1.0, high=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChoice:
    """The ``block_m`` that was chosen for the ops of a MoE layer, and why.

    Attributes:
        block_m: The value that all of the layer's ops get.
        ops: The ops whose latencies were summed. The layer's other ops were not measured.
        ratio: The summed latency of the defaults over that of the chosen configurations; None where
            a default does not run.
    """

    block_m: int
    ops: tuple[LoraOp, ...]
    ratio: Ratio | None

    def as_dict(self) -> dict[str, Any]:
        """The choice as JSON-ready values."""
        return {
            "block_m": self.block_m,
            "ops": [op.value for op in self.ops],
            "ratio": None if self.ratio is None else self.ratio.as_list(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The configuration chosen for a shape, and why.

    Attributes:
        shape: The shape.
        config: The configuration that is exported. It is the default where nothing is faster
            beyond the noise, unless the default may not be chosen.
        default: vLLM's configuration.
        samples_us: The samples of every finalist, taken side by side, microseconds per launch. The
            default is among the finalists if it runs.
        ratio: How many times as fast as the default ``config`` is; None where the default does not
            run. Below 1 only where a MoE layer as a whole is faster with a ``block_m`` at which
            this op is slower, and where the default may not be chosen.
        trials: How many distinct configurations the search measured.
        outcomes: How many configurations ended in which outcome.
        states: The device before, during and after the finalists were timed, where it is known.
        layer: For a MoE op, how its layer's ``block_m`` was chosen; None before it is. The database
            keeps every op's own choice without it, so that a layer can be chosen for again.
        replayed: The recordings that the samples are from; None where a GPU was timed.
        exchanged: What ``config`` was before the row took one that a server launches at its start;
            None where the row has its own.
        deterministic: Whether nothing that splits k may be chosen, the default included.
    """

    shape: KernelShape
    config: KernelConfig
    default: KernelConfig
    samples_us: Mapping[KernelConfig, tuple[float, ...]]
    ratio: Ratio | None
    trials: int
    outcomes: Mapping[str, int]
    states: tuple[DeviceState, ...] = ()
    layer: LayerChoice | None = None
    replayed: Replayed | None = None
    exchanged: Exchanged | None = None
    deterministic: bool = False

    @classmethod
    def of_samples(  # noqa: PLR0913 - each by its name
        cls,
        shape: KernelShape,
        default: KernelConfig,
        samples_us: Mapping[KernelConfig, Sequence[float]],
        *,
        outcomes: Mapping[str, int] | None = None,
        states: tuple[DeviceState, ...] = (),
        replayed: Replayed | None = None,
        deterministic: bool = False,
    ) -> Selection:
        """Choose among configurations that were timed side by side, as ``select`` does.

        Args:
            shape: The shape.
            default: vLLM's configuration.
            samples_us: The samples of every configuration, microseconds per launch; at least one
                that may be chosen, equally many samples for all.
            outcomes: How many configurations of the search ended in which outcome; None without a
                search.
            states: The device while the configurations were timed, where it is known.
            replayed: The recordings that the samples are from; None where a GPU was timed.
            deterministic: Whether nothing that splits k may be chosen.
        """
        config, ratio = select(default, samples_us, deterministic=deterministic)
        return cls(
            shape=shape,
            config=config,
            default=default,
            samples_us={one: tuple(samples) for one, samples in samples_us.items()},
            ratio=ratio,
            trials=sum((outcomes or {}).values()),
            outcomes=dict(outcomes or {}),
            states=states,
            replayed=replayed,
            deterministic=deterministic,
        )

    @property
    def choosable_us(self) -> Mapping[KernelConfig, tuple[float, ...]]:
        """The samples of the configurations that may be chosen."""
        return choosable(self.samples_us, deterministic=self.deterministic)

    def taking(self, config: KernelConfig, exchanged: Exchanged | None) -> Selection:
        """The selection with another of the configurations that were timed."""
        default_us = self.samples_us.get(self.default)
        ratio = default_us and Ratio.of(default_us, self.samples_us[config])
        is_same = ratio and config == self.default
        return replace(
            self, config=config, ratio=SAME if is_same else ratio or None, exchanged=exchanged
        )

    @property
    def own(self) -> Selection:
        """The selection as it was before its configuration was exchanged."""
        return self if self.exchanged is None else self.taking(self.exchanged.own, None)

    @property
    def is_throttled(self) -> bool:
        """Whether heat or power slowed the device down while the finalists were timed."""
        return any(state.throttle_reasons for state in self.states)

    @property
    def latency_us(self) -> float:
        """Median latency of the exported configuration, microseconds."""
        return statistics.median(self.samples_us[self.config])

    @property
    def default_latency_us(self) -> float | None:
        """Median latency of vLLM's default, microseconds; None where it does not run."""
        samples = self.samples_us.get(self.default)
        return statistics.median(samples) if samples else None

    @property
    def is_default(self) -> bool:
        """Whether vLLM's default was chosen: nothing beat it."""
        return self.config == self.default

    @property
    def beats_default(self) -> bool:
        """Whether it is certainly faster than vLLM's default, or the default does not run."""
        return self.ratio is None or self.ratio.verdict == "faster"

    def as_dict(self) -> dict[str, Any]:
        """The selection as JSON-ready values; ``from_json`` reads it back."""
        known: dict[str, Any] = {} if self.layer is None else {"layer": self.layer.as_dict()}
        if self.replayed is not None:
            known["replayed"] = self.replayed.as_dict()
        if self.exchanged is not None:
            known["exchanged"] = self.exchanged.as_dict()
        if self.deterministic:
            known["deterministic"] = True
        return {
            "shape": self.shape.as_dict(),
            "config": self.config.as_dict(),
            "default": self.default.as_dict(),
            "samples_us": [
                {"config": config.as_dict(), "samples_us": list(samples)}
                for config, samples in self.samples_us.items()
            ],
            "ratio": None if self.ratio is None else self.ratio.as_list(),
            "trials": self.trials,
            "outcomes": dict(self.outcomes),
            "states": [asdict(state) for state in self.states],
        } | known

    @classmethod
    def from_json(cls, text: str) -> Selection:
        """Read back the JSON text of what ``as_dict`` gave.

        Raises:
            InputError: The text is no JSON, or a value in it is missing or wrong.
        """
        table = read_json(SelectionTable, text)
        shape = KernelShape.from_mapping(table.shape)
        layer = table.layer
        return cls(
            shape=shape,
            config=KernelConfig.from_mapping(shape.op, table.config),
            default=KernelConfig.from_mapping(shape.op, table.default),
            samples_us={
                KernelConfig.from_mapping(shape.op, row.config): row.samples_us
                for row in table.samples_us
            },
            ratio=_ratio(table.ratio),
            trials=table.trials,
            outcomes=table.outcomes,
            states=tuple(DeviceState(**state.model_dump()) for state in table.states),
            layer=None
            if layer is None
            else LayerChoice(block_m=layer.block_m, ops=layer.ops, ratio=_ratio(layer.ratio)),
            replayed=None if table.replayed is None else table.replayed.replayed,
            exchanged=None if table.exchanged is None else table.exchanged.exchanged(shape.op),
            deterministic=table.deterministic,
        )


def _ratio(figures: RatioFigures | None) -> Ratio | None:
    if figures is None:
        return None
    value, low, high = figures
    return Ratio(value=value, low=low, high=high)


def choosable(
    samples: Mapping[KernelConfig, Samples], *, deterministic: bool
) -> Mapping[KernelConfig, Samples]:
    """The samples of configurations that may be chosen: without those that split k, or all."""
    if not deterministic:
        return samples
    return {config: each for config, each in samples.items() if not config.splits_k}


def select(
    default: KernelConfig,
    samples: Mapping[KernelConfig, Sequence[float]],
    *,
    deterministic: bool = False,
) -> tuple[KernelConfig, Ratio | None]:
    """Choose among finalists that were timed side by side.

    The fastest by median wins if the interval of its ratio to the default lies above 1. If not,
    the default wins, so that what is exported is never slower than it on what was measured. Where
    the default may not be chosen, the fastest of the others wins, even if it is slower.

    Args:
        default: vLLM's configuration.
        samples: The samples of every configuration, microseconds; equally many for all. Without
            samples the default does not run, and the fastest wins.
        deterministic: Whether nothing that splits k may be chosen.

    Returns:
        The configuration, and its ratio to the default; None where the default does not run.
    """
    allowed = choosable(samples, deterministic=deterministic)
    fastest = _fastest(allowed)
    if default not in samples:
        return fastest, None
    ratio = Ratio.of(samples[default], samples[fastest])
    if ratio.verdict == "faster" or default not in allowed:
        return fastest, ratio
    return default, SAME


def is_settled(
    default: KernelConfig,
    samples: Mapping[KernelConfig, Sequence[float]],
    *,
    deterministic: bool = False,
    loss: float = math.inf,
) -> bool:
    """Whether the ratio of the fastest to the default is known well enough to stop timing.

    Args:
        default: vLLM's configuration.
        samples: As for ``select``.
        deterministic: As for ``select``.
        loss: Well enough is also known that the default loses more than this share.
    """
    allowed = choosable(samples, deterministic=deterministic)
    if default not in samples or len(samples) == 1 or not allowed:
        return True
    ratio = Ratio.of(samples[default], samples[_fastest(allowed)])
    return ratio.high - ratio.low < SETTLED_WIDTH * ratio.value or ratio.low > 1 + loss


def is_settled_at_every_block_m(
    default: KernelConfig,
    samples: Mapping[KernelConfig, Sequence[float]],
    *,
    deterministic: bool = False,
) -> bool:
    """``is_settled`` at every ``block_m``: the layer of a MoE op may choose any of them."""
    return all(
        is_settled(
            default,
            {c: s for c, s in samples.items() if c.block_m == block_m or c == default},
            deterministic=deterministic,
        )
        for block_m in {config.block_m for config in samples}
    )


def _fastest(samples: Mapping[KernelConfig, Sequence[float]]) -> KernelConfig:
    return min(samples, key=lambda config: statistics.median(samples[config]))
