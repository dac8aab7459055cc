"""Between the tuned batch sizes: rows are added where the nearest row is a bad choice.

A row is what vLLM's file holds for one batch size. At every batch size that the server captures,
the winners of the rows on both sides are timed beside vLLM's default. A batch size whose nearest
row loses more than ``WORST_LOSS`` gets a row of its own. On request, rows are merged too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from autotune.choose.couple import couple
from autotune.choose.losses import (
    BetweenRows,
    Losses,
    Rows,
    Timings,
    beside,
    nearest,
    option_of,
    rows_of_layers,
)
from autotune.choose.selection import Selection
from autotune.launch.shape import KernelShape

#: A batch size gets a row of its own where its nearest row loses more than this share.
WORST_LOSS = 0.05

#: A row is dropped only where every batch size loses less than this share without it.
CHEAP_LOSS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined:
    """The rows after batch sizes between the tuned ones were timed.

    Attributes:
        selections: The selections of all remaining rows, added ones included.
        added: The shapes whose rows were added.
        merged: The shapes whose rows were dropped.
        between: The loss of every shape at a captured batch size, with or without a row.
        without_row: How many shapes in ``between`` had no row before.
        missing: How many shapes could not be timed because a recording does not hold them.
        too_many: How many layers keep more rows than asked for.
    """

    selections: tuple[Selection, ...]
    added: tuple[KernelShape, ...]
    merged: tuple[KernelShape, ...]
    between: tuple[BetweenRows, ...]
    without_row: int
    missing: int
    too_many: int = 0

    @property
    def looked_at(self) -> int:
        """How many shapes at captured batch sizes have a known loss."""
        return len(self.between)

    @property
    def worst_before(self) -> float:
        """The largest loss in ``between`` with the rows as tuned."""
        return max((each.before for each in self.between), default=0.0)

    @property
    def worst_after(self) -> float:
        """The largest loss in ``between`` with the rows as they are now."""
        return max((each.after for each in self.between), default=0.0)

    @property
    def _is_deterministic(self) -> bool:
        return any(one.deterministic for one in self.selections)

    @property
    def lines(self) -> list[str]:
        """What the user is told, a line each."""
        lines = []
        if self.without_row or not self.missing:
            default = "" if self._is_deterministic else " and vLLM's default"
            lines.append(
                f"Worst loss over {self.looked_at} shapes at captured batch sizes, against the "
                f"rows on both sides{default}: "
                f"{_percent(self.worst_before)} before, {_percent(self.worst_after)} after; "
                f"rows added: {len(self.added)}, merged: {len(self.merged)}."
            )
        if self.missing:
            lines.append(
                "Shapes at captured batch sizes that the recording does not hold, and so neither "
                f"timed nor given a row: {self.missing}."
            )
        if self.too_many:
            lines.append(
                f"Layers that keep more rows than asked for: {self.too_many}; with fewer a batch "
                f"size would lose {CHEAP_LOSS:.0%} or more."
            )
        return lines


#: Searches a few configurations of one shape, and chooses; returns None where none works.
ShortSearch = Callable[[KernelShape], Selection | None]


def refine(
    selections: Iterable[Selection],
    timings: Timings,
    *,
    captured: Callable[[KernelShape], Sequence[KernelShape]],
    search: ShortSearch,
    rows_max: int | None = None,
) -> Refined:
    """Time the captured batch sizes, add rows, and merge rows on request.

    The kernels of a MoE layer are treated as one: a row is added to all of them, with one
    ``block_m``.

    Args:
        selections: The selections of the tuned rows, with one ``block_m`` per MoE layer.
        timings: Times configurations.
        captured: Returns the shapes of a kernel at the batch sizes that the server captures.
        search: Searches a shape where neither neighbour's winner beats vLLM's default.
        rows_max: How many rows a layer may have; None for any number.
    """
    return joined(
        _Layer(rows, others, timings, captured, search).refined(rows_max)
        for rows, others in rows_of_layers(selections)
    )


def joined(of_layers: Iterable[Refined]) -> Refined:
    """The rows of all layers, in this order."""
    refined = list(of_layers)
    return Refined(
        selections=tuple(one for each in refined for one in each.selections),
        added=tuple(shape for each in refined for shape in each.added),
        merged=tuple(shape for each in refined for shape in each.merged),
        between=tuple(one for each in refined for one in each.between),
        without_row=sum(each.without_row for each in refined),
        missing=sum(each.missing for each in refined),
        too_many=sum(each.too_many for each in refined),
    )


def _percent(loss: float) -> str:
    return "does not run" if math.isinf(loss) else f"{loss:.1%}"


class _Layer:
    """The rows of one dense kernel, or of the four kernels of a MoE layer."""

    def __init__(
        self,
        rows: Rows,
        others: Sequence[Selection],
        timings: Timings,
        captured: Callable[[KernelShape], Sequence[KernelShape]],
        search: ShortSearch,
    ) -> None:
        self._timings, self._search = timings, search
        self._rows, self._others = rows, others
        kinds = [one.shape.without_batch for one in next(iter(self._rows.values()))]
        wanted = [{shape.num_tokens for shape in captured(kind)} for kind in kinds]
        self._losses = Losses(kinds, set.intersection(*wanted), timings)
        self._losses.expect({count: beside(count, rows) for count in self._losses.counts})

    def refined(self, rows_max: int | None) -> Refined:
        """Add rows, merge rows, and return the result."""
        tuned = dict(self._rows)
        self._add_rows()
        too_many = 0 if rows_max is None else self._merge_rows(rows_max)
        between = [one for count in self._losses.counts for one in self._between(count, tuned)]
        each = max(map(len, tuned.values()))
        return Refined(
            selections=(
                *(one for n in sorted(self._rows) for one in self._rows[n]),
                *self._others,
            ),
            added=_shapes_of(self._rows, without=tuned),
            merged=_shapes_of(tuned, without=self._rows),
            between=tuple(between),
            without_row=sum(one.shape.num_tokens not in tuned for one in between),
            missing=each * len(self._losses.unknown),
            too_many=too_many,
        )

    def _between(self, count: int, tuned: Rows) -> list[BetweenRows]:
        """The losses of the layer's shapes at a batch size; none where it could not be timed."""
        before, after = (self._losses.loss(count, rows) for rows in (tuned, self._rows))
        if count in self._losses.unknown:
            return []
        return [
            BetweenRows(shape=shape, before=before, after=after)
            for shape in self._losses.shapes(count)
        ]

    # ----------------------------------------------------------------- adding

    def _add_rows(self) -> None:
        left = [count for count in self._losses.counts if count not in self._rows]
        while left:
            worst = max(left, key=lambda count: self._losses.loss(count, self._rows))
            if self._losses.loss(worst, self._rows) <= WORST_LOSS:
                return
            left.remove(worst)
            if row := self._filled(worst):
                self._rows[worst] = row

    def _filled(self, count: int) -> list[Selection]:
        """A row for a batch size: a neighbour's winner, or else the result of a short search.

        It is empty where neither works.
        """
        options = self._losses.options(count, self._rows)
        shapes = self._losses.shapes(count)
        chosen = self._whole(
            self._timings.selection(shape, [option[number] for option in options])
            for number, shape in enumerate(shapes)
        )
        if not any(one.beats_default for one in chosen):
            chosen = self._whole(map(self._search, shapes)) or chosen
        if chosen:
            self._losses.time(count, [option_of(chosen)])
        return chosen

    def _whole(self, selections: Iterable[Selection | None]) -> list[Selection]:
        """The selections of all kernels of the layer together; none where one has none."""
        found = list(selections)
        known = [one for one in found if one is not None]
        return couple(known) if len(known) == len(found) else []

    # ----------------------------------------------------------------- merging

    def _merge_rows(self, rows_max: int) -> int:
        """Drop the cheapest row while there are too many; returns 1 if too many are left."""
        before = dict(self._rows)
        while len(self._rows) > rows_max:
            costs = {row: self._cost(row, before) for row in self._rows}
            cheapest = min(costs, key=lambda row: (costs[row], row))
            if costs[cheapest] >= CHEAP_LOSS:
                return 1
            del self._rows[cheapest]
        return 0

    def _cost(self, row: int, before: Rows) -> float:
        """The largest loss at any batch size without ``row``, against the rows before merging."""
        rest = [count for count in self._rows if count != row]
        counts = {*self._losses.counts, *before} - self._losses.unknown
        return max(
            self._losses.of_taking(
                option_of(self._rows[nearest(count, rest)]),
                option_of(before[nearest(count, before)]),
                count,
            )
            for count in counts
            if nearest(count, self._rows) == row
        )


def _shapes_of(rows: Rows, *, without: Rows) -> tuple[KernelShape, ...]:
    """The shapes of the rows whose batch sizes are not among those of ``without``."""
    return tuple(one.shape for n, those in rows.items() if n not in without for one in those)
