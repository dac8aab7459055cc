"""One MoE layer on vLLM's kernels: vLLM's default beside a tuned folder, op by op and together.

    python studies/moe_layer.py FOLDER STUDY [--rank N] [--tokens 1,16] [--seconds 40]

Every op is timed alone, and w13's and w2's shrink and expand are timed back to back, as vLLM runs
them. Where vLLM has one kernel for the two, no op runs alone. All numbers are checked. What the
time does not suffice for is left out of the table; the pairs come first.
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

#: Rounds, in which the default and the tuned configuration take turns.
ROUNDS = 40

#: Rows of the table that are sums of others: their name, and the rows.
PAIRS = {"w13 shrink + expand": MOE_OPS[:2], "w2 shrink + expand": MOE_OPS[2:]}
LAYER = "layer, both pairs"

#: Enqueues the work once, with inputs and the number of a weight set.
Launch = Callable[["Inputs", int], None]


class Figure(NamedTuple):
    """Default's and tuned latency, microseconds; ``problem`` is what is wrong, mostly nothing."""

    default_us: float
    tuned_us: float
    problem: str = ""

    @property
    def text(self) -> str:
        """The figure as a cell of the table."""
        ratio = self.default_us / self.tuned_us
        return f"{self.default_us:.1f} → {self.tuned_us:.1f} ({ratio:.2f})"


#: Per token count and row of the table.
Figures = dict[tuple[int, str], Figure]


def layers_of(plan: StudyPlan) -> dict[int, dict[LoraOp, KernelShape]]:
    """The four shapes of the study's MoE layer, by token count.

    Raises:
        InputError: There is none, or another, or it lacks ops, or its LoRAs are fully sharded.
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
    """What vLLM finds in the folder for the ops of a layer.

    Raises:
        InputError: An entry is missing, or they do not fit each other.
    """
    configs = {op: find_entry(folder, shape, gpu).config for op, shape in shapes.items()}
    if len({config.block_m for config in configs.values()}) > 1:
        raise InputError(f"{folder}: the entries differ in block_m; see autotune check {folder}")
    return configs


def with_sums(figures: Figures) -> Figures:
    """The figures, and the layer's where both of its pairs have one."""
    found = dict(figures)
    for tokens in {tokens for tokens, _ in figures}:
        pairs = [figures[tokens, name] for name in PAIRS if (tokens, name) in figures]
        if len(pairs) == len(PAIRS):
            found[tokens, LAYER] = Figure(
                sum(pair.default_us for pair in pairs), sum(pair.tuned_us for pair in pairs)
            )
    return found


def table(figures: Figures) -> Iterator[str]:
    """Lines of a Markdown table: a row for each op, pair and the layer, a column a token count."""
    counts = sorted({tokens for tokens, _ in figures})
    yield "| µs, default → tuned | " + " | ".join(f"{count:,} tokens" for count in counts) + " |"
    yield "|---" * (len(counts) + 1) + "|"
    for row in (*(names_of([op]) for op in MOE_OPS), *PAIRS, LAYER):
        cells = [figures[count, row].text if (count, row) in figures else "" for count in counts]
        if any(cells):
            yield f"| {row} | " + " | ".join(cells) + " |"


class LayerTimer:
    """Times the ops of a layer on vLLM's kernels."""

    def __init__(self, folder: Path) -> None:
        from autotune.measure.cuda.timer import CacheFlush
        from autotune.measure.kernels.vllm import VllmProvider

        self._folder, self._device = folder, describe_device()
        self._kernels = VllmProvider()
        self._flush = CacheFlush(self._device.l2_bytes)
        print(f"{self._device.name}, vLLM {self._kernels.version}")

    def jobs(
        self, layers: Mapping[int, Mapping[LoraOp, KernelShape]]
    ) -> list[tuple[int, str, Callable[[], Figure]]]:
        """Token count, row and measurement of everything there is to time, the pairs first."""
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
        from autotune.measure.cuda.device import rotating_inputs
        from autotune.measure.cuda.timer import LaunchTimer
        from autotune.measure.kernels.reference import check_result, expect

        inputs = rotating_inputs(shape, self._device.memory_bytes, pair=pair)
        expected, timers, problems = expect(inputs), [], []
        for launch, config in launches:

            def once(launch: Launch = launch, config: KernelConfig = config) -> None:
                launch(inputs, 0)
                self._kernels.collect(inputs, config)

            problems.append(check_result(once, inputs, expected).problem)
            timers.append(
                LaunchTimer(
                    partial(launch, inputs),
                    weight_sets=len(inputs.weight_sets),
                    flush=self._flush,
                )
            )
        rounds = [[timer.sample_us() for timer in timers] for _ in range(ROUNDS)]
        medians = [statistics.median(each) for each in zip(*rounds, strict=True)]
        return Figure(*medians, problem="; ".join(filter(None, problems)))


def measured(
    jobs: Iterable[tuple[int, str, Callable[[], Figure]]], deadline: float
) -> tuple[Figures, int]:
    """The figures of all jobs that are started in time, and how many are not."""
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
    """Time a study's layer; 1 where something is wrong."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description="One MoE layer: default beside tuned.")
    parser.add_argument("folder", type=Path, help="folder that autotune run wrote")
    parser.add_argument("study", type=Path, help="study file of a MoE model")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--tokens", type=lambda text: [int(count) for count in text.split(",")])
    parser.add_argument("--seconds", type=float, default=40, help="begin nothing after so many")
    given = parser.parse_args(arguments)
    try:
        plan = StudyPlan.read(given.study).override(rank=given.rank, tokens=given.tokens)
        layers = layers_of(plan)
        if not has_gpu():
            raise GpuMissing("no CUDA GPU here: run this where there is one")
        figures, left = measured(LayerTimer(given.folder).jobs(layers), started + given.seconds)
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
