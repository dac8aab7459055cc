"""What the commands print: lines of progress, tables and findings.

Nothing heavy is imported before something is printed: ``autotune --help`` must be quick.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from autotune.cli.pipes import PipedConsole

if TYPE_CHECKING:
    from collections import Counter

    from autotune.cli.progress import RunProgress
    from autotune.export.bench import Benched
    from autotune.export.check import AskedBatch, Report
    from autotune.launch.shape import KernelShape
    from autotune.measure.measurement import Replayed
    from autotune.plan.study import StudyPlan
    from autotune.search.contest.compare import Comparison
    from autotune.search.contest.curves import Summary
    from autotune.search.run import Done
    from autotune.store import Overview

#: The width of the output in columns where it is no terminal: no row of a table is as wide, so
#: nothing is wrapped or cut there, and ``grep`` finds it.
_FILE_WIDTH = 10_000

#: What is never shown: characters that a terminal obeys, but for a new line and a tab; those that
#: turn the direction of the text; and halves of characters, which no output can encode.
_UNSHOWN = {
    **dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), ""),
    **dict.fromkeys((0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), ""),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}
del _UNSHOWN[ord("\n")], _UNSHOWN[ord("\t")]


def harmless(text: str) -> str:
    """A text without what would move a cursor, set a colour or turn the text around.

    Texts come from files: reasons, names of GPUs and of layers, paths.
    """
    return text.translate(_UNSHOWN)


class HarmlessConsole(PipedConsole):
    """A console that prints text only as ``harmless`` leaves it."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of what is printed; rich's own ways to move the cursor stay."""
        for segment in super().render(renderable, options):
            # Colours are in the style, not in the text.
            yield segment if segment.control else segment._replace(text=harmless(segment.text))


# No markup: intervals and users' paths hold brackets that rich would take for it.
out = HarmlessConsole(
    markup=False,
    highlight=False,
    soft_wrap=True,
    width=None if sys.stdout.isatty() else _FILE_WIDTH,
)
err = HarmlessConsole(stderr=True, markup=False, highlight=False, soft_wrap=True)


def say(line: str, console: Console = out) -> None:
    """Print one line. A terminal that is too narrow for it breaks it between words."""
    console.print(line, soft_wrap=not console.is_terminal)


def say_error(text: str) -> None:
    """Say in one line, on standard error, why a command ends."""
    err.print("autotune:", text)


def say_unread() -> None:
    """Say that nobody reads standard output any more, and that the command goes on."""
    say_error("the reader of the output has gone: going on without output")


def say_no_gpu(recorded_gpu: str) -> None:
    """Say that a run replays the recording that comes with autotune, also where it is quiet."""
    say(
        f"No GPU here: replaying the recording of a {recorded_gpu} that comes "
        "with autotune; what is exported is for that GPU.",
        err if out.quiet else out,
    )


def say_interrupted(plan: StudyPlan, progress: RunProgress) -> None:
    """Say what is kept of a run that a signal has ended, and how to go on."""
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
        command += " --deterministic" * plan.deterministic
        err.print(f"To write the files of what is done: {command}")


def say_of_server(*plans: StudyPlan) -> None:
    """Say on standard error what is not known of the plans' server: what its trace leaves out, say.

    Args:
        plans: All of one server.
    """
    for line in dict.fromkeys(line for plan in plans for line in _of_server(plan)):
        say(line, err)


def _of_server(plan: StudyPlan) -> Iterable[str]:
    if plan.trace is not None:
        return plan.trace.notes
    if plan.model is None:
        return ()
    return plan.model.release_notes(
        name for names in plan.layers.values() for name in names.split(", ")
    )


def print_shapes(plan: StudyPlan, *, as_json: bool) -> None:
    """Print the shapes of a plan, and below them about how long they take to tune.

    Raises:
        StudyFileError: The plan's shapes cannot be had.
    """
    from autotune.cli.tables import shape_rows, shapes_table, studies_text
    from autotune.plan.effort import tuning_s

    layers, runs = plan.layers, plan.runs
    if as_json:
        out.print_json(json.dumps(shape_rows(layers, runs)))
        say_of_server(plan)
        return
    out.print(shapes_table(layers, runs))
    out.print()
    if plan.is_auto:
        counts = ", ".join(map(str, dict.fromkeys(shape.num_tokens for shape in layers)))
        out.print(f"Batch sizes (m): {counts}; rows between them are added after tuning.")
    seconds = tuning_s(layers, plan.trials, effort=plan.effort, between=len(plan.between))
    for line in (*plan.notes, studies_text(len(layers), seconds, plan.trials)):
        out.print(line)


def print_status(overview: Overview, storage: str, *, as_json: bool) -> None:
    """Print how far the studies of a database are."""
    from autotune.cli.status import status_dict, status_view
    from autotune.store import shown

    if as_json:
        out.print_json(json.dumps(status_dict(overview, shown(storage))))
    else:
        out.print(status_view(overview))


