"""What deterministic entries cost: those that are slower than a default that splits k."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from autotune.choose.selection import Selection


def slower_lines(selections: Iterable[Selection]) -> list[str]:
    """A line on the entries that are certainly slower than a default that may not be chosen.

    Args:
        selections: What is exported.
    """
    barred = [one for one in selections if one.deterministic and one.default.splits_k]
    times = [
        1 / one.ratio.value
        for one in barred
        if one.ratio is not None and one.ratio.verdict == "slower"
    ]
    if not barred:
        return []
    entries = "1 entry is" if len(times) == 1 else f"{len(times) or 'no'} entries are"
    line = f"Of {len(barred)} whose default splits k, {entries} slower than that default"
    if times:
        line += (
            f": they take {statistics.median(times):.2f} times as long in the median, "
            f"{max(times):.2f} at most"
        )
    return [f"{line}."]
