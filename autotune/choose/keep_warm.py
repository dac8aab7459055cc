"""No compile while serving: rows take configurations that the server launches at its start.

Tuned files give a server more compiled kernels than vLLM's defaults do. One that its start did not
launch is compiled when a batch first needs it, and requests wait. So every batch size that the
start launches gets a row of its own, and what is launched later takes one of those kernels where
that costs little: the row changes its configuration, or a row that the start launches does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace

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
    rows_of_layers,
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

#: How many exchanges are timed for one late kernel: those that leave the fewest, of the nearest
#: rows.
_MOST_TIMED = 6

#: With how many warmed sizes a row may change together, the nearest ones.
_MOST_TOGETHER = 3

#: Returns the batch sizes of a kernel, given ``without_batch``, in a server.
SizesOf = Callable[[KernelShape], WarmedSizes]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptWarm:
    """The rows of a server that compiles as little as it can while it serves.

    Attributes:
        selections: The selections of all rows, added ones included.
        added: The shapes whose rows were added.
        exchanged: The shapes whose rows took another configuration.
    """

    selections: tuple[Selection, ...]
    added: tuple[KernelShape, ...]
    exchanged: tuple[KernelShape, ...]


def keep_warm(
    selections: Iterable[Selection],
    timings: Timings,
    *,
    sizes: SizesOf,
    release: str,
    add_rows: bool = True,
) -> KeptWarm:
    """Give rows to what the start launches, and its configurations to what is launched later.

    Args:
        selections: The selections of the rows, with one ``block_m`` per MoE layer.
        timings: Times configurations.
        sizes: The batch sizes of a kernel in the server.
        release: The vLLM release that the server runs.
        add_rows: Whether batch sizes that the start launches get rows.
    """
    given = {one.shape: one for one in selections}
    numbers: dict[Binary, int] = {}
    layers = [
        _Layer(rows, others, timings, sizes, release, numbers)
        for rows, others in rows_of_layers(given.values())
    ]
    if add_rows:
        for layer in layers:
            layer.expect_rows()
        for layer in layers:
            layer.add_rows()
    _Server(layers).exchange()
    kept = [one for layer in layers for one in layer.selections()]
    return KeptWarm(
        selections=tuple(kept),
        added=tuple(one.shape for one in kept if one.shape not in given),
        exchanged=tuple(one.shape for one in kept if one.exchanged is not None),
    )


class _Layer:
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


@dataclass(frozen=True, slots=True)
class _Change:
    """Rows of a layer take an option each.

    Attributes:
        layer: The layer.
        moves: The rows with their new options.
        distance: How far apart the batch sizes are; the nearest changes are likely to cost least.
    """

    layer: _Layer
    moves: tuple[tuple[int, Option], ...]
    distance: int

    def make(self) -> None:
        """Change the rows."""
        self.layer.take(self.moves)

    @property
    def undo(self) -> _Change:
        """The change back to what the rows have now."""
        before = tuple((row, self.layer.options[row]) for row, _ in self.moves)
        return _Change(self.layer, before, self.distance)

    @property
    def may_pass(self) -> bool:
        """Whether no row is known to lose too much, before anything is timed."""
        return all(self.layer.may_take(row, option) for row, option in self.moves)

    @property
    def loss(self) -> float:
        """The most that one of the rows loses against its own option; infinite if not known."""
        return max(self.layer.loss(row, option) for row, option in self.moves)


class _Server:
    """All layers: what one launches at the start, another may need later."""

    def __init__(self, layers: Sequence[_Layer]) -> None:
        self._layers = layers

    def exchange(self) -> None:
        """Change rows, one after another, while that leaves fewer late kernels."""
        hopeless: set[tuple[_Layer, int, Option, int]] = set()
        self._time_likely()
        while True:
            late = (
                (layer, row, binary)
                for layer, row, binary in self._late()
                if (layer, row, layer.options[row], binary) not in hopeless
            )
            first = next(late, None)
            if first is None:
                return
            layer, row, binary = first
            place = layer, row, layer.options[row], binary
            if not self._mended(layer, row, binary):
                hopeless.add(place)

    def _time_likely(self) -> None:
        """Time what each row is likely to take at once: compiled ahead, and side by side."""
        likely: dict[_Layer, dict[int, dict[Option, None]]] = {}
        for layer, row, binary in self._late():
            first = next(iter(self._useful(layer, row, binary)), [])
            for each, option in (move for change in first for move in change.moves):
                likely.setdefault(layer, {}).setdefault(each, {})[option] = None
        for layer, options in likely.items():
            layer.expect({row: list(those) for row, those in options.items()})
        for layer, options in likely.items():
            for row, those in options.items():
                layer.time(row, list(those))

    def _late(self) -> Iterator[tuple[_Layer, int, int]]:
        warmed = self._warmed()
        return ((layer, *each) for layer in self._layers for each in layer.late(warmed))

    def _late_count(self) -> int:
        warmed = self._warmed()
        return sum(layer.late_count(warmed) for layer in self._layers)

    def _warmed(self) -> frozenset[int]:
        return frozenset().union(*(layer.warmed() for layer in self._layers))

    def _mended(self, layer: _Layer, row: int, binary: int) -> bool:
        """Make the change that leaves the fewest late kernels and loses little, if there is one."""
        for alike in self._useful(layer, row, binary):
            _time(alike)
            best = min(alike, key=lambda change: change.loss)
            if best.loss <= MOST_LOSS:
                best.make()
                return True
        return False

    def _useful(self, layer: _Layer, row: int, binary: int) -> Iterator[list[_Change]]:
        """A few changes that leave fewer late kernels, those together that leave equally few."""
        now = self._late_count()
        by_left: dict[int, list[_Change]] = {}
        for change in _changes(layer, row, binary):
            if change.may_pass and (left := self._left(change)) < now:
                by_left.setdefault(left, []).append(change)
        most = _MOST_TIMED
        for _, alike in sorted(by_left.items()):
            if most > 0:
                yield sorted(alike, key=lambda change: change.distance)[:most]
            most -= len(alike)

    def _left(self, change: _Change) -> int:
        """How many kernels are late after a change."""
        undo = change.undo
        change.make()
        try:
            return self._late_count()
        finally:
            undo.make()


def _changes(layer: _Layer, row: int, binary: int) -> Iterator[_Change]:
    """What may keep a row from needing a late kernel, the nearest rows of each kind first.

    The row takes the option of another row; or one that the start launches takes the row's; or both
    take what was timed for one of them.
    """
    now = layer.options[row]
    nearest_first = sorted(layer.options, key=lambda count: abs(count - row))
    others = dict.fromkeys(layer.options[count] for count in nearest_first)
    home = {layer.options[count]: count for count in reversed(nearest_first)}
    for option in others:
        if option != now:
            yield _Change(layer, ((row, option),), abs(home[option] - row))
    alike = [
        count
        for count in nearest_first
        if count in layer.sizes.warmed and binary in layer.binaries(count, now)
    ]
    for count in alike:
        yield _Change(layer, ((count, now),), abs(count - row))
    for count in alike[:_MOST_TOGETHER]:
        for option in dict.fromkeys((*layer.finalists(row), *layer.finalists(count))):
            yield _Change(layer, ((row, option), (count, option)), abs(count - row))


def _time(changes: Sequence[_Change]) -> None:
    """Time what changes need, the options of one row side by side."""
    by_row: dict[int, list[Option]] = {}
    for change in changes:
        for row, option in change.moves:
            by_row.setdefault(row, []).append(option)
    layer = changes[0].layer
    layer.expect(by_row)
    for row, options in by_row.items():
        layer.time(row, options)
