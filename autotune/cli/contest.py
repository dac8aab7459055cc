"""The table of a contest of samplers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from autotune.search.contest.curves import Summary

#: Printed below the table: what its figures mean.
LEGEND = (
    "after N: how much slower than the recorded best the best of N trials is, median and worst "
    "over shapes. to 5%: trials until it was at most 5% slower, median and mean over searches. "
    "score: 0 as random search, 1 perfect. failed: searches in which a sampler broke down: only "
    "the default counts then."
)

#: Added to ``LEGEND`` where searches end by themselves.
LEGEND_OF_ENDS = (
    " trials: of a search, mean. at the end: how much slower than the recorded best its best is, "
    "median and worst over shapes."
)


def comparison_table(summaries: Sequence[Summary], *, ends: bool = False) -> Table:
    """One row a sampler: regret (median, worst shape), trials until near the best, score, cost.

    Args:
        summaries: One for each sampler.
        ends: Whether searches end by themselves, so that their ends are compared, too.
    """
    table = Table(box=None)
    table.add_column("sampler")
    first = summaries[0]
    for name in ("trials", "at the end") if ends else ():
        table.add_column(name, justify="right")
    for mark in first.regret:
        table.add_column(f"after {mark}", justify="right")
    for nearness in first.trials_to:
        table.add_column(f"to {nearness:.0%}", justify="right")
    columns = ["score", "ms a trial", *(["failed"] if any(it.failed for it in summaries) else [])]
    for name in columns:
        table.add_column(name, justify="right")
    for each in summaries:
        table.add_row(
            each.name,
            *([f"{each.trials:.1f}", "{:.1%} {:.1%}".format(*each.at_end)] if ends else []),
            *(f"{median:.1%} {worst:.1%}" for median, worst in each.regret.values()),
            *(f"{median:.0f} {mean:.1f}" for median, mean in each.trials_to.values()),
            f"{each.score:.2f}",
            f"{each.sampler_ms:.1f}",
            *([f"{each.failed} of {each.searches}"] if "failed" in columns else []),
        )
    return table
