"""How near a tuned folder comes to an exhaustive search, on the kernels of the vLLM that is here.

    python studies/exhaustive.py tuned STUDY [RECORDING...]

The study's shapes are searched whole here; of a recording the fastest few stand for the whole
search, as far as the folder has entries for its shapes. The best of all is then timed beside the
folder's entry.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine import search

from autotune.export import look_up, read_table
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Outcome
from autotune.measure.cuda.runner import CudaRunner
from autotune.measure.replay import ReplayRunner
from autotune.plan.study import StudyPlan

#: Of a recording so many stand for all: which of two is faster may differ from machine to machine.
FASTEST = 5


def searched(runner: CudaRunner, study: Path) -> Iterator[tuple[KernelShape, list[KernelConfig]]]:
    """Every shape of a study, and the best configuration of its whole space."""
    plan = StudyPlan.read(study)
    for shape in plan.shapes:
        space = runner.space(shape, plan.axes[shape.op])
        count = len(space.configs)
        yield shape, [search(runner, space, "exhaustive", trials=count, seed=0).config]


def recorded(paths: Sequence[Path]) -> Iterator[tuple[KernelShape, list[KernelConfig]]]:
    """Every recorded shape, and the fastest of its configurations."""
    for path in paths:
        replay = ReplayRunner([path])
        for shape in replay.shapes:
            works = [each for each in replay.recorded(shape) if each.outcome is Outcome.OK]
            works.sort(key=lambda each: each.latency_us)
            yield shape, [each.config for each in works[:FASTEST]]


def main() -> None:
    """Search, compare, and print one line a shape."""
    folder, study, *recordings = map(Path, sys.argv[1:])
    shares = []
    with CudaRunner("vllm") as runner:
        print(runner.environment)
        for shape, best in (*recorded(recordings), *searched(runner, study)):
            table = read_table(folder / shape.file_name(runner.environment.gpu)) or {}
            found = look_up(table, shape.lookup_key)
            if found.path != shape.lookup_key:
                continue
            tuned = KernelConfig.from_mapping(shape.op, found.leaf)
            default = runner.space(shape, {}).default
            configs = list(dict.fromkeys((default, tuned, *best)))
            samples = runner.compare(shape, configs, lambda _: False).samples_us
            latencies = {config: statistics.median(samples[config]) for config in configs}
            best_us = min(latencies.values())
            shares.append(best_us / latencies[tuned])
            print(
                f"{shape.op.value} {shape.label}: default {latencies[default]:.2f}, exhaustive "
                f"best {best_us:.2f}, folder {latencies[tuned]:.2f} µs: {shares[-1]:.1%} of the "
                "best's speed",
                flush=True,
            )
    print(f"median {statistics.median(shares):.1%}, worst {min(shares):.1%} of {len(shares)}")


if __name__ == "__main__":
    main()
