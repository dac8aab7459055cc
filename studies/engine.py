"""Figures of the measuring engine on this machine's GPU; ``studies/LOG.md`` has ours.

    python studies/engine.py

It searches one space of ``shrink`` exhaustively, with a cold and with a warm cache. It repeats a
search ten times and compares the chosen configurations. It times one configuration while the
processor is busy and while it is idle. It tunes the quick-start study, and draws when each shape
was searched.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from autotune.choose.selection import Selection
from autotune.errors import AutotuneError
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure.cuda.runner import CudaRunner
from autotune.measure.runners import gpu_runner
from autotune.plan.study import StudyPlan
from autotune.search import Budget, ShapeTuner, TrialMirror
from autotune.search.events import Choosing, Closed, Event, Tried
from autotune.search.run import run_job
from autotune.search.writer import Writer
from autotune.store import Store

SHAPE = KernelShape.from_mapping(
    {"op": "shrink", "num_tokens": 64, "hidden_size": 4096, "rank": 64}
    | {"num_slices": 3, "max_loras": 8}
)
AXES = {
    "block_m": (16, 32, 64),
    "block_n": (16, 32, 64),
    "block_k": (64, 128, 256),
    "split_k": (4, 8, 16, 32),
    "group_size_m": (8,),
    "num_warps": (2, 4, 8),
    "num_stages": (2, 3, 4),
}
#: Characters of the time line.
LINE_WIDTH = 100

#: Searches whose chosen configurations are compared.
REPEATS = 10


def search(
    runner: CudaRunner, space: SearchSpace, sampler: str, *, trials: int, seed: int
) -> Selection:
    """Run one whole search in a database of its own."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'engine.db'}"
        with (
            closing(Store(url)) as store,
            closing(TrialMirror(url)) as mirror,
            closing(Writer(store, mirror)) as writer,
        ):
            tuner = ShapeTuner(runner, space, writer=writer, sampler=sampler, seed=seed)
            selection = tuner.run(Budget(trials=trials))
    if selection is None:
        raise SystemExit("nothing works on this device")
    return selection


def snapshot(runner: CudaRunner) -> tuple[float, ...]:
    """Counters of the engine, then busy and wanted seconds of its compile pool."""
    figures, pool = runner.figures, runner.compilers
    counts = (figures.measured, figures.reused, figures.device_s, figures.compare_s)
    return (*counts, pool.busy_s, pool.wanted_s)


def throughput(runner: CudaRunner, space: SearchSpace, name: str, sampler: str) -> None:
    """Search the whole space and print the engine's throughput."""
    before = snapshot(runner)
    started = time.monotonic()
    search(runner, space, sampler, trials=len(space.configs), seed=0)
    took_s = time.monotonic() - started
    measured, reused, device_s, compare_s, busy_s, wanted_s = (
        now - then for now, then in zip(snapshot(runner), before, strict=True)
    )
    took_s -= compare_s
    print(
        f"{name:24} {measured:5.0f} configs {took_s:6.1f} s {measured / took_s:6.1f}/s   "
        f"device {1000 * device_s / measured:.1f} ms a config, idle {1 - device_s / took_s:.0%}   "
        f"pool busy {busy_s / max(wanted_s, 1e-9):.0%} of {wanted_s:.0f} s   "
        f"reused {reused:.0f}   finalists {compare_s:.1f} s more",
        flush=True,
    )


def repeated(runner: CudaRunner, space: SearchSpace, sampler: str, *, trials: int) -> None:
    """Search ten times with ten seeds, and compare the chosen configurations side by side."""
    chosen = []
    for seed in range(REPEATS):
        runner.leave(SHAPE)  # measure everything anew
        chosen.append(search(runner, space, sampler, trials=trials, seed=seed).config)
    compared = runner.compare(SHAPE, list(dict.fromkeys(chosen)), lambda samples: False).samples_us
    latencies = {config: statistics.median(samples) for config, samples in compared.items()}
    best = min(latencies.values())
    losses = sorted(latencies[config] / best - 1 for config in chosen)
    texts = " ".join(f"{loss:.2%}" for loss in losses)
    print(
        f"{REPEATS} searches, {sampler}, {trials} trials, above the best of what they chose "
        f"({best:.2f} µs): {texts}",
        flush=True,
    )


def busy_processor(runner: CudaRunner, config: KernelConfig) -> None:
    """Print a configuration's latency while every core is busy, and while none is."""
    cores = len(os.sched_getaffinity(0))
    for name in ("idle", "busy", "idle", "busy"):
        burners = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(cores)]
        for burner in burners if name == "busy" else ():
            burner.start()
        time.sleep(1.0)
        compared = [runner.compare(SHAPE, [config], lambda samples: True) for _ in range(20)]
        medians = [statistics.median(one.samples_us[config]) for one in compared]
        print(
            f"processor {name}: {statistics.median(medians):.3f} µs, "
            f"from {min(medians):.3f} to {max(medians):.3f}"
        )
        for burner in burners if name == "busy" else ():
            burner.terminate()


def time_line(runner: CudaRunner, started: float) -> None:
    """Tune the quick-start study, and draw when each of its shapes was searched.

    Args:
        runner: Has measured nothing yet.
        started: When its processes were started, by ``time.monotonic``.
    """
    seen: dict[KernelShape, list[tuple[float, str]]] = {}

    def watch(event: Event) -> None:
        match event:
            case Tried(measurement=measurement):
                shape, mark = measurement.shape, "-"
            case Choosing(shape=shape):
                mark = "="
            case Closed(shape=shape):
                mark = "|"
            case _:
                return
        seen.setdefault(shape, []).append((time.monotonic() - started, mark))

    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'line.db'}"
        plan = StudyPlan.quickstart().override(effort="normal", storage=url, seed=0)
        run_job(plan, runner, watch, say=print)
    whole_s = time.monotonic() - started
    first_s = min(times[0][0] for times in seen.values())
    print(f"time line of {whole_s:.1f} s; the first measurement after {first_s:.1f} s")
    print("- a measurement, = finalists side by side, | left")
    for shape, times in seen.items():
        line = [" "] * (LINE_WIDTH + 1)
        for at_s, mark in times:
            line[int(at_s / whole_s * LINE_WIDTH)] = mark
        print(f"{''.join(line)} {shape.op.value} {shape.label}")


def _burn() -> None:
    for _ in itertools.count():
        pass


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        started = time.monotonic()
        with gpu_runner("builtin", print) as runner:
            space = runner.space(SHAPE, AXES)
            print(runner.environment)
            print(f"start {time.monotonic() - started:.1f} s, {runner.compilers.workers} compilers")
            throughput(runner, space, "cold, exhaustive", "exhaustive")
        with gpu_runner("builtin", print) as runner:
            space = runner.space(SHAPE, AXES)
            throughput(runner, space, "warm cache, exhaustive", "exhaustive")
            runner.leave(SHAPE)
            throughput(runner, space, "warm cache, tpe", "tpe")
            repeated(runner, space, "random", trials=len(space.configs))
            busy_processor(runner, space.default)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        started = time.monotonic()
        with gpu_runner("auto", print) as runner:
            time_line(runner, started)


if __name__ == "__main__":
    try:
        main()
    except AutotuneError as error:
        sys.exit(f"error: {error}")
