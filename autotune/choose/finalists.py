"""Which configurations of a search are timed again beside the default."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from autotune.choose.reach import in_reach
from autotune.launch.config import KernelConfig
from autotune.measure import Measurement, Outcome

#: How many configurations are timed again. On two recorded H100 grids the true best was among the
#: three that a search itself found fastest.
FINALISTS = 5

#: How many are timed again for each ``block_m`` of a MoE op that is in reach: those three.
FINALISTS_OF_BLOCK_M = 3


def finalists(
    default: KernelConfig, measured: Mapping[KernelConfig, Measurement], *, is_moe: bool
) -> list[KernelConfig]:
    """The fastest configurations in order, then the default if it runs and is not among them.

    A MoE op has finalists for every ``block_m``, so that its layer can choose among these. A
    ``block_m`` out of reach has one finalist, in case the layer's other ops leave no choice.

    Args:
        default: vLLM's configuration.
        measured: What the search measured.
        is_moe: Whether the op belongs to a MoE layer.
    """
    ok = [config for config, one in measured.items() if one.outcome is Outcome.OK]
    ok.sort(key=lambda config: measured[config].latency_us)
    chosen = _of_every_block_m(ok, measured) if is_moe else ok[:FINALISTS]
    if default in ok and default not in chosen:
        chosen.append(default)
    return chosen


def _of_every_block_m(
    ok: list[KernelConfig], measured: Mapping[KernelConfig, Measurement]
) -> list[KernelConfig]:
    """The first few configurations of each ``block_m``; ``ok`` starts with the fastest."""
    tried = Counter(config.block_m for config in measured)
    reachable = in_reach(tried, best_latencies_us(measured))
    chosen: list[KernelConfig] = []
    counts: Counter[int] = Counter()
    for config in ok:
        if counts[config.block_m] < (FINALISTS_OF_BLOCK_M if config.block_m in reachable else 1):
            counts[config.block_m] += 1
            chosen.append(config)
    return chosen


def best_latencies_us(measured: Mapping[KernelConfig, Measurement]) -> dict[int, float]:
    """The lowest latency at every ``block_m`` that ran, microseconds."""
    best: dict[int, float] = {}
    for config, one in measured.items():
        if one.outcome is Outcome.OK:
            best[config.block_m] = min(one.latency_us, best.get(config.block_m, float("inf")))
    return best
