"""What the shipped collection is worth to models that are not in it, beside runs of their own.

    python studies/outside.py MODEL... [--tokens 1,8,32,128,512] [--rank 16] [-o RAW.json]

MODEL is what ``--model`` takes, such as ``studies/models/phi-4.json``. For every model each kernel
is timed by vLLM's default and by the entry that vLLM's look-up ends at in ``autotune configs
--path``. Then the model is tuned into a database of its own, and the collection is not looked at.
Printed for each model: how many kernels have an exact entry, how many times as fast as the default
the nearest entries and its own are (the median and the least), and how many of the nearest lose to
the default.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.errors import AutotuneError, InputError
from autotune.export.bench import bench
from autotune.export.collection import collected_for
from autotune.measure import Runner
from autotune.measure.measurement import Ceilings
from autotune.measure.runners import gpu_runner
from autotune.plan.documents import name_of
from autotune.plan.study import StudyPlan
from autotune.search.events import unwatched
from autotune.search.run import run_job

HEAD = (
    *("model", "kernels", "exact", "nearest", "least", "slower"),
    *("own", "least", "own run s", "forward pass ms: default, nearest, own"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kernel of a model.

    Attributes:
        shape: Its shape, JSON-ready.
        key: The key that vLLM's look-up ends at in the collection.
        is_exact: Whether that is the kernel's own.
        runs: How often a forward pass launches it.
        default_us: The time by vLLM's default beside the nearest entry, microseconds.
        nearest: How many times as fast the nearest entry is; None where it does not run.
        is_slower: Whether it loses to the default beyond noise, or does not run.
        own: How many times as fast its own run's choice is; None where it chose nothing.
    """

    shape: dict[str, Any]
    key: Sequence[Any]
    is_exact: bool
    runs: int
    default_us: float | None
    nearest: float | None
    is_slower: bool
    own: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """A model that is not in the collection.

    Attributes:
        model: Its name.
        kernels: Its kernels.
        took_s: How long its own run took, seconds.
    """

    model: str
    kernels: Sequence[Kernel]
    took_s: float

    def cells(self) -> list[str]:
        """A row of the table."""
        nearest = [each.nearest for each in self.kernels if each.nearest]
        own = [each.own for each in self.kernels if each.own]
        return [
            self.model,
            str(len(self.kernels)),
            str(sum(each.is_exact for each in self.kernels)),
            *_gains(nearest),
            str(sum(each.is_slower for each in self.kernels)),
            *_gains(own),
            f"{self.took_s:.0f}",
            ", ".join(f"{each / 1e3:.2f}" for each in self._passes_us()),
        ]

    def _passes_us(self) -> tuple[float, float, float]:
        """All forward passes by the default, the nearest entries and its own, microseconds."""
        times = [
            (each.runs * each.default_us, each.nearest, each.own)
            for each in self.kernels
            if each.default_us and each.nearest and each.own
        ]
        return (
            sum(default for default, _, _ in times),
            sum(default / nearest for default, nearest, _ in times),
            sum(default / own for default, _, own in times),
        )


def _gains(those: Sequence[float]) -> tuple[str, str]:
    """The median and the least."""
    return (f"{statistics.median(those):.2f}x", f"{min(those):.2f}x") if those else ("–", "–")


def looked_at(plan: StudyPlan, runner: Runner, ceilings: Ceilings, folder: Path) -> Outside:
    """Time a model's kernels by the nearest entries, and tune it by itself."""
    rows = bench(plan, runner, folder, ceilings=ceilings, tokens_given=True)
    began = time.monotonic()
    done = run_job(plan, runner, unwatched, say=lambda _line: None)
    took_s = time.monotonic() - began
    own = {one.shape: one.ratio.value for one in done.selections if one.ratio is not None}
    kernels = [
        Kernel(
            shape=row.shape.as_dict(),
            key=list(row.path),
            is_exact=tuple(row.path) == tuple(row.shape.lookup_key),
            runs=plan.runs.get(row.shape, 0),
            default_us=row.default_us,
            nearest=row.ratio.value if row.ratio is not None else None,
            is_slower=row.is_slower,
            own=own.get(row.shape),
        )
        for row in rows
    ]
    name = name_of(plan.model.config) if plan.model else ""
    return Outside(model=name, kernels=kernels, took_s=took_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--tokens", default="1,8,32,128,512")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--max-loras", type=int, default=8)
    parser.add_argument("--kernels", default="vllm")
    parser.add_argument("-o", "--output", type=Path, metavar="RAW.json")
    given = parser.parse_args(arguments)
    tokens = [int(each) for each in given.tokens.split(",")]
    found: list[Outside] = []
    try:
        with tempfile.TemporaryDirectory() as scratch, gpu_runner(given.kernels, print) as runner:
            folder, ceilings = collected_for(runner.environment.gpu).folder, runner.ceilings()
            for number, model in enumerate(given.models):
                plan = StudyPlan.of_model(model).override(
                    rank=given.rank,
                    max_loras=given.max_loras,
                    tokens=tokens,
                    storage=f"sqlite:///{scratch}/{number}.db",
                )
                try:
                    found.append(looked_at(plan, runner, ceilings, folder))
                except InputError as error:  # such as a look-up at which vLLM would stop
                    print(f"{model}: {error}", file=sys.stderr)
                    continue
                if given.output is not None:
                    raw = {each.model: list(map(asdict, each.kernels)) for each in found}
                    given.output.write_text(json.dumps(raw) + "\n", encoding="utf-8")
                print(" | ".join(found[-1].cells()), flush=True)
    except AutotuneError as error:
        print(f"outside: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print()
    for line in (HEAD, ["---"] * len(HEAD), *(each.cells() for each in found)):
        print(f"| {' | '.join(line)} |")
    return 0 if len(found) == len(given.models) else 1


if __name__ == "__main__":
    sys.exit(main())
