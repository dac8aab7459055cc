"""Compare autotune's own kernels with vLLM's: the same configurations on both.

    python studies/providers.py

For each shape it prints the rank correlation (Spearman's) of the latencies on both. It also prints
what autotune's own kernels would lose as a guide: how much slower than the best their fastest
configuration is on vLLM's kernels.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Mapping

from autotune.errors import AutotuneError
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Outcome
from autotune.measure.runners import gpu_runner
from autotune.measure.sweep import measure_all

#: Configurations of each shape that are measured.
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
    with gpu_runner(provider, print) as runner:
        for shape, wanted in configs.items():
            found[shape] = {
                measurement.config: measurement.latency_us
                for measurement in measure_all(runner, shape, wanted)
                if measurement.outcome is Outcome.OK
            }
    return found


def sample() -> dict[KernelShape, list[KernelConfig]]:
    """For each shape the default and other configurations of its space with vLLM's kernels."""
    draw = random.Random(0)  # noqa: S311 - not for secrets
    chosen = {}
    with gpu_runner("vllm", print) as runner:
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
    """Measure on both, and print one line per shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
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
    try:
        main()
    except AutotuneError as error:
        sys.exit(f"error: {error}")
