"""How near what a run chose comes to the best of whole spaces, timed side by side on this GPU.

    python studies/chosen.py DATABASE [--shapes 6] [--configs 400]

For some shapes of a finished run, spread over the run, it measures many configurations of the space
in random order, cutting short what is plainly slower. Then it times the fastest of them, the run's
choice and vLLM's default side by side.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from contextlib import closing
from functools import partial

from autotune.choose.selection import Selection
from autotune.errors import AutotuneError
from autotune.launch.config import KernelConfig
from autotune.measure import Outcome, Runner
from autotune.measure.racing import is_told_apart
from autotune.measure.runners import gpu_runner
from autotune.store import Store

#: How many of the fastest are timed beside the run's choice.
_FASTEST = 5


def fastest(runner: Runner, chosen: Selection, count: int) -> list[KernelConfig]:
    """The fastest of ``count`` configurations drawn at random, the choice among them."""
    space = runner.space(chosen.shape, {})
    drawn = random.Random(0).sample(space.configs, min(count, len(space.configs)))  # noqa: S311
    pending = dict.fromkeys([chosen.config, *drawn])
    best: dict[KernelConfig, float] = {}

    def is_slow(_config: KernelConfig, samples_us: list[float]) -> bool:
        lowest = min(best.values(), default=float("inf"))
        return is_told_apart(statistics.median(samples_us), len(samples_us), best_us=lowest)

    while pending:
        one = runner.measure(chosen.shape, list(pending)[: runner.lookahead], is_slow)
        del pending[one.config]
        if one.outcome is Outcome.OK:
            best[one.config] = one.latency_us
    return sorted(best, key=lambda config: best[config])[:_FASTEST]


def judge(runner: Runner, chosen: Selection, count: int) -> float:
    """Print a line for a shape; returns how fast the choice is, the best being 1."""
    rivals = fastest(runner, chosen, count)
    configs = list(dict.fromkeys([chosen.config, *rivals]))
    samples = runner.compare(chosen.shape, configs, lambda _samples: False).samples_us
    medians = {config: statistics.median(those) for config, those in samples.items()}
    share = min(medians.values()) / medians[chosen.config]
    print(
        f"{chosen.shape.op.value:7} {chosen.shape.label:60} of {count}: "
        f"chosen {medians[chosen.config]:.2f} µs, best {min(medians.values()):.2f} µs, {share:.1%}",
        flush=True,
    )
    runner.leave(chosen.shape)
    return share


def main() -> None:
    """Read the command line, judge, and print a summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("database", help="of a finished run, such as sqlite:///autotune.db")
    parser.add_argument("--shapes", type=int, default=6)
    parser.add_argument("--configs", type=int, default=400, help="measured of each shape")
    given = parser.parse_args()
    with closing(Store(given.database, read_only=True)) as store:
        selections = [one for _, one in store.selections()]
    every = max(1, len(selections) // given.shapes)
    with gpu_runner("auto", partial(print, flush=True)) as runner:
        picked = selections[every // 2 :: every][: given.shapes]
        shares = [judge(runner, one, given.configs) for one in picked]
    print(f"median {statistics.median(shares):.1%}, worst {min(shares):.1%}")


if __name__ == "__main__":
    try:
        main()
    except AutotuneError as error:
        sys.exit(f"error: {error}")
