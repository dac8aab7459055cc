"""Between the tuned batch sizes: rows are added where the nearest one is a bad choice.

vLLM takes the nearest row of a batch size that has none. For every size that the server captures
the winners of the rows on both sides are timed, and vLLM's default: where the nearest row's loses
more than ``WORST_LOSS``, the size gets a row of its own. On request rows are merged, too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from autotune.coupling import couple
from autotune.errors import ReplayMiss, SpaceError
from autotune.events import Looked, Watch, unwatched
from autotune.layers import MoeLayer
from autotune.measure import Runner
from autotune.selection import Selection, is_settled, select
from autotune.shapes import KernelShape
from autotune.space import KernelConfig, SearchSpace, default_axes

#: A batch size whose nearest row loses more than this gets a row of its own.
WORST_LOSS = 0.05

#: Rows are merged where no batch size loses this much by it.
CHEAP_LOSS = 0.01

#: What is chosen together: one configuration for every kernel of a layer.
_Option = tuple[KernelConfig, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BetweenRows:
    """How much slower the nearest row's configurations are than the best that was timed.

    The kernels of a MoE layer are looked at together, and have one loss.

    Attributes:
        shape: A kernel at a captured batch size.
        before: Its loss with the rows as tuned, as a share of the best latency; infinite where what
            vLLM would take does not run.
        after: The same with the rows as they are now.
    """

    shape: KernelShape
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined:
    """What came of looking between the rows.

    Attributes:
        selections: Those of all rows that are left, the added ones too.
        added: The shapes that were added.
        merged: The shapes whose rows were dropped.
        between: What is lost at every batch size that was looked at, the rows' own included.
        missing: How many could not be timed, as a recording does not hold them.
        too_many: How many layers have more rows than was asked for.
    """

    selections: tuple[Selection, ...]
    added: tuple[KernelShape, ...]
    merged: tuple[KernelShape, ...]
    between: tuple[BetweenRows, ...]
    missing: int
    too_many: int = 0

    @property
    def looked_at(self) -> int:
        """How many kernels and batch sizes were timed between rows, or have one."""
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
        text = (
            f"Captured batch sizes: {self.looked_at} looked at, {len(self.added)} got a row of "
            "their own; worst loss against the rows on both sides and vLLM's default: "
            f"{self.worst_before:.1%} before, {self.worst_after:.1%} after."
        )
        lines = [text]
        if self.missing:
            lines.append(
                f"{self.missing} captured batch sizes are not in the recording: they were not "
                "looked at, nor refined."
            )
        if self.merged:
            lines.append(f"{len(self.merged)} rows were merged into their neighbours.")
        if self.too_many:
            lines.append(
                f"{self.too_many} layers keep more rows than asked for: with fewer a batch size "
                f"would lose {CHEAP_LOSS:.0%} or more."
            )
        return lines


#: Searches a few configurations of one shape; None where none works.
Study = Callable[[KernelShape], Selection | None]


def refine(
    selections: Iterable[Selection],
    runner: Runner,
    *,
    captured: Callable[[KernelShape], Sequence[KernelShape]],
    study: Study,
    rows_max: int | None = None,
    watch: Watch = unwatched,
) -> Refined:
    """Look at every captured batch size, add rows, and merge some on request.

    The kernels of a MoE layer are looked at together: a row is added to all of them, with one
    ``block_m``.

    Args:
        selections: Those of the tuned rows, MoE layers chosen together.
        runner: Times.
        captured: The shapes of one kernel at the batch sizes that the server captures.
        study: Fills a row where neither neighbour's winner beats vLLM's default.
        rows_max: How many rows a layer may have; None for any number.
        watch: Told of every kernel and batch size of which something was timed.
    """
    clock = _Clock(runner, watch)
    refined = [
        _Layer(rows, clock, captured, study).refined(rows_max)
        for rows in _by_kinds(selections).values()
    ]
    return Refined(
        selections=tuple(one for each in refined for one in each.selections),
        added=tuple(shape for each in refined for shape in each.added),
        merged=tuple(shape for each in refined for shape in each.merged),
        between=tuple(one for each in refined for one in each.between),
        missing=sum(each.missing for each in refined),
        too_many=sum(each.too_many for each in refined),
    )


_Rows = dict[int, list[Selection]]


def _by_kinds(selections: Iterable[Selection]) -> dict[object, _Rows]:
    """Rows by what is looked at together: a dense kernel, or the kernels of a MoE layer."""
    found: dict[object, _Rows] = {}
    for one in selections:
        kind = one.shape.without_batch
        together = MoeLayer.of(kind) if kind.op.is_moe else kind
        found.setdefault(together, {}).setdefault(one.shape.num_tokens, []).append(one)
    return found


# --------------------------------------------------------------------------- timing


class _NotRecorded(Exception):
    """A replay does not know one of the configurations at this batch size."""


@dataclass(slots=True)
class _Clock:
    """Times configurations side by side; what was timed together once is not timed again."""

    runner: Runner
    watch: Watch
    _defaults: dict[KernelShape, KernelConfig] = field(default_factory=dict)
    _samples: dict[KernelShape, list[Mapping[KernelConfig, Sequence[float]]]] = field(
        default_factory=dict
    )

    def default(self, shape: KernelShape) -> KernelConfig:
        """What vLLM takes by default at a shape of which something was timed."""
        return self._defaults[shape]

    def samples(
        self, shape: KernelShape, configs: Sequence[KernelConfig]
    ) -> Mapping[KernelConfig, Sequence[float]]:
        """Samples of configurations side by side, by what was asked for, the default's too.

        Raises:
            _NotRecorded: A replay does not hold one of them.
        """
        space = self._space(shape, configs)
        self._defaults[shape] = space.default
        asked = {config: self._known(space, config) for config in (space.default, *configs)}
        distinct = list(dict.fromkeys(asked.values()))
        timed = next(
            (each for each in self._samples.get(shape, ()) if set(distinct) <= each.keys()), None
        )
        if timed is None:
            # It looks at the fastest beside the one that it is given, which must not be that one.
            rules = [partial(is_settled, config) for config in distinct]
            found = self.runner.compare(
                shape, distinct, lambda samples: all(rule(samples) for rule in rules)
            ).samples_us
            # What does not run is left out: that is known now, and not asked again.
            timed = {config: found.get(config, ()) for config in distinct}
            self._samples.setdefault(shape, []).append(timed)
            self.watch(Looked(shape=shape))
        return {config: timed[one] for config, one in asked.items() if timed[one]}

    def _known(self, space: SearchSpace, config: KernelConfig) -> KernelConfig:
        rejection = space.rejection(config)
        if rejection is not None and rejection.rule == "not_recorded":
            raise _NotRecorded
        return space.canonical(config)

    def _space(self, shape: KernelShape, configs: Sequence[KernelConfig]) -> SearchSpace:
        """The space of these values, and of the smallest of each axis: one point is always valid.

        All of it would be thousands of times as large, for every batch size.
        """
        axes = {
            name: sorted({min(values), *(config.as_dict()[name] for config in configs)})
            for name, values in default_axes(shape.op).items()
        }
        try:
            return self.runner.space(shape, axes)
        except (ReplayMiss, SpaceError):
            raise _NotRecorded from None


# --------------------------------------------------------------------------- one layer


class _Layer:
    """The rows of one dense kernel, or of the four of a MoE layer."""

    def __init__(
        self,
        rows: _Rows,
        clock: _Clock,
        captured: Callable[[KernelShape], Sequence[KernelShape]],
        study: Study,
    ) -> None:
        self._clock, self._study = clock, study
        most = max(map(len, rows.values()))
        #: Where nothing works for one of the kernels there is nothing to choose from.
        self._rows = {
            count: sorted(those, key=lambda one: one.shape.without_batch.label)
            for count, those in rows.items()
            if len(those) == most
        }
        self._others = [one for those in rows.values() if len(those) < most for one in those]
        self._kinds = [one.shape.without_batch for one in next(iter(self._rows.values()))]
        wanted = [{shape.num_tokens for shape in captured(kind)} for kind in self._kinds]
        self._counts = sorted(set.intersection(*wanted))
        #: Batch sizes of which a replay does not hold what must be timed.
        self._unknown: set[int] = set()
        #: Microseconds of every option that was timed at a batch size; None where it does not run.
        self._timed: dict[int, dict[_Option, float | None]] = {}

    def refined(self, rows_max: int | None) -> Refined:
        """Add rows, merge them, and say what that did."""
        tuned = dict(self._rows)
        self._add_rows()
        too_many = 0 if rows_max is None else self._merge_rows(rows_max)
        losses = [(n, self._loss(n, tuned), self._loss(n, self._rows)) for n in self._counts]
        between = [
            BetweenRows(shape=self._shape(number, count), before=before, after=after)
            for count, before, after in losses
            if count not in self._unknown
            for number in range(len(self._kinds))
        ]
        added = [one.shape for n, those in self._rows.items() if n not in tuned for one in those]
        merged = [one.shape for n, those in tuned.items() if n not in self._rows for one in those]
        return Refined(
            selections=(
                *(one for n in sorted(self._rows) for one in self._rows[n]),
                *self._others,
            ),
            added=tuple(added),
            merged=tuple(merged),
            between=tuple(between),
            missing=len(self._unknown) * len(self._kinds),
            too_many=too_many,
        )

    # ----------------------------------------------------------------- adding

    def _add_rows(self) -> None:
        left = [count for count in self._counts if count not in self._rows]
        while left:
            worst = max(left, key=lambda count: self._loss(count, self._rows))
            if self._loss(worst, self._rows) <= WORST_LOSS:
                return
            left.remove(worst)
            self._rows[worst] = self._filled(worst)

    def _filled(self, count: int) -> list[Selection]:
        """A row of the fastest of both neighbours' winners, or of a short study of its own."""
        options = list(dict.fromkeys(self._beside(count, self._rows)))
        chosen = couple([self._selection(n, count, options) for n in range(len(self._kinds))])
        if all(one.is_default for one in chosen):
            searched = [self._study(self._shape(n, count)) for n in range(len(self._kinds))]
            known = [one for one in searched if one is not None]
            chosen = couple(known) if len(known) == len(chosen) else chosen
        self._time(count, [tuple(one.config for one in chosen)])
        return chosen

    def _selection(self, number: int, count: int, options: Sequence[_Option]) -> Selection:
        shape = self._shape(number, count)
        default = self._clock.default(shape)
        samples = self._clock.samples(shape, [option[number] for option in options])
        shortest = min(map(len, samples.values()))
        samples = {config: each[:shortest] for config, each in samples.items()}
        config, ratio = select(default, samples)
        return Selection(
            shape=shape,
            config=config,
            default=default,
            samples_us={config: tuple(each) for config, each in samples.items()},
            ratio=ratio,
            trials=len(samples),
            outcomes={"ok": len(samples)},
        )

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

    def _cost(self, row: int, before: _Rows) -> float:
        """What the worst batch size loses without a row, beside the row that it had before."""
        rest = {count: those for count, those in self._rows.items() if count != row}
        losses = []
        for count in {*self._counts, *before} - self._unknown:
            if _nearest(count, self._rows) != row:
                continue
            had, gets = (_option(rows[_nearest(count, rows)]) for rows in (before, rest))
            try:
                self._time(count, [had, gets])
            except _NotRecorded:
                return float("inf")
            losses.append(_ratio(self._timed[count][gets], self._timed[count][had]))
        return max(losses)

    # ----------------------------------------------------------------- what a batch size loses

    def _loss(self, count: int, rows: _Rows) -> float:
        """How much slower the nearest row's option is than the fastest that is known.

        Where nothing runs, or a replay does not hold what must be timed, nothing can be lost.
        """
        if count in self._unknown:
            return 0.0
        try:
            self._time(count, self._beside(count, rows))
        except _NotRecorded:
            self._unknown.add(count)
            return 0.0
        timed = self._timed[count]
        known = [us for us in timed.values() if us is not None]
        return _ratio(timed[_option(rows[_nearest(count, rows)])], min(known)) if known else 0.0

    def _beside(self, count: int, rows: _Rows) -> list[_Option]:
        """What the rows on both sides have, or its own row."""
        if count in rows:
            return [_option(rows[count])]
        below = max((row for row in rows if row < count), default=None)
        above = min((row for row in rows if row > count), default=None)
        return [_option(rows[row]) for row in (below, above) if row is not None]

    def _time(self, count: int, options: Sequence[_Option]) -> None:
        """Time options beside vLLM's default, unless that was done.

        Raises:
            _NotRecorded: A replay does not hold one of them.
        """
        timed = self._timed.setdefault(count, {})
        if timed and all(option in timed for option in options):
            return
        shapes = [self._shape(number, count) for number in range(len(self._kinds))]
        samples = [
            self._clock.samples(shape, [option[number] for option in options])
            for number, shape in enumerate(shapes)
        ]
        default = tuple(map(self._clock.default, shapes))
        for option in (default, *options):
            each = [of_one.get(config, ()) for of_one, config in zip(samples, option, strict=True)]
            timed[option] = sum(map(statistics.median, each)) if all(each) else None

    def _shape(self, number: int, count: int) -> KernelShape:
        return replace(self._kinds[number], num_tokens=count)


def _option(row: Iterable[Selection]) -> _Option:
    return tuple(one.config for one in row)


def _nearest(count: int, rows: Iterable[int]) -> int:
    """The row that vLLM takes: the nearest, of two that are as near the first in the file."""
    return min(sorted(rows), key=lambda row: abs(row - count))


def _ratio(us: float | None, best_us: float | None) -> float:
    if us is None:
        return float("inf")
    return 0.0 if best_us is None else us / best_us - 1