def watch_status(look: Callable[[], Overview], *, every_s: float = 2.0) -> None:
    """Print the state of a database again and again, until Ctrl-C.

    A terminal shows the latest state only. Elsewhere the lines above the table are printed when
    something was measured, or when a run begins or ends.

    Args:
        look: Reads the state from the database.
        every_s: Seconds between two readings.
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
    """Print a line for a shape that was recorded, with its place among all shapes."""
    ends = ", ".join(f"{number} {name}" for name, number in sorted(outcomes.items()))
    out.print(f"[{number}/{count}] {shape.op.value} {shape.label}: {ends}")


def say_compared(done: int, count: int) -> None:
    """Count the searches on one line of a terminal. A file, which would get hundreds, has none."""
    if err.is_terminal:
        err.print(f"{done} of {count} searches", end="\n" if done == count else "\r")


def say_compiled(done: int, count: int) -> None:
    """Count the compiled kernels on one line of a terminal."""
    if err.is_terminal:
        err.print(f"{done} of {count} kernels", end="\n" if done == count else "\r")


def say_benched(row: Benched, number: int, count: int) -> None:
    """Print a line for a shape that was timed; on standard error, as the result may be JSON."""
    from autotune.cli.tables import bench_cells, tokens_text

    default_us, tuned_us, ratio, verdict, _ = bench_cells(row)
    name = f"[{number}/{count}] {row.shape.op.value} {row.shape.label}, {tokens_text(row)} tokens: "
    err.print(f"{name}{default_us} -> {tuned_us} µs, {ratio}, {verdict}")


def print_benched(rows: Sequence[Benched], *, as_json: bool) -> None:
    """Print what ``bench`` timed, and how many shapes are faster, the same or slower."""
    from autotune.cli.tables import bench_table, verdict_counts

    if as_json:
        out.print_json(json.dumps([row.as_dict() for row in rows]))
    else:
        out.print(bench_table(rows))
        out.print(verdict_counts(rows))


def print_checked(
    report: Report,
    layers: Mapping[KernelShape, str],
    *,
    batches: Sequence[AskedBatch] = (),
    as_json: bool,
) -> None:
    """Print what ``check`` found: batch by batch where a server was traced, else by shapes."""
    from autotune.cli.tables import batches_table, check_table

    if as_json:
        asked = {"batches": [each.as_dict() for each in batches]} if batches else {}
        out.print_json(json.dumps(report.as_dict() | asked))
        return
    if batches:
        out.print(batches_table(batches))
        out.print()
    elif report.lookups:
        out.print(check_table(report.lookups, layers))
        out.print()
    print_findings(report)


def print_findings(report: Report) -> None:
    """Print what is wrong in a folder, and the counts. Findings are printed by quiet runs too."""
    from autotune.cli.tables import check_counts, finding_lines

    for line in finding_lines(report.findings):
        (err if out.quiet else out).print(line)
    say(check_counts(report))


def print_written(paths: Iterable[Path], folder: Path) -> None:
    """Print which files were written, and how vLLM is told of them."""
    for path in paths:
        out.print(f"Wrote {path}")
    out.print(f"Give them to vLLM with VLLM_TUNED_CONFIG_FOLDER={folder.resolve()}")


def print_compared(comparison: Comparison, summaries: Sequence[Summary], *, as_json: bool) -> None:
    """Print the result of a contest of samplers, a row for each."""
    from autotune.cli.contest import LEGEND, LEGEND_OF_ENDS, comparison_table

    if as_json:
        out.print_json(json.dumps(comparison.as_dict(summaries)))
    else:
        ends = comparison.effort is not None
        out.print(comparison_table(summaries, ends=ends))
        out.print(LEGEND + LEGEND_OF_ENDS * ends)


def print_tuned(done: Done, plan: StudyPlan) -> None:
    """Print the table at the end of a run, and the lines below it.

    Args:
        done: The results, a row each.
        plan: Knows the names of the shapes' layers.
    """
    from autotune.cli.tables import OUTCOMES_TEXT, layer_lines, tuned_table

    out.print()
    rows = [(result.shape, result.selection, result.outcomes) for result in done.tuned]
    kinds = {shape.without_batch: names for shape, names in plan.layers.items()}
    layers = {result.shape: kinds.get(result.shape.without_batch, "") for result in done.tuned}
    table = tuned_table(rows, layers)
    unlimited = out.options.update(max_width=_FILE_WIDTH)
    is_narrow = out.measure(table, options=unlimited).maximum > out.width
    if is_narrow:
        table = tuned_table(rows, layers, narrow=True)
    out.print(table)
    notes = [*layer_lines(one.selection for one in done.tuned), *done.lines]
    if not is_narrow:
        notes.insert(0, OUTCOMES_TEXT)
    if notes:
        out.print()
    for line in notes:
        say(line)
    out.print()


def print_answer(done: Done, plan: StudyPlan, replayed: Replayed | None) -> None:
    """Print last what was gained, the time of a forward pass's kernels, and what to do next.

    Args:
        done: The results.
        plan: Knows how often a forward pass launches each shape.
        replayed: The recordings that answered; None where a GPU measured.
    """
    from autotune.choose.forward import forward_passes
    from autotune.cli.answer import gain_text, next_lines, passes_table

    selections = [one.selection for one in done.tuned if one.selection is not None]
    passes = forward_passes(
        selections,
        {shape.without_batch: runs for shape, runs in plan.runs.items()},
        done.environment,
        sampled=plan.workload.sampled,
    )
    out.print()
    say(gain_text(selections, plan.layers))
    if passes:
        say("All LoRA kernels of one forward pass, in milliseconds:")
        out.print(passes_table(passes))
    for line in next_lines(plan, replayed):
        say(line)
