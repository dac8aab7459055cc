"""Between the tuned batch sizes: rows are added where the nearest one is a bad choice.

For every size that the server captures the winners of the rows on both sides are timed, and vLLM's
default: where the nearest row's loses more than ``WORST_LOSS``, the size gets a row of its own. On
request rows are merged, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from autotune.choose.couple import couple
from autotune.choose.losses import Losses, Option, Rows, Timings, nearest, option_of, unnoticed
from autotune.choose.selection import BetweenRows, Selection
from autotune.launch.moe_layer import MoeLayer
from autotune.launch.shape import KernelShape
from autotune.measure import Runner

#: A batch size whose nearest row loses more than this gets a row of its own.
WORST_LOSS = 0.05

#: Rows are merged where no batch size loses this much by it.
CHEAP_LOSS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined:
    """What came of looking between the rows.

    Attributes:
        selections: Those of all rows that are left, the added ones too.
        added: The shapes that were added.
        merged: The shapes whose rows were dropped.
        between: What is lost at every batch size that was looked at, the rows' own included.
        without_row: How many of these shapes had no row.
        missing: How many could not be timed, as a recording does not hold them.
        too_many: How many layers have more rows than was asked for.
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
        """How many shapes at captured batch sizes were timed, or have a row."""
        return len(self.between)

    @property
    def worst_before(self) -> float:
        """The largest loss of one of those that were looked at, with the rows as tuned."""
        return max((each.before for each in self.between), default=0.0)

    @property
    def worst_after(self) -> float:
        """The same with the rows as they are now."""
        return max((each.after for each in self.between), default=0.0)

    @property
    def lines(self) -> list[str]:
        """What to tell the user of it."""
        lines = []
        if self.without_row or not self.missing:
            lines.append(
                f"Worst loss over {self.looked_at} shapes at captured batch sizes, against the "
                "rows on both sides and vLLM's default: "
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


#: Searches a few configurations of one shape; gives None where none works.
ShortSearch = Callable[[KernelShape], Selection | None]


def refine(
    selections: Iterable[Selection],
    runner: Runner,
    *,
    captured: Callable[[KernelShape], Sequence[KernelShape]],
    search: ShortSearch,
    rows_max: int | None = None,
    looked: Callable[[KernelShape], None] = unnoticed,
) -> Refined:
    """Look at every captured batch size, add rows, and merge some on request.

    The kernels of a MoE layer are looked at together: a row is added to all of them, with one
    ``block_m``.

    Args:
        selections: Those of the tuned rows, MoE layers chosen together.
        runner: Times.
        captured: The shapes of one kernel at the batch sizes that the server captures.
        search: Fills a row where neither neighbour's winner beats vLLM's default.
        rows_max: How many rows a layer may have; None for any number.
        looked: Called with a kernel at a batch size when configurations of it were timed.
    """
    timings = Timings(runner, looked)
    refined = [
        _Layer(rows, timings, captured, search).refined(rows_max)
        for rows in _by_kinds(selections).values()
    ]
    return Refined(
        selections=tuple(one for each in refined for one in each.selections),
        added=tuple(shape for each in refined for shape in each.added),
        merged=tuple(shape for each in refined for shape in each.merged),
        between=tuple(one for each in refined for one in each.between),
        without_row=sum(each.without_row for each in refined),
        missing=sum(each.missing for each in refined),
        too_many=sum(each.too_many for each in refined),
    )


def _by_kinds(selections: Iterable[Selection]) -> dict[object, Rows]:
    """Rows by what is looked at together: a dense kernel, or the kernels of a MoE layer."""
    found: dict[object, Rows] = {}
    for one in selections:
        kind = one.shape.without_batch
        together = MoeLayer.of(kind) if kind.op.is_moe else kind
        found.setdefault(together, {}).setdefault(one.shape.num_tokens, []).append(one)
    return found


def _percent(loss: float) -> str:
    return "does not run" if math.isinf(loss) else f"{loss:.1%}"


class _Layer:
    """The rows of one dense kernel, or of the four of a MoE layer."""

    def __init__(
        self,
        rows: Rows,
        timings: Timings,
        captured: Callable[[KernelShape], Sequence[KernelShape]],
        search: ShortSearch,
    ) -> None:
        self._timings, self._search = timings, search
        most = max(map(len, rows.values()))
        #: Where nothing works for one of the kernels there is nothing to choose from.
        self._rows = {
            count: sorted(those, key=lambda one: one.shape.without_batch.label)
            for count, those in rows.items()
            if len(those) == most
        }
        self._others = [one for those in rows.values() if len(those) < most for one in those]
        kinds = [one.shape.without_batch for one in next(iter(self._rows.values()))]
        wanted = [{shape.num_tokens for shape in captured(kind)} for kind in kinds]
        self._losses = Losses(kinds, set.intersection(*wanted), timings)

    def refined(self, rows_max: int | None) -> Refined:
        """Add rows, merge them, and say what that did."""
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
        """What a batch size loses; nothing of one that a replay does not hold."""
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
            self._rows[worst] = self._filled(worst)

    def _filled(self, count: int) -> list[Selection]:
        """A row of the fastest of both neighbours' winners, or of a short study of its own."""
        options = self._losses.options(count, self._rows)
        shapes = self._losses.shapes(count)
        chosen = couple([self._selection(shape, n, options) for n, shape in enumerate(shapes)])
        if all(one.is_default for one in chosen):
            known = [one for one in map(self._search, shapes) if one is not None]
            chosen = couple(known) if len(known) == len(chosen) else chosen
        self._losses.time(count, [option_of(chosen)])
        return chosen

    def _selection(self, shape: KernelShape, number: int, options: Sequence[Option]) -> Selection:
        """The best of what options have for one kernel, by its number in them."""
        samples = self._timings.samples(shape, [option[number] for option in options])
        default = self._timings.default(shape)
        shortest = min(map(len, samples.values()))
        samples = {config: each[:shortest] for config, each in samples.items()}
        return Selection.of_samples(shape, default, samples)

    # ----------------------------------------------------------------- merging

    def _merge_rows(self, rows_max: int) -> int:
        """Drop the row that costs least while there are too many; 1 if there still are."""
        before = dict(self._rows)
        while len(self._rows) > rows_max:
            costs = {row: self._cost(row, before) for row in self._rows}
            cheapest = min(costs, key=lambda row: (costs[row], row))
            if costs[cheapest] >= CHEAP_LOSS:
                return 1
            del self._rows[cheapest]
        return 0

    def _cost(self, row: int, before: Rows) -> float:
        """What the worst batch size loses without a row, beside the row that it had before."""
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
    """The shapes of rows that others do not have."""
    return tuple(one.shape for n, those in rows.items() if n not in without for one in those)
