"""What autotune itself costs where inputs are large: seconds and memory, with nothing measured.

    python studies/cost.py

It prints a row for each: choosing from a space of 50,000 configurations with 12 shapes to learn
from, ordering 800 shapes, and a recording that holds one configuration 20,000 times.
"""

from __future__ import annotations

import gzip
import itertools
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

import autotune
from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Measurement, Outcome
from autotune.search.samplers.chooser import Chooser
from autotune.search.samplers.picker import History
from autotune.search.samplers.transfer import Neighbour, in_order

CONFIGURATIONS, TRIALS, SHAPES, REPEATS = 50_000, 60, 800, 20_000


def shrink(num_tokens: int, hidden_size: int = 4096) -> KernelShape:
    """A dense shrink."""
    table = {"op": "shrink", "num_tokens": num_tokens, "hidden_size": hidden_size}
    return KernelShape.from_mapping(table | {"rank": 16, "num_slices": 3, "max_loras": 8})


def configs(count: int) -> list[KernelConfig]:
    """Different configurations of a shrink."""
    axes = {
        "block_m": [2**n for n in range(4, 10)],
        "block_n": [2**n for n in range(4, 10)],
        "block_k": [2**n for n in range(4, 11)],
        "split_k": [2**n for n in range(7)],
        "group_size_m": [1, 2, 4, 8],
        "num_warps": [1, 2, 4, 8, 16],
        "num_stages": list(range(1, 8)),
    }
    values = itertools.islice(itertools.product(*axes.values()), count)
    return [
        KernelConfig.from_mapping(LoraOp.SHRINK, dict(zip(axes, one, strict=True)))
        for one in values
    ]


def made_up(shape: KernelShape, config: KernelConfig) -> Measurement:
    """A measurement whose latency is lowest at blocks of 64 by 128."""
    latency = 10 + abs(config.block_n - 64) / 16 + abs(config.block_k - 128) / 32
    samples = (latency,) * 3
    return Measurement(shape=shape, config=config, outcome=Outcome.OK, samples_us=samples)


def choose() -> None:
    """Ask a sampler's model for trials of a large space, and print what one takes."""
    learned = [
        Neighbour(shape, [made_up(shape, one) for one in configs(300)])
        for shape in (shrink(2**n) for n in range(12))
    ]
    shape, rng = shrink(24), np.random.default_rng(0)
    start = time.perf_counter()
    space = SearchSpace(shape, configs(CONFIGURATIONS), default=configs(1)[0])
    chooser = Chooser(space, learned)
    ready = time.perf_counter()
    rows: list[int] = []
    logs: list[float] = []
    for _ in range(TRIALS):
        free = np.setdiff1d(np.arange(CONFIGURATIONS), rows)
        done = np.ones(len(rows), dtype=bool)
        row = chooser.choose(History(rows, np.array(logs), ~done, done), free, rng)
        rows.append(row)
        logs.append(float(np.log(made_up(shape, space.configs[row]).latency_us)))
    each = (time.perf_counter() - ready) / TRIALS
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"a space of {CONFIGURATIONS} configurations: {ready - start:.1f} s to begin, "
        f"{1000 * each:.0f} ms a trial, {gib:.2f} GiB at most",
        flush=True,
    )


def order() -> None:
    """Order many shapes."""
    shapes = [shrink(8 * n + 1, 256 * k) for n in range(SHAPES // 16) for k in range(1, 17)]
    start = time.perf_counter()
    in_order(shapes)
    print(f"ordering {len(shapes)} shapes: {time.perf_counter() - start:.2f} s", flush=True)


def repeat() -> None:
    """Replay a recording that holds one configuration many times."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "repeated.jsonl.gz"
        with gzip.open(autotune.shipped_recording(), "rt") as file:
            header, *lines = itertools.islice(file, 40)
        default = next(line for line in lines if "is_default" in json.loads(line))
        with gzip.open(path, "wt", compresslevel=1) as file:
            file.writelines([header, *lines, *[default] * REPEATS])
        start = time.perf_counter()
        shape = KernelShape.from_mapping(json.loads(default)["shape"])
        plan = autotune.StudyPlan.of_shapes([shape])
        autotune.tune(plan.override(storage=f"sqlite:///{folder}/a.db"), replay=path)
        took = time.perf_counter() - start
    print(f"one configuration {REPEATS} times in a recording: {took:.1f} s", flush=True)


def main() -> None:
    """Measure each in a process of its own, so that its memory is its own."""
    for each in (choose, order, repeat):
        process = multiprocessing.get_context("spawn").Process(target=each)
        process.start()
        process.join()


if __name__ == "__main__":
    main()
