"""Compare a tuned folder with an exhaustive search, on the installed vLLM's kernels.

    python studies/exhaustive.py tuned STUDY [RECORDING...]

The search spaces of the study's shapes are searched whole. Of a recorded shape, the fastest few
configurations stand for such a search. The best ones are then timed side by side with the folder's
entry. Shapes without an entry are skipped.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine import search

from autotune.errors import AutotuneError
from autotune.export import look_up, read_table
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Outcome
from autotune.measure.cuda.runner import CudaRunner
from autotune.measure.replay import ReplayRunner
from autotune.measure.runners import gpu_runner
from autotune.plan.study import StudyPlan

#: How many configurations stand for a recorded search. More than one, since the fastest may differ
#: from machine to machine.
FASTEST = 5


def searched(runner: CudaRunner, study: Path) -> Iterator[tuple[KernelShape, list[KernelConfig]]]:
    """Every shape of a study, with the best configuration of its whole space."""
    plan = StudyPlan.read(study)
    for shape in plan.shapes:
        space = runner.space(shape, plan.axes[shape.op])
        count = len(space.configs)
        yield shape, [search(runner, space, "exhaustive", trials=count, seed=0).config]


def recorded(paths: Sequence[Path]) -> Iterator[tuple[KernelShape, list[KernelConfig]]]:
    """Every recorded shape, with the fastest of its configurations."""
    for path in paths:
        replay = ReplayRunner([path])
        for shape in replay.shapes:
            works = [each for each in replay.recorded(shape) if each.outcome is Outcome.OK]
            works.sort(key=lambda each: each.latency_us)
            yield shape, [each.config for each in works[:FASTEST]]


def main() -> None:
    """Search, compare, and print one line per shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder that autotune run wrote")
    parser.add_argument("study", type=Path, help="study file")
    parser.add_argument("recordings", type=Path, nargs="*", help="recordings of whole searches")
    given = parser.parse_args()
    shares = []
    with gpu_runner("vllm", print) as runner:
        print(runner.environment)
        for shape, best in (*recorded(given.recordings), *searched(runner, given.study)):
            table = read_table(given.folder / shape.file_name(runner.environment.gpu)) or {}
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
    try:
        main()
    except AutotuneError as error:
        sys.exit(f"error: {error}")
