"""Would other configurations win if a kernel were timed between a server's other kernels?

    python studies/regimes.py DATABASE [--tokens 8,32,128] [--samples 40] [-o RAW.json]

DATABASE is what ``autotune run`` filled on this GPU, such as ``sqlite:///autotune.db``. The
finalists of every dense kernel are timed in two regimes. ``alone`` is autotune's: launches one
after another, each with another weight set. ``between`` is a server's: before an expand the base
layer's product is computed into the tensor that the expand adds to; before a shrink the cache is
emptied, and what the shrink reads is written. A replay of both is timed, less a replay of what
comes before alone.

Printed for each kernel: the times of what was chosen and of vLLM's default in both regimes, and by
how much the fastest finalist of a server's regime passes what was chosen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from autotune.choose.selection import Selection
from autotune.errors import AutotuneError, GpuMissing, InputError
from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.measure.cuda.clock import CacheFlush, LaunchClock
from autotune.measure.cuda.device import rotating_inputs
from autotune.measure.cuda.gpu import describe_device, has_gpu
from autotune.measure.kernels.inputs import Inputs
from autotune.measure.kernels.vllm import VllmProvider
from autotune.store import Store

#: What the base layer of an expand is taken to read of each token: Llama-3.1-8B's hidden size.
BASE_READS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A configuration in both regimes, microseconds."""

    config: KernelConfig
    alone_us: float
    between_us: float


class Between:
    """Times a launch that comes after something else."""

    def __init__(
        self, before: Callable[[], object], launch: Callable[[int], None], sets: int
    ) -> None:
        self._sets = sets
        self._both = _graph(lambda n: (before(), launch(n)), sets)
        self._before = _graph(lambda _: before(), sets)

    def sample_us(self) -> float:
        """The time of a launch, microseconds."""
        return (_replay_us(self._both) - _replay_us(self._before)) / self._sets


def _graph(enqueue: Callable[[int], object], count: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for number in range(count):
            enqueue(number)
    return graph


def _replay_us(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000


def before(inputs: Inputs, flush: CacheFlush) -> Callable[[], object]:
    """What a server does right before a kernel."""
    if inputs.shape.op is LoraOp.EXPAND:
        rows, columns = inputs.out.shape
        of_dtype = {"device": "cuda", "dtype": inputs.out.dtype}
        hidden = torch.randn(rows, BASE_READS, **of_dtype)  # type: ignore[call-overload]
        weight = torch.randn(columns, BASE_READS, **of_dtype)  # type: ignore[call-overload]
        return lambda: torch.mm(hidden, weight.T, out=inputs.out)
    source = inputs.x.clone()

    def write() -> None:
        flush()
        inputs.x.copy_(source)

    return write


def timed(
    selection: Selection, provider: VllmProvider, flush: CacheFlush, *, samples: int
) -> list[Timed]:
    """The finalists of a kernel, vLLM's default among them, in both regimes."""
    inputs = rotating_inputs(selection.shape, torch.cuda.get_device_properties(0).total_memory)
    first, sets = before(inputs, flush), len(inputs.weight_sets)
    clocks = {}
    for config in dict.fromkeys([selection.config, selection.default, *selection.samples_us]):

        def launch(number: int, config: KernelConfig = config) -> None:
            provider.launch(inputs, config, number)

        launch(0)
        first()
        alone = LaunchClock(launch, weight_sets=sets, flush=flush)
        clocks[config] = alone, Between(first, launch, sets)
    rounds = [
        [(alone.sample_us(), between.sample_us()) for alone, between in clocks.values()]
        for _ in range(samples)
    ]
    return [
        Timed(
            config=config,
            alone_us=statistics.median(each[place][0] for each in rounds),
            between_us=statistics.median(each[place][1] for each in rounds),
        )
        for place, config in enumerate(clocks)
    ]


def line(selection: Selection, found: Sequence[Timed]) -> tuple[str, float]:
    """A row of the table, and by what share the chosen configuration is passed."""
    chosen, default = found[0], found[0 if selection.config == selection.default else 1]
    loss = chosen.between_us / min(each.between_us for each in found) - 1
    best = min(found, key=lambda each: each.between_us)
    other = "" if best is chosen else f"  {best.config}"
    text = (
        f"{selection.shape.op.value:6} {selection.shape.label:60} default {default.alone_us:7.2f} "
        f"{default.between_us:7.2f}  chosen {chosen.alone_us:7.2f} {chosen.between_us:7.2f}  "
        f"passed by {loss:6.1%}{other}"
    )
    return text, loss


def main() -> int:
    """Time every kernel and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("database", metavar="DATABASE")
    parser.add_argument("--tokens", default="8,32,128")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("-o", "--output", type=Path, metavar="RAW.json")
    given = parser.parse_args()
    counts = {int(each) for each in given.tokens.split(",")}
    if not has_gpu():
        raise GpuMissing("no CUDA GPU here: run this where there is one")
    with closing(Store(given.database, read_only=True)) as store:
        kept = [
            one
            for _, one in store.selections()
            if one.shape.num_tokens in counts and not one.shape.op.is_moe
        ]
    if not kept:
        raise InputError(f"{given.database} has no dense kernel at {given.tokens} tokens")
    provider, flush = VllmProvider(), CacheFlush(describe_device().l2_bytes)
    losses, raw = [], []
    for selection in kept:
        found = timed(selection, provider, flush, samples=given.samples)
        text, loss = line(selection, found)
        losses.append(loss)
        raw.append(
            {
                "shape": selection.shape.as_dict(),
                "chosen": selection.config.as_dict(),
                "default": selection.default.as_dict(),
                "timed": [
                    {
                        "config": each.config.as_dict(),
                        "alone_us": each.alone_us,
                        "between_us": each.between_us,
                    }
                    for each in found
                ],
            }
        )
        if given.output is not None:
            given.output.write_text(json.dumps(raw) + "\n", encoding="utf-8")
        print(text, flush=True)
    print(
        f"{len(losses)} kernels: what was chosen is passed by {statistics.median(losses):.1%} in "
        f"the median and {max(losses):.1%} at worst"
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AutotuneError as error:
        sys.exit(f"regimes: {error}")
