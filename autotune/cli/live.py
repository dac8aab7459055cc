"""What a run shows: a line for every shape, and on a terminal below them what it is doing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autotune.cli.console import out, say
from autotune.cli.exits import resumable
from autotune.cli.progress import RunProgress, Search, trial_text
from autotune.cli.signals import check_stopped
from autotune.cli.tables import selection_cells
from autotune.export.collection import confirmable
from autotune.launch.shape import KernelShape
from autotune.measure import Runner, RunnerStatus
from autotune.plan.study import StudyPlan
from autotune.report.words import duration_text
from autotune.search.events import Event, ShapeDone, Tried
from autotune.search.run import Done, run_job

if TYPE_CHECKING:
    from typing_extensions import Self

#: How often the display is drawn in a second. Drawing takes 0.4 ms: less than 1 % of the time.
_PER_S = 4

#: Seconds between two questions to the runner. It asks the driver, which must not be asked often.
_LOOK_EVERY_S = 2.0

#: On a terminal of fewer columns the end of a line may be cut: a shape's figures come first there,
#: and its name last.
_WIDE = 130

#: How many of a shape's latest trials are shown.
_SHOWN = 4


#: A GPU, and what its runner does; None of a replay, which does nothing to be told of.
Seen = tuple[str, RunnerStatus | None]


class Verbosity(Enum):
    """How much a run says."""

    QUIET = "quiet"  # only what is wrong
    NORMAL = "normal"  # a line a shape
    VERBOSE = "verbose"  # a line a trial

    @classmethod
    def of(cls, quiet: bool, verbose: bool) -> Verbosity:
        """The verbosity that ``--quiet`` and ``--verbose`` ask for."""
        return cls.QUIET if quiet else cls.VERBOSE if verbose else cls.NORMAL


def run_watched(
    plan: StudyPlan,
    runners: Sequence[Runner],
    verbosity: Verbosity,
    *,
    record: Path | None,
    rows_max: int | None,
    confirm: bool,
) -> Done:
    """Do the whole job of ``autotune run`` up to its export, with its display.

    Args:
        plan: What to tune.
        runners: Measure side by side.
        verbosity: How much is said.
        record: A recording to write of everything measured.
        rows_max: The most rows of a layer; None for any number.
        confirm: Whether shapes that autotune's collection holds are confirmed, not searched.

    Raises:
        AutotuneError: Something cannot be used as it is; what was measured is kept.
        typer.Exit: A signal ended it, and that was said.
    """
    progress = RunProgress(time_budget_s=plan.time_budget_s)
    with (
        resumable(plan, progress),
        RunDisplay(
            out,
            progress,
            status=lambda: [(runner.device, runner.status) for runner in runners],
            layers=plan.layers,
            verbosity=verbosity,
        ) as display,
    ):
        return run_job(
            plan,
            runners,
            display.watch,
            say=say,
            record=record,
            rows_max=rows_max,
            known=confirmable(runners[0].environment) if confirm else {},
        )


class RunDisplay:
    """Shows what a run does.

    A context manager: when it ends, the printed lines stay, and what is drawn below is erased.
    """

    def __init__(
        self,
        console: Console,
        progress: RunProgress,
        *,
        status: Callable[[], Sequence[Seen]],
        layers: Mapping[KernelShape, str] | None = None,
        verbosity: Verbosity = Verbosity.NORMAL,
    ) -> None:
        """Print nothing yet.

        Args:
            console: Where to print. Only a terminal that can move its cursor is drawn on.
            progress: The state of the run, which ``watch`` keeps up to date.
            status: Returns what each runner does; called from the display's own thread.
            layers: The names of shapes' layers, where they are known.
            verbosity: How much is said.
        """
        self._console, self._progress, self._verbosity = console, progress, verbosity
        self._status, self._seen, self._looked_s = status, status(), time.monotonic()
        self._layers = layers or {}
        self._lines: list[Text] = []
        self._flushed_s = 0.0
        can_draw = console.is_terminal and not console.is_dumb_terminal
        self._live: Live | None = None
        if can_draw and verbosity is not Verbosity.QUIET:
            self._live = Live(
                console=console,
                get_renderable=self._drawn,
                refresh_per_second=_PER_S,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()
        if self._live is not None:
            self._live.stop()

    def watch(self, event: Event) -> None:
        """Bring the state up to date, and print the line of a finished shape or of a trial."""
        check_stopped()
        self._progress.watch(event)
        if isinstance(event, ShapeDone) and self._verbosity is not Verbosity.QUIET:
            self._say(shape_line(event, self._layers, wide=self._is_wide))
            self._flush()
        elif isinstance(event, Tried) and self._verbosity is Verbosity.VERBOSE:
            self._say(trial_line(event))
            # Each print draws the display again, so lines are printed a few at a time.
            if self._live is None or time.monotonic() - self._flushed_s > 1 / _PER_S:
                self._flush()

    @property
    def _is_wide(self) -> bool:
        return not self._console.is_terminal or self._console.width >= _WIDE

    def _say(self, line: str) -> None:
        text = Text(line, no_wrap=True)
        if self._console.is_terminal:
            text.truncate(self._console.width, overflow="ellipsis")
        self._lines.append(text)

    def _flush(self) -> None:
        if self._lines:
            self._console.print(Text("\n").join(self._lines), soft_wrap=True)
        self._lines.clear()
        self._flushed_s = time.monotonic()

    def _drawn(self) -> RenderableType:
        if time.monotonic() - self._looked_s >= _LOOK_EVERY_S:
            self._seen, self._looked_s = self._status(), time.monotonic()
        with self._progress.lock:
            return drawn(self._progress, self._seen, self._layers)


def shape_line(
    event: ShapeDone, layers: Mapping[KernelShape, str] | None = None, *, wide: bool = True
) -> str:
    """The line of a finished shape: its latencies, its ratio and its trials.

    Args:
        event: The shape and its result.
        layers: The names of shapes' layers, where they are known.
        wide: Whether there is room for the whole line.
    """
    tuned, number = event.tuned, f"[{event.number}/{event.count}]"
    name = _name(tuned.shape, layers or {})
    if tuned.selection is None:
        text = f"nothing works among {tuned.trials} trials"
        return f"{number} {name}: {text}" if wide else f"{number} {text}: {name}"
    default_us, tuned_us, ratio = selection_cells(tuned.selection)
    if wide:
        return f"{number} {name}: {default_us} -> {tuned_us} µs, {ratio}, {tuned.trials} trials"
    short = "default" if tuned.selection.is_default else ratio.partition(" ")[0]
    number = number.rjust(2 * len(str(event.count)) + 3)
    return f"{number} {short:>7}  {default_us:>7} -> {tuned_us:>7} µs  {name}"


def trial_line(event: Tried) -> str:
    """The line of a trial: its number, how it ended, and its configuration."""
    values = " ".join(
        f"{name}={value}" for name, value in event.measurement.config.as_dict().items()
    )
    return f"  {event.tried:>4}  {trial_text(event.measurement):<12}  {values}"


# ------------------------------------------------------------------ what is drawn


def drawn(
    progress: RunProgress,
    seen: Sequence[Seen] = (),
    layers: Mapping[KernelShape, str] | None = None,
) -> RenderableType:
    """The state of a run in a few lines, each cut where the terminal ends.

    Args:
        progress: The state of the run.
        seen: What each runner does.
        layers: The names of shapes' layers, where they are known.
    """
    layers = layers or {}
    statuses = [status for _, status in seen if status is not None]
    if len(seen) > 1 and progress.latest:
        lines = [_device_text(device, status, progress, layers) for device, status in seen]
        lines += [_compiling_text(statuses)] if statuses else []
    else:
        lines = [_shape_text(progress, layers)]
        if (search := progress.search) is not None:
            lines += [_best_text(search), _last_text(search)]
        lines += [
            _compiling_text(statuses) + _clocks_text(each, "; GPU at") for each in statuses[:1]
        ]
    texts = [Text(f" {line}", no_wrap=True, overflow="ellipsis") for line in lines]
    return Group(_head(progress), *texts)


def _head(progress: RunProgress) -> Table:
    """The first line: how many shapes are done, also as a bar, and the time."""
    left_s = progress.left_s
    time_text = duration_text(progress.elapsed_s)
    if left_s is not None:
        time_text += f", about {duration_text(left_s)} left"
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    counts = f"{len(progress.done)} of {len(progress.trials)} shapes"
    bar = ProgressBar(total=1.0, completed=progress.share)
    grid.add_row(f" {counts if progress.trials else 'starting'}", bar, time_text)
    return grid


def _shape_text(progress: RunProgress, layers: Mapping[KernelShape, str]) -> str:
    shape, search = progress.shape, progress.search
    if not progress.trials:
        return "listing every shape's configurations, and reading what earlier searches found"
    if shape is None or search is None:
        if progress.looked:
            return f"batch sizes between the tuned ones: {progress.looked} timed"
        return "going on to the next shape"
    if search.finalists:
        return f"timing {search.finalists} finalists side by side: {_name(shape, layers)}"
    more = ", going on" if progress.is_going_on else ""
    more += f", beside {others} more" if (others := len(progress.searches) - 1) else ""
    return f"trial {search.tried} of up to {search.most}{more}: {_name(shape, layers)}"


def _best_text(search: Search) -> str:
    best_us, default_us = search.best_us, search.default_us
    if best_us is None:
        return "best so far: nothing works yet"
    text = f"best so far {best_us:.2f} µs"
    if default_us is None:
        return text + ", the default is not measured or does not run"
    return text + f", default {default_us:.2f} µs: {default_us / best_us:.2f}x"


def _last_text(search: Search) -> str:
    """The latest trials, the last one first: the end of a line may be cut."""
    latest = list(search.last)[: -_SHOWN - 1 : -1]
    return "last trials: " + (", ".join(map(trial_text, latest)) or "none yet")


def _device_text(
    device: str,
    status: RunnerStatus | None,
    progress: RunProgress,
    layers: Mapping[KernelShape, str],
) -> str:
    """The line of one GPU of several: figures first, since the end of a line may be cut."""
    clocks = "" if status is None else _clocks_text(status, ", at")
    shape = progress.latest.get(device)
    if device in progress.lost:
        return f"{device}: lost"
    if shape is None:
        return f"{device}: nothing to do{clocks}"
    search = progress.searches[shape]
    what = f"trial {search.tried}/{search.most}"
    if search.finalists:
        what = f"{search.finalists} finalists"
    if search.best_us is not None:
        what += f", best {search.best_us:.2f} µs"
        if search.default_us is not None:
            what += f" ({search.default_us / search.best_us:.2f}x)"
    return f"{device}: {what}{clocks}: {_name(shape, layers)}"


def _compiling_text(statuses: Sequence[RunnerStatus]) -> str:
    """The compile queues of all runners."""
    compiling, waiting = (
        sum(getattr(status, name) for status in statuses) for name in ("compiling", "waiting")
    )
    return f"compiling {compiling}, {waiting} waiting"


def _clocks_text(status: RunnerStatus, before: str) -> str:
    """The state of a GPU, with a word before it; empty where it cannot be read."""
    device = status.device
    if device is None:
        return ""
    text = f"{before} {device.sm_clock_mhz} MHz, {device.temperature_c} °C"
    if device.throttle_reasons:
        text += f", held down: {', '.join(device.throttle_reasons)}"
    return text


def _name(shape: KernelShape, layers: Mapping[KernelShape, str]) -> str:
    """Such as ``shrink o, down: m=1,k=4096,...``; a layer is named where it is known."""
    layer = layers.get(shape)
    return f"{shape.op.value} {f'{layer}: ' if layer else ''}{shape.label}"
