"""Tunes a list of models one after the other on this machine's GPU, into one database.

    python studies/fleet.py [studies/fleet.toml] [--dry-run] [--time-budget 3h] [--packs DIR]

It goes on where it stopped: what is finished is skipped, and a shape that several models have is
tuned once. ``--dry-run`` needs no GPU: it lists what there is to do, and about how long it takes.
``--packs`` writes a pack of every finished model, for ``studies/collect.py``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from autotune.cli.packing import pack
from autotune.cli.shape_flags import ShapeFlags
from autotune.errors import (
    AutotuneError,
    ExportError,
    InputError,
    ShapeError,
    SpaceError,
    StudyFileError,
    shown,
)
from autotune.export.collection import confirmable
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.measure import Runner
from autotune.measure.runners import gpu_runner
from autotune.plan.effort import tuning_s
from autotune.plan.file import MODEL_TABLE, parse_duration, read_text, release
from autotune.plan.study import StudyPlan
from autotune.search.events import unwatched
from autotune.search.run import run_job
from autotune.store import Store, database_file, facts

#: The keys of a list of models, with the values that they have if they are not given.
_KEYS: Mapping[str, Any] = {
    "storage": "sqlite:///fleet.db",
    "ranks": [16],
    "max_loras": [8],
    "effort": "normal",
    "time_budget": "3h",
    "models": [],
}

#: The time of starting, which ``tuning_s`` counts for every run and a list needs once, seconds.
_START_S = tuning_s([], 1)

#: Seconds below which no model is begun.
_LEAST_S = 10.0


@dataclass(frozen=True, slots=True)
class Job:
    """A model with one rank and one max_loras."""

    name: str
    flags: ShapeFlags
    plan: StudyPlan


@dataclass(frozen=True, slots=True)
class Fleet:
    """A list of models.

    Attributes:
        jobs: What to tune, in the order of the file.
        storage: The database's URL.
        time_budget_s: The time for all of it, seconds.
    """

    jobs: Sequence[Job]
    storage: str
    time_budget_s: float

    @classmethod
    def read(cls, path: Path) -> Fleet:
        """Read a list of models.

        Raises:
            StudyFileError: The file cannot be read, or a key or a model in it is wrong.
        """
        try:
            table = dict(_KEYS) | tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise StudyFileError(f"{path}: {error}") from error
        if unknown := table.keys() - _KEYS:
            raise StudyFileError(
                f"{path}: unknown key {shown(min(unknown))}; it has {', '.join(_KEYS)}"
            )
        try:
            jobs = list(_jobs(table, path.parent))
            budget_s = parse_duration(table["time_budget"])
        except InputError as error:
            raise StudyFileError(f"{path}: {error}") from error
        if not jobs:
            raise StudyFileError(f"{path} has no [[models]], no ranks or no max_loras: add them")
        return cls(jobs, str(table["storage"]), budget_s)


def _jobs(table: Mapping[str, Any], folder: Path) -> Iterator[Job]:
    models, ranks, max_loras = (_list(table, name) for name in ("models", "ranks", "max_loras"))
    for number, model in enumerate(models, start=1):
        if not isinstance(model, dict) or not isinstance(model.get("config"), str):
            raise InputError(f"[[models]] no. {number} needs config, a file's path or a hub id")
        if unknown := model.keys() - set(MODEL_TABLE):
            raise InputError(f"[[models]] no. {number}: unknown key {shown(min(unknown))}")
        config = str(folder / model["config"])
        config = config if Path(config).exists() else model["config"]
        rest = {key: value for key, value in model.items() if key != "config"}
        for rank in ranks:
            for most in max_loras:
                plan = StudyPlan.of_model(config).with_model(rest, {}, source="[[models]]")
                plan = plan.override(
                    rank=rank, max_loras=most, effort=table["effort"], storage=table["storage"]
                )
                if plan.model is not None and plan.model.vllm is not None:
                    release(plan.model.vllm)
                flags = ShapeFlags(config=config, rank=rank, max_loras=most, **rest)
                size = model.get("tensor_parallel", 1)
                name = f"{Path(config).stem}_tp{size}_r{rank}_ml{most}"
                yield Job(name, flags, plan)


def _list(table: Mapping[str, Any], name: str) -> Sequence[Any]:
    if not isinstance(table[name], list):
        raise InputError(f"{name} must be a list: got {shown(table[name])}")
    return table[name]


# ------------------------------------------------------------------ what is finished


@dataclass(frozen=True, slots=True)
class Finished:
    """The shapes that a database has a selection for, and those that it has looked at between."""

    tuned: Set[KernelShape]
    between: Set[KernelShape]

    @classmethod
    def read(cls, storage: str, environment: Environment | None) -> Finished:
        """Read a database; with no environment whatever it holds."""
        file = database_file(storage)
        if file is not None and not file.exists():
            return cls(frozenset(), frozenset())
        with closing(Store(storage, read_only=True)) as store:
            tuned = {one.shape for where, one in store.selections() if environment in (None, where)}
            between = {
                each.shape
                for where, those in facts.between(store).items()
                if environment in (None, where)
                for each in those
            }
        return cls(tuned, between)

    def has(self, job: Job) -> bool:
        """Whether a job was done to its end."""
        is_tuned = self.tuned.issuperset(job.plan.shapes)
        return is_tuned and self.between.issuperset(job.plan.between)


def dry_run(fleet: Fleet) -> Iterator[str]:
    """What there is to do: a line a job, then all of it."""
    finished = Finished.read(fleet.storage, None)
    tuned, looked_at = set(finished.tuned), set(finished.between)
    total_s, count = _START_S, 0
    for job in fleet.jobs:
        if finished.has(job):
            yield f"{job.name:34} finished"
            continue
        new = [shape for shape in job.plan.shapes if shape not in tuned]
        between = [shape for shape in job.plan.between if shape not in looked_at]
        effort = job.plan.effort
        seconds = tuning_s(new, job.plan.trials, effort=effort, between=len(between)) - _START_S
        tuned.update(new)
        looked_at.update(between)
        total_s, count = total_s + seconds, count + len(new)
        yield (
            f"{job.name:34} {len(new):4} shapes to tune, {len(job.plan.shapes) - len(new):4} tuned "
            f"before it, {seconds / 60:5.1f} min"
        )
    yield (
        f"{len(fleet.jobs)} jobs, {count} shapes: about {total_s / 60:.0f} min on an H100 with 16 "
        f"cores, of {fleet.time_budget_s / 60:.0f} min"
    )


def tune(fleet: Fleet, runner: Runner, failed: list[Job]) -> Iterator[str]:
    """Tune what is not finished, until the time is over; a line a job.

    A job that cannot be done is said, added to ``failed``, and left.
    """
    end = time.monotonic() + fleet.time_budget_s
    for number, job in enumerate(fleet.jobs, start=1):
        place = f"[{number}/{len(fleet.jobs)}] {job.name}"
        if Finished.read(fleet.storage, runner.environment).has(job):
            yield f"{place}: finished before"
            continue
        left_s = end - time.monotonic()
        if left_s < _LEAST_S:
            yield f"{place}: no time is left; the same command goes on here"
            return
        began = time.monotonic()
        try:
            done = run_job(
                job.plan.override(time_budget_s=left_s),
                runner,
                unwatched,
                say=lambda _line: None,
                known=confirmable(runner.environment),
            )
        except (ExportError, ShapeError, SpaceError, StudyFileError) as error:
            failed.append(job)
            yield f"{place}: {' '.join(str(error).split())}"
            continue
        chosen = [one.ratio.value for one in done.selections if one.ratio is not None]
        best = f", up to {max(chosen):.2f}x" if chosen else ""
        yield f"{place}: {len(done.selections)} rows in {time.monotonic() - began:.0f} s{best}"


def write_packs(fleet: Fleet, folder: Path) -> Iterator[str]:
    """Write a pack of every finished job; a line each."""
    folder.mkdir(parents=True, exist_ok=True)
    finished = Finished.read(fleet.storage, None)
    done = [job for job in fleet.jobs if finished.has(job)]
    if not done:
        yield "nothing is finished: tune first"
    for job in done:
        packed = pack(fleet.storage, job.flags, None, folder / f"{job.name}.zip")
        yield f"{folder / job.name}.zip: {packed.entries} entries"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=here / "fleet.toml")
    parser.add_argument("--dry-run", action="store_true", help="list what there is to do")
    parser.add_argument("--time-budget", metavar="3h", help="in place of the file's")
    parser.add_argument("--packs", type=Path, metavar="DIR", help="write packs, and tune nothing")
    given = parser.parse_args(arguments)
    try:
        fleet = Fleet.read(given.file)
        if given.time_budget:
            fleet = Fleet(fleet.jobs, fleet.storage, parse_duration(given.time_budget))
        if given.dry_run or given.packs:
            for line in dry_run(fleet) if given.dry_run else write_packs(fleet, given.packs):
                print(line, flush=True)
            return 0
        failed: list[Job] = []
        with gpu_runner("auto", print) as runner:
            for line in tune(fleet, runner, failed):
                print(line, flush=True)
    except AutotuneError as error:
        print(f"fleet: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fleet: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
