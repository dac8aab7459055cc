"""How much does experience of one rank, model family or release say of another?

    python studies/experience.py [--seeds 3]

The recordings ``apart`` hold the same four layers at two batch sizes, apart in one thing each. Each
of these layers is searched with the experience of the same layers elsewhere, and with none. The
table has how far the best of the first trials is from the best that was recorded.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from threadpoolctl import threadpool_limits

from autotune.errors import AutotuneError
from autotune.launch.shape import KernelShape
from autotune.measure import Outcome
from autotune.measure.replay import ReplayRunner
from autotune.search.budget import Budget
from autotune.search.loop import SearchLoop
from autotune.search.samplers.transfer import Neighbour

RECORDINGS = Path(__file__).parent / "recordings"

#: Trials after which the best is judged.
LOOKED_AT = (3, 6, 12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where experience comes from.

    Attributes:
        name: As the table names it.
        recording: The recording that has it.
        is_of: Whether a shape of the recording is experience for the search of another.
    """

    name: str
    recording: ReplayRunner
    is_of: Callable[[KernelShape, KernelShape], bool]

    def neighbours(self, target: KernelShape, *, elsewhere: bool) -> list[Neighbour]:
        """The experience for the search of ``target``."""
        return [
            Neighbour(shape, tuple(self.recording.recorded(shape)), is_elsewhere=elsewhere)
            for shape in self.recording.shapes
            if self.is_of(shape, target)
        ]


def differs_in(*names: str) -> Callable[[KernelShape, KernelShape], bool]:
    """The rule for shapes that are equal but for these fields, and differ in all of them."""

    def rule(shape: KernelShape, target: KernelShape) -> bool:
        same = replace(shape, **{name: getattr(target, name) for name in names})
        return same == target and all(
            getattr(shape, name) != getattr(target, name) for name in names
        )

    return rule


def is_other_layer(shape: KernelShape, target: KernelShape) -> bool:
    """Whether a shape is another layer of the same model, at the same batch size."""
    same_server = (shape.rank, shape.max_loras, shape.num_tokens) == (
        target.rank,
        target.max_loras,
        target.num_tokens,
    )
    return same_server and shape.op is target.op and shape != target and is_llama(shape)


def is_other_family(shape: KernelShape, target: KernelShape) -> bool:
    """Whether a shape is the same layer of the other model."""
    same = (shape.op, shape.rank, shape.max_loras, shape.num_tokens, shape.num_slices) == (
        target.op,
        target.rank,
        target.max_loras,
        target.num_tokens,
        target.num_slices,
    )
    return same and not is_llama(shape)


def is_llama(shape: KernelShape) -> bool:
    """Whether a shape has the sizes of Llama-3.1-8B."""
    return shape.hidden_size in (4096, 14336)


def regrets(
    runner: ReplayRunner, target: KernelShape, known: Sequence[Neighbour], seed: int
) -> list[float]:
    """How far the best of the first trials is from the best recorded, for each of LOOKED_AT."""
    space = runner.space(target, {})
    best = min(one.latency_us for one in runner.recorded(target) if one.outcome is Outcome.OK)
    loop = SearchLoop(runner, space, sampler="adaptive", seed=seed, finished=list(known))
    found = []
    for trials in LOOKED_AT:
        budget = Budget(trials=min(trials, len(space.configs)))
        while loop.ask(budget):
            loop.measure()
        worked = [one.latency_us for one in loop.measured.values() if one.outcome is Outcome.OK]
        found.append(min(worked, default=float("inf")) / best - 1)
    return found


def targets(recording: ReplayRunner) -> Iterable[KernelShape]:
    """The shapes that are searched: Llama's, at rank 16 with 8 adapters."""
    for shape in recording.shapes:
        if (shape.rank, shape.max_loras) == (16, 8) and is_llama(shape):
            yield shape


def table(apart: ReplayRunner, older: ReplayRunner, seeds: int) -> Mapping[str, list[list[float]]]:
    """Regrets by source: one list for each search of a target."""
    sources = [
        Source(name="none", recording=apart, is_of=lambda _shape, _target: False),
        Source(name="another rank (64)", recording=apart, is_of=differs_in("rank")),
        Source(
            name="another max_loras (1)",
            recording=apart,
            is_of=lambda one, target: (
                one.max_loras == 1 and differs_in("max_loras", "active_loras")(one, target)
            ),
        ),
        Source(
            name="another max_loras (32)",
            recording=apart,
            is_of=lambda one, target: (
                one.max_loras == 32 and differs_in("max_loras", "active_loras")(one, target)
            ),
        ),
        Source(name="another batch size", recording=apart, is_of=differs_in("num_tokens")),
        Source(name="another layer", recording=apart, is_of=is_other_layer),
        Source(name="another family", recording=apart, is_of=is_other_family),
        Source(name="another release", recording=older, is_of=lambda one, target: one == target),
    ]
    found: dict[str, list[list[float]]] = {}
    for source in sources:
        for target in targets(apart):
            known = source.neighbours(target, elsewhere=source.recording is older)
            if known or source.name == "none":
                rows = [regrets(apart, target, known, seed) for seed in range(seeds)]
                found.setdefault(source.name, []).extend(rows)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="searches of each layer")
    given = parser.parse_args()
    apart = ReplayRunner([RECORDINGS / "apart_h100.jsonl.gz"])
    older = ReplayRunner([RECORDINGS / "apart_0.28.0_h100.jsonl.gz"])
    with threadpool_limits(1, user_api="blas"):
        found = table(apart, older, given.seeds)
    print(f"loss after {', '.join(map(str, LOOKED_AT))} trials: mean, then the worst")
    for name, rows in found.items():
        columns = list(zip(*rows, strict=True))
        means = "  ".join(f"{statistics.mean(one):6.1%}" for one in columns)
        worst = "  ".join(f"{max(one):6.1%}" for one in columns)
        print(f"{name:24} {len(rows):3} searches   {means}   {worst}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except AutotuneError as error:
        sys.exit(f"error: {error}")
