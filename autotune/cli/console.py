"""What the commands print: consoles, lines of progress, tables and findings.

Nothing heavy is imported before something is printed: ``autotune --help`` must be quick.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from collections import Counter

    from autotune.cli.progress import RunProgress
    from autotune.export.bench import Benched
    from autotune.export.check import Report
    from autotune.launch.shape import KernelShape
    from autotune.plan.study import StudyPlan
    from autotune.search.events import Tuned
    from autotune.store import Overview

#: Columns where the output is no terminal: a file has room.
_FILE_WIDTH = 160

# No markup: what is printed holds brackets of its own, in intervals and in users' paths.
out = Console(
    markup=False,
    highlight=False,
    soft_wrap=True,
    width=None if sys.stdout.isatty() else _FILE_WIDTH,
)
err = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


def say(line: str, console: Console = out) -> None:
    """One line, which a terminal that is too narrow for it breaks between words."""
    console.print(line, soft_wrap=not console.is_terminal)


def say_interrupted(plan: StudyPlan, progress: RunProgress) -> None:
    """What is kept of a run that Ctrl-C has ended, where, and what to do with it."""
    from autotune.store import shown

    done, count = len(progress.done), len(progress.trials)
    storage = shown(plan.storage)
    say(
        f"autotune: interrupted; {done} of {count} shapes are done. Everything measured is in "
        f"{storage}: the same command goes on.",
        err,
    )
    if done:
        command = f"autotune export --storage {storage} --output {plan.output}"
        err.print(f"To write the files of what is done: {command}")


def print_status(overview: Overview, storage: str, *, as_json: bool) -> None:
    """How far the studies of a database are."""
    from autotune.cli.status import status_dict, status_view
    from autotune.store import shown

    if as_json:
        out.print_json(json.dumps(status_dict(overview, shown(storage))))
    else:
        out.print(status_view(overview))


def watch_status(look: Callable[[], Overview], *, every_s: float = 2.0) -> None:
    """Print the state of a database again and again, in place on a terminal, until Ctrl-C.

    Where the output is no terminal only the lines above the table are printed, when something was
    measured or a run begins or ends.

    Args:
        look: Looks at the database.
        every_s: Seconds between two looks.
    """
    from rich.live import Live

    from autotune.cli.status import status_lines, status_view

    with suppress(KeyboardInterrupt):
        if not out.is_terminal:
            before: object = None
            while True:
                seen = look()
                if (seen.runs_by_state, seen.trials) != before:
                    out.print("\n".join(status_lines(seen)))
                before = seen.runs_by_state, seen.trials
                time.sleep(every_s)
        with Live(console=out, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                live.update(status_view(look(), lines_max=out.height), refresh=True)
                time.sleep(every_s)


def say_recorded(shape: KernelShape, outcomes: Counter[str], number: int, count: int) -> None:
    """One line a shape that was recorded."""
    ends = ", ".join(f"{number} {name}" for name, number in sorted(outcomes.items()))
    out.print(f"[{number}/{count}] {shape.op.value} {shape.label}: {ends}")


def say_compared(done: int, count: int) -> None:
    """On one line of a terminal; a file would have hundreds."""
    if err.is_terminal:
        err.print(f"{done} of {count} searches", end="\n" if done == count else "\r")


def say_benched(row: Benched, number: int, count: int) -> None:
    """On standard error: standard output is the result's, which may be JSON."""
    from autotune.cli.tables import bench_cells, tokens_text

    default_us, tuned_us, ratio, verdict, _ = bench_cells(row)
    name = f"[{number}/{count}] {row.shape.op.value} {row.shape.label}, {tokens_text(row)} tokens: "
    err.print(f"{name}{default_us} -> {tuned_us} µs, {ratio}, {verdict}")


def print_benched(rows: Sequence[Benched], *, as_json: bool) -> None:
    """The table of what ``bench`` timed, and how many came out how."""
    from autotune.cli.tables import bench_table, verdict_counts

    if as_json:
        out.print_json(json.dumps([row.as_dict() for row in rows]))
    else:
        out.print(bench_table(rows))
        out.print(verdict_counts(rows))


def print_checked(report: Report, layers: Mapping[KernelShape, str], *, as_json: bool) -> None:
    """What ``check`` found, shape by shape."""
    from autotune.cli.tables import check_table

    if as_json:
        out.print_json(json.dumps(report.as_dict()))
        return
    if report.lookups:
        out.print(check_table(report.lookups, layers))
        out.print()
    print_findings(report)


def print_findings(report: Report) -> None:
    """What is wrong in a folder, said in any case, and how much of it."""
    from autotune.cli.tables import check_counts, finding_lines

    for line in finding_lines(report.findings):
        (err if out.quiet else out).print(line)
    say(check_counts(report))


def print_tuned(tuned: Sequence[Tuned], plan: StudyPlan, refined: Sequence[str]) -> None:
    """The table at the end of a run, and what is to be said below it."""
    from autotune.cli.tables import layer_lines, tuned_table

    out.print()
    rows = [(result.shape, result.selection, result.outcomes) for result in tuned]
    kinds = {shape.without_batch: names for shape, names in plan.layers.items()}
    layers = {result.shape: kinds.get(result.shape.without_batch, "") for result in tuned}
    table = tuned_table(rows, layers)
    unlimited = out.options.update(max_width=_FILE_WIDTH)
    if out.measure(table, options=unlimited).maximum > out.width:
        table = tuned_table(rows, layers, narrow=True)
    out.print(table)
    for line in (*layer_lines(result.selection for result in tuned), *refined):
        say(line)
    out.print()
