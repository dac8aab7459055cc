"""The table of a comparison of samplers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from autotune.compare_samplers import Summary


def comparison_table(summaries: Sequence[Summary]) -> Table:
    """One row a sampler: regrets (median, worst shape), trials to a nearness, score, cost."""
    table = Table(box=None)
    table.add_column("sampler")
    first = summaries[0]
    for mark in first.regret:
        table.add_column(f"after {mark}", justify="right")
    for nearness in first.trials_to:
        table.add_column(f"to {nearness:.0%}", justify="right")
    for name in ("score", "ms a trial"):
        table.add_column(name, justify="right")
    for each in summaries:
        table.add_row(
            each.sampler + (", transfer" if each.transfer else ""),
            *(f"{median:.1%} {worst:.1%}" for median, worst in each.regret.values()),
            *(f"{median:.0f} {mean:.1f}" for median, mean in each.trials_to.values()),
            f"{each.score:.2f}",
            f"{each.sampler_ms:.1f}",
        )
    return table


def print_comparison(summaries: Sequence[Summary]) -> None:
    """Print the table, as wide as it is."""
    Console(width=200).print(comparison_table(summaries))
