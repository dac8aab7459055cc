"""The rows of one layer: what each has, what that loses, and the compiled kernels it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace

from autotune.choose.exchanged import Exchanged
from autotune.choose.losses import (
    Losses,
    NotRecorded,
    Option,
    Rows,
    Timings,
    beside,
    nearest,
    option_of,
)
from autotune.choose.selection import Selection
from autotune.launch.binary import Binary, binary_of
from autotune.launch.shape import KernelShape
from autotune.launch.warmed import WarmedSizes

#: A row takes a configuration that is launched at the start unless it loses more than this share.
MOST_LOSS = 0.03

#: A batch size without a row gets the configuration of its nearest row unless that loses more than
#: this share, a run's noise: the fewer there are, the fewer are compiled.
EQUAL_LOSS = 0.01

#: What clearly loses more than this share is timed no closer.
_CLEAR_LOSS = 2 * MOST_LOSS

#: Returns the batch sizes of a kernel, given ``without_batch``, in a server.
SizesOf = Callable[[KernelShape], WarmedSizes]


class LayerRows:
    """The rows of one dense kernel, or of the four kernels of a MoE layer.

    Attributes:
        options: For every row the configurations that it has now.
        sizes: The batch sizes in the server.
        losses: What a batch size loses with an option.
    """

    def __init__(
        self,
        rows: Rows,
        others: Sequence[Selection],
        timings: Timings,
        sizes: SizesOf,
        release: str,
        numbers: dict[Binary, int],
    ) -> None:
        self._rows, self._others, self._timings, self._release = rows, others, timings, release
        self._kinds = [one.shape.without_batch for one in next(iter(rows.values()))]
        self.options = {count: option_of(row) for count, row in rows.items()}
        self.sizes = sizes(self._kinds[0])
        self.losses = Losses(self._kinds, self.sizes.warmed, timings)
        self._exchanges = Losses(self._kinds, (), timings.roughly(_CLEAR_LOSS))
        self._numbers = numbers
        self._binaries: dict[tuple[int, Option], frozenset[int]] = {}
        self._needed_by: dict[tuple[int, Option], frozenset[int]] = {}
        self._now: tuple[frozenset[int], Mapping[int, frozenset[int]]] | None = None
        self._later_of_rows: Mapping[int, Sequence[int]] = {}
        self._nearest_rows: Mapping[int, int] = {}

    # ----------------------------------------------------------------- rows

    def expect_rows(self) -> None:
        """Say what ``add_rows`` will time."""
        new = [count for count in self.sizes.warmed if count not in self._rows]
        self.losses.expect({count: beside(count, self._rows) for count in new})

    def add_rows(self) -> None:
        """Give every batch size of the start a row, but where a replay does not hold it."""
        tuned = dict(self._rows)
        for count in self.sizes.warmed:
            if count not in tuned and (options := self.losses.options(count, tuned)):
                self._add_row(count, options, option_of(tuned[nearest(count, tuned)]))

    def _add_row(self, count: int, options: Sequence[Option], usual: Option) -> None:
        """A row with the nearest row's configurations, or a neighbour's that are faster."""
        best = min(options, key=lambda option: self.losses.of_taking(option, usual, count))
        chosen = best if self.losses.of_taking(usual, best, count) > EQUAL_LOSS else usual
        selections = [
            self._timings.selection(shape, [option[number] for option in options])
            for number, shape in enumerate(self.losses.shapes(count))
        ]
        pairs = [
            (one, config)
            for one, config in zip(selections, chosen, strict=True)
            if one is not None and config in one.samples_us
        ]
        if len(pairs) == len(chosen):
            self._rows[count] = [one.taking(config, None) for one, config in pairs]
            self.options[count] = chosen

    def selections(self) -> Iterator[Selection]:
        """The selections of all rows with the configurations that they have now."""
        for count, row in sorted(self._rows.items()):
            if self.options[count] == option_of(row):
                yield from row
            else:
                yield from self._exchanged(count, row)
        yield from self._others

    def _exchanged(self, count: int, row: Sequence[Selection]) -> Iterator[Selection]:
        loss = self.loss(count, self.options[count])
        for one, config in zip(row, self.options[count], strict=True):
            timed = self._timings.selection(one.shape, [one.config, config])
            with_config = one if timed is None else replace(one, samples_us=timed.samples_us)
            yield with_config.taking(config, Exchanged(own=one.config, loss=loss))

    def own(self, row: int) -> Option:
        """The option that was chosen for a row by itself."""
        return option_of(self._rows[row])

    def finalists(self, row: int) -> list[Option]:
        """What was timed when a row was chosen; nothing for a MoE layer: its rows change whole."""
        if len(self._kinds) > 1:
            return []
        return [(config,) for config in self._rows[row][0].choosable_us]

    def loss(self, row: int, option: Option) -> float:
        """How much slower a row is with an option than with its own; infinite if not known."""
        return self._exchanges.of_taking(option, self.own(row), row)

    def may_take(self, row: int, option: Option) -> bool:
        """Whether a row's search has not shown already that an option loses too much."""
        return not self._exchanges.surely_loses(option, self.own(row), row, MOST_LOSS)

    def expect(self, options: Mapping[int, Sequence[Option]]) -> None:
        """Say which options of some rows will be timed soon."""
        self._exchanges.expect({n: [self.own(n), *those] for n, those in options.items()})

    def time(self, row: int, options: Sequence[Option]) -> None:
        """Time options of a row side by side; what a replay does not hold is timed alone, later."""
        with suppress(NotRecorded):
            self._exchanges.time(row, [self.own(row), *options])

    # ----------------------------------------------------------------- compiled kernels

    @property
    def _later(self) -> Mapping[int, Sequence[int]]:
        """For every row that later batch sizes take, batch sizes of every kind."""
        if not self._later_of_rows:
            self._later_of_rows = self.sizes.later_of_rows(self.options)
        return self._later_of_rows

    def binaries(self, count: int, option: Option) -> frozenset[int]:
        """The compiled kernels that a batch size needs with an option, by their numbers."""
        if (count, option) not in self._binaries:
            found = [
                binary_of(shape, config, release=self._release)
                for shape, config in zip(self.losses.shapes(count), option, strict=True)
            ]
            numbers = frozenset(
                self._numbers.setdefault(each, len(self._numbers)) for each in found
            )
            self._binaries[count, option] = numbers
        return self._binaries[count, option]

    def take(self, moves: Iterable[tuple[int, Option]]) -> None:
        """Give rows other options."""
        self.options.update(moves)
        self._now = None

    def warmed(self) -> frozenset[int]:
        """The compiled kernels that the start launches."""
        return self._launched[0]

    def late(self, warmed: Set[int]) -> Iterator[tuple[int, int]]:
        """Every row with every compiled kernel that it needs later and that is not warmed."""
        for row, needed in self._launched[1].items():
            yield from ((row, binary) for binary in needed if binary not in warmed)

    def late_count(self, warmed: Set[int]) -> int:
        """How many ``late`` gives."""
        return sum(len(needed - warmed) for needed in self._launched[1].values())

    @property
    def _launched(self) -> tuple[frozenset[int], Mapping[int, frozenset[int]]]:
        """What the start launches, and what each row needs later, with the options of now."""
        if self._now is None:
            rows = self._nearest
            each = (self.binaries(n, self.options[rows[n]]) for n in self.sizes.warmed)
            needed = {row: self._needed(row) for row in self._later}
            self._now = frozenset().union(*each), needed
        return self._now

    @property
    def _nearest(self) -> Mapping[int, int]:
        """The row that each batch size of the start takes."""
        if not self._nearest_rows:
            self._nearest_rows = {n: nearest(n, self.options) for n in self.sizes.warmed}
        return self._nearest_rows

    def _needed(self, row: int) -> frozenset[int]:
        """The compiled kernels that later batch sizes need of a row."""
        place = row, self.options[row]
        if place not in self._needed_by:
            each = (self.binaries(count, self.options[row]) for count in self._later[row])
            self._needed_by[place] = frozenset().union(*each)
        return self._needed_by[place]
