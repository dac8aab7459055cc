"""Time a MoE layer on vLLM's kernels: vLLM's default beside a tuned folder.

    python studies/moe_layer.py FOLDER STUDY [--rank N] [--tokens 1,16] [--seconds 40]

Each op is timed alone, except where vLLM has one kernel for shrink and expand. The pairs of shrink
and expand, of w13 and of w2, are timed as vLLM runs them, one after the other. All numbers are
checked. The pairs come first; what there is no time for is left out of the table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from autotune.errors import AutotuneError, GpuMissing, InputError
from autotune.export.bench import find_entry
from autotune.launch.config import KernelConfig
from autotune.launch.moe_layer import by_layer, missing_ops, names_of
from autotune.launch.op import MOE_OPS, LoraOp
from autotune.launch.shape import KernelShape
from autotune.measure.cuda.gpu import describe_device, has_gpu
from autotune.plan.study import StudyPlan

if TYPE_CHECKING:
    from autotune.measure.kernels.inputs import Inputs

#: Rounds, in each of which the default and the tuned configuration are timed once.
ROUNDS = 40

#: Rows of the table for pairs: the name of the row, and the two ops.
PAIRS = {"w13 shrink + expand": MOE_OPS[:2], "w2 shrink + expand": MOE_OPS[2:]}

#: Row of the table for the sum of both pairs.
LAYER = "layer, both pairs"

#: Enqueues the work once, with inputs and the number of a weight set.
Launch = Callable[["Inputs", int], None]


class Figure(NamedTuple):
    """Default and tuned latency, microseconds; ``problem`` says what is wrong with the numbers."""

    default_us: float
    tuned_us: float
    problem: str = ""

    @property
    def text(self) -> str:
        """The figure as a cell of the table."""
        ratio = self.default_us / self.tuned_us
        return f"{self.default_us:.1f} → {self.tuned_us:.1f} ({ratio:.2f})"


#: Figures by token count and row of the table.
Figures = dict[tuple[int, str], Figure]


def layers_of(plan: StudyPlan) -> dict[int, dict[LoraOp, KernelShape]]:
    """The four shapes of the study's MoE layer, by token count.

    Raises:
        InputError: The study has no MoE layer or several, the layer lacks ops, or its LoRAs are
            fully sharded.
    """
    layers: dict[int, dict[LoraOp, KernelShape]] = {}
    for layer, shapes in by_layer(plan.shapes, lambda shape: shape).items():
        if layer.num_tokens in layers or len(shapes) > len(MOE_OPS):
            raise InputError(f"{plan.source} has several MoE layers: give one with a single layer")
        if layer.fully_sharded:
            raise InputError(f"{plan.source}: fully sharded LoRAs need several GPUs")
        missing = missing_ops(shapes)
        if missing:
            raise InputError(f"{plan.source} has no {names_of(missing)}: all four ops are needed")
        layers[layer.num_tokens] = {shape.op: shape for shape in shapes}
    if not layers:
        raise InputError(f"{plan.source} has no MoE ops: give the study of a MoE model")
    return layers


def tuned_configs(
    folder: Path, shapes: Mapping[LoraOp, KernelShape], gpu: str
) -> dict[LoraOp, KernelConfig]:
    """The configurations that vLLM finds in the folder for the ops of a layer.

    Raises:
        InputError: An entry is missing, or the entries differ in ``block_m``.
    """
    configs = {op: find_entry(folder, shape, gpu).config for op, shape in shapes.items()}
    if len({config.block_m for config in configs.values()}) > 1:
        raise InputError(f"{folder}: the entries differ in block_m; see autotune check {folder}")
    return configs


def with_sums(figures: Figures) -> Figures:
    """The figures, with the sum of both pairs where both were timed."""
    found = dict(figures)
    for tokens in {tokens for tokens, _ in figures}:
        pairs = [figures[tokens, name] for name in PAIRS if (tokens, name) in figures]
        if len(pairs) == len(PAIRS):
            found[tokens, LAYER] = Figure(
                sum(pair.default_us for pair in pairs), sum(pair.tuned_us for pair in pairs)
            )
    return found


def table(figures: Figures) -> Iterator[str]:
    """Lines of a Markdown table: rows for ops, pairs and the layer; a column per token count."""
    counts = sorted({tokens for tokens, _ in figures})
    yield "| µs, default → tuned | " + " | ".join(f"{count:,} tokens" for count in counts) + " |"
    yield "|---" * (len(counts) + 1) + "|"
    for row in (*(names_of([op]) for op in MOE_OPS), *PAIRS, LAYER):
        cells = [figures[count, row].text if (count, row) in figures else "" for count in counts]
        if any(cells):
            yield f"| {row} | " + " | ".join(cells) + " |"


class LayerClock:
    """Times the ops of a layer on vLLM's kernels."""

    def __init__(self, folder: Path) -> None:
        from autotune.measure.cuda.clock import CacheFlush
        from autotune.measure.kernels.vllm import VllmProvider

        self._folder, self._device = folder, describe_device()
        self._kernels = VllmProvider()
        self._flush = CacheFlush(self._device.l2_bytes)
        print(f"{self._device.name}, vLLM {self._kernels.version}")

    def jobs(
        self, layers: Mapping[int, Mapping[LoraOp, KernelShape]]
    ) -> list[tuple[int, str, Callable[[], Figure]]]:
        """All there is to time, the pairs first: token count, row and a function that times it."""
        pairs, alone = [], []
        for tokens, shapes in layers.items():
            tuned = tuned_configs(self._folder, shapes, self._device.name)
            default = {op: self._kernels.default(shape) for op, shape in shapes.items()}
            for name, (shrink, expand) in PAIRS.items():
                launches = [
                    self._pair_launch(configs[shrink], configs[expand])
                    for configs in (default, tuned)
                ]
                pairs.append((tokens, name, partial(self._time, shapes[shrink], launches, True)))
            for op, shape in shapes.items():
                if not self._kernels.runs_pair(shape):
                    launches = [self._launch(configs[op]) for configs in (default, tuned)]
                    job = partial(self._time, shape, launches, False)
                    alone.append((tokens, names_of([op]), job))
        return [*pairs, *alone]

    def _launch(self, config: KernelConfig) -> tuple[Launch, KernelConfig]:
        return lambda inputs, number: self._kernels.launch(inputs, config, number), config

    def _pair_launch(
        self, shrink: KernelConfig, expand: KernelConfig
    ) -> tuple[Launch, KernelConfig]:
        def launch(inputs: Inputs, number: int) -> None:
            self._kernels.launch_pair(inputs, shrink, expand, number)

        return launch, shrink

    def _time(
        self, shape: KernelShape, launches: Sequence[tuple[Launch, KernelConfig]], pair: bool
    ) -> Figure:
        from autotune.measure.cuda.clock import LaunchClock
        from autotune.measure.cuda.device import rotating_inputs
        from autotune.measure.kernels.reference import check_result, expect

        inputs = rotating_inputs(shape, self._device.memory_bytes, pair=pair)
        expected, clocks, problems = expect(inputs), [], []
        for launch, config in launches:

            def once(launch: Launch = launch, config: KernelConfig = config) -> None:
                launch(inputs, 0)
                self._kernels.collect(inputs, config)

            problems.append(check_result(once, inputs, expected).problem)
            weight_sets = len(inputs.weight_sets)
            clocks.append(
                LaunchClock(partial(launch, inputs), weight_sets=weight_sets, flush=self._flush)
            )
        rounds = [[clock.sample_us() for clock in clocks] for _ in range(ROUNDS)]
        medians = [statistics.median(each) for each in zip(*rounds, strict=True)]
        return Figure(*medians, problem="; ".join(filter(None, problems)))


