"""The Python interface: what ``import autotune`` offers beside the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.errors import GpuMissing, StorageError
from autotune.export import VllmExporter
from autotune.export.check import check_exported
from autotune.export.collection import confirmable
from autotune.export.mixture import of_one_kind
from autotune.launch.environment import Environment
from autotune.measure.cuda.gpu import has_gpu
from autotune.measure.opening import opened_runners
from autotune.measure.replay import ReplayRunner
from autotune.measure.runners import replay_runner, replay_runners
from autotune.plan.file import Gpus
from autotune.plan.study import StudyPlan
from autotune.report.frames import selections_frame, trials_frame
from autotune.search.events import Progress, on_done, unwatched
from autotune.search.run import Done, check_rows_max, run_job
from autotune.store import Store, shown
from autotune.store.results import ShapeResult, of_replay, of_store

if TYPE_CHECKING:
    import pandas as pd

    from autotune.choose.selection import Selection
    from autotune.export.check import Report
    from autotune.launch.shape import KernelShape

#: A file's or folder's path, as ``open`` takes it.
AnyPath = str | PathLike[str]


@dataclass(frozen=True, slots=True, repr=False)
class Results:
    """What is known of shapes: every trial, and the selections with their evidence.

    Attributes:
        shapes: One for each shape and environment.
        notes: The lines that the command line would have printed about them.
    """

    shapes: tuple[ShapeResult, ...]
    notes: tuple[str, ...] = ()

    @property
    def selections(self) -> tuple[Selection, ...]:
        """The selections of all shapes that have one."""
        return tuple(one.selection for one in self.shapes if one.selection is not None)

    def trials_frame(self) -> pd.DataFrame:
        """One row a measured configuration: the shape's fields, its parameters, how it ended.

        The columns are described at ``autotune.report.frames.trials_frame``.

        Raises:
            InputError: pandas is not installed.
        """
        return trials_frame(self.shapes)

    def selections_frame(self) -> pd.DataFrame:
        """One row a shape: what was chosen, beside vLLM's default, with the ratio's interval.

        The columns are described at ``autotune.report.frames.selections_frame``.

        Raises:
            InputError: pandas is not installed.
        """
        return selections_frame(self.shapes)

    def export(
        self, folder: AnyPath, *, merge: bool = False, deterministic: bool | None = None
    ) -> tuple[Path, ...]:
        """Write the files that vLLM loads, as ``autotune export`` does.

        Args:
            folder: Where to write; made if it is not there. Entries of other shapes stay.
            merge: Whether files that autotune did not write may be added to.
            deterministic: Where the results hold both, whether to write what was chosen among
                configurations that do not split k; if not given, what was chosen among all.

        Returns:
            The files written; none where nothing was chosen.

        Raises:
            ExportError: The folder cannot be written, or holds something that must not be lost.
            InputError: Nothing was chosen in the way that ``deterministic`` asks for.
        """
        written: dict[Path, None] = {}
        chosen = list(self._by_environment().items())
        if chosen:
            chosen, _ = of_one_kind(chosen, deterministic=deterministic)
        for environment, those in chosen:
            selections = [one.selection for one in those if one.selection is not None]
            paths = VllmExporter().export(selections, environment, Path(folder), merge=merge)
            written |= dict.fromkeys(paths)
        return tuple(written)

    def check(self, folder: AnyPath) -> Report:
        """Look up in a folder what vLLM would find for every shape that has a selection.

        Args:
            folder: As ``VLLM_TUNED_CONFIG_FOLDER`` names it.

        Raises:
            InputError: There is no such folder, or it holds no tuned file.
        """
        asked: dict[str | None, list[KernelShape]] = {}
        for environment, those in self._by_environment().items():
            asked.setdefault(environment.gpu, []).extend(one.shape for one in those)
        return check_exported(Path(folder), asked)

    def _by_environment(self) -> dict[Environment, list[ShapeResult]]:
        """The shapes that have a selection."""
        found: dict[Environment, list[ShapeResult]] = {}
        for one in self.shapes:
            if one.selection is not None:
                found.setdefault(one.environment, []).append(one)
        return found

    def __repr__(self) -> str:
        trials = sum(len(one.measurements) for one in self.shapes)
        gpus = ", ".join(dict.fromkeys(one.environment.gpu for one in self.shapes))
        return f"<autotune.Results: {len(self.shapes)} shapes, {trials} trials, {gpus or 'no GPU'}>"


def tune(  # noqa: PLR0913 - each by its name
    plan: StudyPlan | AnyPath | None = None,
    *,
    replay: AnyPath | Sequence[AnyPath] | None = None,
    record: AnyPath | None = None,
    gpus: Gpus | Sequence[int] | None = None,
    rows_max: int | None = None,
    configs: bool = True,
    deterministic: bool | None = None,
    progress: Progress | None = None,
) -> Results:
    """Tune every shape of a plan, as ``autotune run`` does up to its export.

    Everything measured is kept in the plan's database at once: after an interruption the same call
    goes on where it stopped, and a finished one is not measured again.

    On a GPU this starts processes that import the calling script again: in a script, call it below
    ``if __name__ == "__main__":``. A notebook needs no such line.

    Args:
        plan: What to tune, how, and where to keep it: a plan, such as
            ``StudyPlan.read("my.toml").override(trials=100)``, or the path of a study file. If not
            given, the shapes of the recording, or without one the quick-start study.
        replay: Recordings to answer from, with no GPU; ``shipped_recording()`` is one.
        record: A recording to write of everything measured.
        gpus: How many GPUs measure side by side, ``"all"``, or the numbers of some that are
            visible, counted from 0; if not given as the plan says, or else the first that is free.
            With ``replay``, how many replays.
        rows_max: Where the plan's tokens are ``auto``: merge rows down to so many a layer, where
            that costs less than 1 %.
        configs: Whether shapes that autotune's own collection holds for this GPU and these kernels
            are confirmed in a few trials, and not searched. A replay pays no attention to it.
        deterministic: Whether only configurations that do not split k may be chosen, so that the
            same input gives the same bits; as the plan says if not given.
        progress: Called after every shape with its result, its number from 1, and the number of
            shapes.

    Returns:
        The plan's shapes, with rows that ``auto`` added and without those that were merged. Ops of
        their MoE layers that earlier runs left in the database are there, too.

    Raises:
        GpuMissing: There is no GPU, and no recording was given.
        AutotuneError: Something else cannot be used as it is; its message says what to do.
    """
    notes: list[str] = []
    recorded = None if replay is None else replay_runner(_paths(replay))
    plan = _plan(plan, recorded).override(gpus=gpus, deterministic=deterministic)
    check_rows_max(plan, rows_max)
    if recorded is None and not has_gpu():
        raise GpuMissing(
            "no CUDA GPU here: tune where there is one, or give a recording, such as "
            "replay=autotune.shipped_recording()"
        )
    with opened_runners(plan.kernels, plan.gpus, notes.append, recorded=recorded) as runners:
        done = run_job(
            plan,
            runners,
            unwatched if progress is None else on_done(progress),
            say=notes.append,
            record=None if record is None else Path(record),
            rows_max=rows_max,
            known=confirmable(runners[0].environment) if configs else {},
        )
    return Results(_shapes_of(done, plan.storage), notes=(*notes, *done.lines))


def load(storage: str = "sqlite:///autotune.db") -> Results:
    """What a database holds, also while a run writes it.

    Args:
        storage: A SQLAlchemy URL, as ``--storage`` takes it.

    Raises:
        StorageError: The database cannot be used, or holds no study.
    """
    with closing(Store(storage, read_only=True)) as store:
        shapes = of_store(store)
    if not shapes:
        raise StorageError(f"{shown(storage)} holds no study; tune one with autotune run")
    return Results(tuple(shapes))


def load_recording(*paths: AnyPath) -> Results:
    """What recordings hold: every configuration, and what a search of all of them would choose.

    Args:
        paths: Recordings of one or several environments; ``shipped_recording()`` if none is given.

    Raises:
        RecordingError: A recording cannot be read, or repeats a shape of another one.
    """
    runners = replay_runners([Path(path) for path in paths])
    return Results(tuple(each for runner in runners for each in of_replay(runner)))


def _paths(given: AnyPath | Sequence[AnyPath]) -> list[Path]:
    if isinstance(given, str | PathLike):
        return [Path(given)]
    return [Path(path) for path in given]


def _plan(given: StudyPlan | AnyPath | None, recorded: ReplayRunner | None) -> StudyPlan:
    if isinstance(given, StudyPlan):
        plan = given
    elif given is not None:
        plan = StudyPlan.read(Path(given))
    else:
        plan = StudyPlan.quickstart() if recorded is None else StudyPlan.of_shapes(recorded.shapes)
    return plan if recorded is None else plan.answered_by(recorded.shapes)


def _shapes_of(done: Done, storage: str) -> tuple[ShapeResult, ...]:
    """A job's shapes as the database holds them, with the selections that the job ended with."""
    with closing(Store(storage)) as store:
        stored = {one.shape: one for one in of_store(store) if one.environment == done.environment}
    chosen = {one.shape: one for one in done.selections}
    shapes: Iterable[KernelShape] = dict.fromkeys((*(one.shape for one in done.tuned), *chosen))
    return tuple(replace(stored[shape], selection=chosen.get(shape)) for shape in shapes)
