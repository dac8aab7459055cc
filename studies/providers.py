"""How far autotune's own kernels are from vLLM's: the same configurations on both.

    python studies/providers.py

Per shape it prints the rank correlation (Spearman's) of their latencies, and how much slower than
the best the configuration is, on vLLM's kernels, that autotune's own would have chosen.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Outcome, never_stop
from autotune.measure.cuda.runner import CudaRunner

CONFIGS = 200

_COMMON = {"max_loras": 8}
SHAPES = [
    KernelShape.from_mapping(_COMMON | each)
    for each in (
        {"op": "shrink", "num_tokens": 1, "hidden_size": 4096, "rank": 16, "num_slices": 3},
        {"op": "shrink", "num_tokens": 64, "hidden_size": 4096, "rank": 64, "num_slices": 3},
        {"op": "shrink", "num_tokens": 16, "hidden_size": 14336, "rank": 64},
        {"op": "shrink", "num_tokens": 1024, "hidden_size": 4096, "rank": 16, "num_slices": 2},
        {"op": "expand", "num_tokens": 16, "slice_sizes": [4096, 1024, 1024], "rank": 64},
        {"op": "expand", "num_tokens": 64, "hidden_size": 14336, "num_slices": 2, "rank": 64},
        {"op": "expand", "num_tokens": 1024, "hidden_size": 4096, "rank": 16},
    )
]

Latencies = dict[KernelShape, dict[KernelConfig, float]]


def measure(provider: str, configs: Mapping[KernelShape, list[KernelConfig]]) -> Latencies:
    """Median latency of every configuration that runs, microseconds."""
    found: Latencies = {}
    with CudaRunner(provider) as runner:
        for shape, wanted in configs.items():
            pending, found[shape] = dict.fromkeys(wanted), {}
            while pending:
                measurement = runner.measure(shape, list(pending)[: runner.lookahead], never_stop)
                del pending[measurement.config]
                if measurement.outcome is Outcome.OK:
                    found[shape][measurement.config] = measurement.latency_us
    return found


def sample() -> dict[KernelShape, list[KernelConfig]]:
    """The default and others of each shape's space as it is with vLLM's kernels."""
    draw = random.Random(0)  # noqa: S311 - not for secrets
    chosen = {}
    with CudaRunner("vllm") as runner:
        print(runner.environment)
        for shape in SHAPES:
            space = runner.space(shape, {})
            others = [config for config in space.configs if config != space.default]
            taken = draw.sample(others, min(CONFIGS - 1, len(others)))
            chosen[shape] = [space.default, *taken]
    return chosen


def ranks(values: list[float]) -> list[int]:
    """The place of each value in ascending order."""
    order = sorted(range(len(values)), key=values.__getitem__)
    return [place for _, place in sorted(zip(order, range(len(values)), strict=True))]


def main() -> None:
    """Measure on both, and print one line a shape."""
    configs = sample()
    ours, theirs = measure("builtin", configs), measure("vllm", configs)
    losses = []
    for shape in SHAPES:
        both = [config for config in ours[shape] if config in theirs[shape]]
        mine, vllms = ([each[shape][config] for config in both] for each in (ours, theirs))
        choice = min(both, key=ours[shape].__getitem__)
        losses.append(theirs[shape][choice] / min(vllms) - 1)
        ratio = statistics.median(a / b for a, b in zip(mine, vllms, strict=True))
        correlation = statistics.correlation(ranks(mine), ranks(vllms))
        print(
            f"{shape.op.value:6} {shape.label:60} {len(both):3} configs   "
            f"rank correlation {correlation:.4f}   latency ours/vLLM's {ratio:.3f}   "
            f"best {min(mine):.2f} and {min(vllms):.2f} µs   our choice loses {losses[-1]:.2%}",
            flush=True,
        )
    print(f"loss: median {statistics.median(losses):.2%}, worst {max(losses):.2%}")


if __name__ == "__main__":
    main()
