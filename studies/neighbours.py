"""Time one configuration on every GPU of this host: alone, and while the others measure, too.

    python studies/neighbours.py

Each GPU has a process of its own. First they measure one after another, then all at once, then one
after another again. The last lines say how much GPUs of one host differ, and by how much neighbours
at work move a GPU's figures. ``studies/LOG.md`` has ours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence

from autotune.errors import AutotuneError, GpuMissing
from autotune.launch.shape import KernelShape
from autotune.measure.cuda.visible import VARIABLE, visible_devices
from autotune.measure.runners import gpu_runner

#: What is timed with vLLM's default configuration.
SHAPES = [
    KernelShape.from_mapping({"rank": 16, "max_loras": 8, **mapping})
    for mapping in (
        {"op": "shrink", "num_tokens": 16, "hidden_size": 4096, "num_slices": 3},
        {"op": "shrink", "num_tokens": 1024, "hidden_size": 14336, "num_slices": 1},
        {"op": "expand", "num_tokens": 64, "hidden_size": 14336, "num_slices": 2},
    )
]

#: Comparisons of each shape, of which the median counts.
REPEATS = 30


def measure() -> None:
    """For every line on stdin, write the median latency of each shape, microseconds."""
    with gpu_runner("builtin", lambda line: print(line, file=sys.stderr)) as runner:
        spaces = {shape: runner.space(shape, {}) for shape in SHAPES}
        for _ in sys.stdin:
            figures = []
            for shape, space in spaces.items():
                compared = [
                    runner.compare(shape, [space.default], lambda samples: True)
                    for _ in range(REPEATS)
                ]
                medians = [statistics.median(each.samples_us[space.default]) for each in compared]
                figures.append(statistics.median(medians))
            print(json.dumps(figures), flush=True)


def main() -> None:
    """Print the figures of all GPUs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().measure:
        measure()
        return
    devices = visible_devices()
    if not devices:
        raise GpuMissing("no CUDA GPU here: run this where there are several")
    command = [sys.executable, __file__, "--measure"]
    workers = [
        subprocess.Popen(  # noqa: S603 - this script
            command,
            env={**os.environ, VARIABLE: each.variable},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for each in devices
    ]
    rounds = []
    for name, are_together in (("alone", False), ("together", True), ("alone again", False)):
        rounds.append(_round(workers, are_together=are_together))
        for device, figures in zip(devices, rounds[-1], strict=True):
            print(f"{name:12} {device.label}: {' '.join(f'{each:8.3f}' for each in figures)} µs")
    for worker in workers:
        worker.communicate()
    alone, together, again = rounds
    for number, shape in enumerate(SHAPES):
        column = [figures[number] for figures in alone]
        moved = [
            now[number] / statistics.mean((before[number], after[number])) - 1
            for now, before, after in zip(together, alone, again, strict=True)
        ]
        print(
            f"{shape.op.value} {shape.label}: GPUs differ by {max(column) / min(column) - 1:.2%}; "
            f"neighbours move them by {min(moved):+.2%} to {max(moved):+.2%}"
        )


def _round(
    workers: Sequence[subprocess.Popen[str]], *, are_together: bool
) -> list[tuple[float, ...]]:
    """The figures of every worker, microseconds by shape."""
    answers = []
    for worker in workers:
        _ask(worker)
        if not are_together:
            answers.append(_answer(worker))
    return answers or [_answer(worker) for worker in workers]


def _ask(worker: subprocess.Popen[str]) -> None:
    assert worker.stdin is not None  # noqa: S101 - a pipe
    worker.stdin.write("measure\n")
    worker.stdin.flush()


def _answer(worker: subprocess.Popen[str]) -> tuple[float, ...]:
    assert worker.stdout is not None  # noqa: S101 - a pipe
    line = worker.stdout.readline()
    if not line:
        raise SystemExit("a process ended before it had measured")
    return tuple(json.loads(line))


if __name__ == "__main__":
    try:
        main()
    except AutotuneError as error:
        sys.exit(f"error: {error}")
