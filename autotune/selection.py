"""From samples taken side by side to the one configuration of a shape, with its evidence."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.shapes import KernelShape
from autotune.space import KernelConfig

#: The interval holds the true ratio in this share of cases.
CONFIDENCE = 0.95

#: Bootstrap resamples: with 2,000 the ends of a 95 % interval rest on 50 resamples each.
_RESAMPLES = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times as fast as the default, with the interval that holds it."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, default_us: Sequence[float], config_us: Sequence[float]) -> Ratio:
        """Compare samples that were taken side by side.

        The median of the pairwise ratios, with a percentile bootstrap of it (Efron and Tibshirani,
        "An Introduction to the Bootstrap", 1993, chapter 13). The resampling is seeded: the same
        samples give the same interval.

        Args:
            default_us: Samples of the default, microseconds.
            config_us: Samples of the configuration, as many, each taken beside the default's.
        """
        logs = np.log(np.asarray(default_us)) - np.log(np.asarray(config_us))  # (pairs,)
        picks = np.random.default_rng(0).integers(len(logs), size=(_RESAMPLES, len(logs)))
        medians = np.median(logs[picks], axis=1)  # (resamples,)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(medians, [tail, 1 - tail])
        return cls(
            value=float(np.exp(np.median(logs))), low=float(np.exp(low)), high=float(np.exp(high))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The configuration chosen for a shape, and why.

    Attributes:
        shape: The shape.
        config: What is exported. The default's own values where nothing beat it beyond the noise.
        default: vLLM's configuration.
        config_us: Samples of ``config``, microseconds per launch, taken beside the default's.
        default_us: Samples of the default; empty where the default itself does not run.
        ratio: Default over ``config``; None where the default does not run.
        trials: Distinct configurations measured in the search.
        outcomes: How many of the configurations tried ended in which outcome.
    """

    shape: KernelShape
    config: KernelConfig
    default: KernelConfig
    config_us: tuple[float, ...]
    default_us: tuple[float, ...]
    ratio: Ratio | None
    trials: int
    outcomes: Mapping[str, int]

    @property
    def latency_us(self) -> float:
        """Median latency of the exported configuration, microseconds."""
        return statistics.median(self.config_us)

    @property
    def default_latency_us(self) -> float | None:
        """Median latency of vLLM's default, microseconds; None where it does not run."""
        return statistics.median(self.default_us) if self.default_us else None

    @property
    def is_default(self) -> bool:
        """Whether nothing beat vLLM's default."""
        return self.config == self.default

    def as_dict(self) -> dict[str, Any]:
        """The selection as JSON-ready values; ``from_mapping`` reads it back."""
        ratio = self.ratio
        return {
            "shape": self.shape.as_dict(),
            "config": self.config.as_dict(),
            "default": self.default.as_dict(),
            "config_us": list(self.config_us),
            "default_us": list(self.default_us),
            "ratio": None if ratio is None else [ratio.value, ratio.low, ratio.high],
            "trials": self.trials,
            "outcomes": dict(self.outcomes),
        }

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> Selection:
        """Read back what ``as_dict`` wrote."""
        shape = KernelShape.from_mapping(table["shape"])
        ratio = table["ratio"]
        return cls(
            shape=shape,
            config=KernelConfig.from_mapping(shape.op, table["config"]),
            default=KernelConfig.from_mapping(shape.op, table["default"]),
            config_us=tuple(table["config_us"]),
            default_us=tuple(table["default_us"]),
            ratio=ratio and Ratio(value=ratio[0], low=ratio[1], high=ratio[2]),
            trials=table["trials"],
            outcomes=table["outcomes"],
        )


def select(
    default: KernelConfig, samples: Mapping[KernelConfig, Sequence[float]]
) -> tuple[KernelConfig, Ratio | None]:
    """Choose among finalists that were timed side by side.

    The fastest by median wins if the interval of its ratio to the default lies above 1; else the
    default does, so that what is exported is never slower than it on what was measured.

    Args:
        default: vLLM's configuration.
        samples: Per configuration its samples, microseconds; equally many for all. The default may
            be missing: then it does not run, and the fastest wins.

    Returns:
        The configuration, and its ratio to the default.
    """
    fastest = min(samples, key=lambda config: statistics.median(samples[config]))
    if default not in samples:
        return fastest, None
    ratio = Ratio.of(samples[default], samples[fastest])
    if ratio.low > 1:
        return fastest, ratio
    return default, Ratio(value=1.0, low=1.0, high=1.0)