def measured(
    jobs: Iterable[tuple[int, str, Callable[[], Figure]]], deadline: float
) -> tuple[Figures, int]:
    """The figures of all jobs that start before the deadline, and the number of other jobs."""
    figures: Figures = {}
    left = 0
    for tokens, row, job in jobs:
        if time.monotonic() > deadline:
            left += 1
            continue
        figure = figures[tokens, row] = job()
        print(f"{tokens:6} {row:20} {figure.text} {figure.problem or 'numbers right'}", flush=True)
    return figures, left


def main(arguments: Sequence[str] | None = None) -> int:
    """Time a study's layer; the exit code is 1 after an error or wrong numbers."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description="One MoE layer: default beside tuned.")
    parser.add_argument("folder", type=Path, help="folder that autotune run wrote")
    parser.add_argument("study", type=Path, help="study file of a MoE model")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--tokens", type=lambda text: [int(count) for count in text.split(",")])
    parser.add_argument(
        "--seconds", type=float, default=40, help="start nothing after this many seconds"
    )
    given = parser.parse_args(arguments)
    try:
        plan = StudyPlan.read(given.study).override(rank=given.rank, tokens=given.tokens)
        layers = layers_of(plan)
        if not has_gpu():
            raise GpuMissing("no CUDA GPU here: run this where there is one")
        figures, left = measured(LayerClock(given.folder).jobs(layers), started + given.seconds)
    except AutotuneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(["", *table(with_sums(figures))]))
    print(f"{time.monotonic() - started:.0f} s" + (f"; {left} not timed" if left else ""))
    wrong = [key for key, figure in figures.items() if figure.problem]
    print(*(f"wrong numbers: {tokens} tokens, {row}" for tokens, row in wrong), sep="\n", end="")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
