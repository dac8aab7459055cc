"""No compile while serving: rows take configurations that the server launches at its start.

Tuned files give a server more compiled kernels than vLLM's defaults do. One that its start did not
launch is compiled when a batch first needs it, and requests wait. So every batch size that the
start launches gets a row of its own, and what is launched later takes one of those kernels where
that costs little: the row changes its configuration, or a row that the start launches does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from autotune.choose.layer_rows import MOST_LOSS, LayerRows, SizesOf
from autotune.choose.losses import Option, Timings, rows_of_layers
from autotune.choose.selection import Selection
from autotune.launch.binary import Binary
from autotune.launch.shape import KernelShape

#: How many exchanges are timed for one late kernel: those that leave the fewest, of the nearest
#: rows.
_MOST_TIMED = 6

#: With how many warmed sizes a row may change together, the nearest ones.
_MOST_TOGETHER = 3


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
        LayerRows(rows, others, timings, sizes, release, numbers)
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


@dataclass(frozen=True, slots=True)
class _Change:
    """Rows of a layer take an option each.

    Attributes:
        layer: The layer.
        moves: The rows with their new options.
        distance: How far apart the batch sizes are; the nearest changes are likely to cost least.
    """

    layer: LayerRows
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

    def __init__(self, layers: Sequence[LayerRows]) -> None:
        self._layers = layers

    def exchange(self) -> None:
        """Change rows, one after another, while that leaves fewer late kernels."""
        hopeless: set[tuple[LayerRows, int, Option, int]] = set()
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
        likely: dict[LayerRows, dict[int, dict[Option, None]]] = {}
        for layer, row, binary in self._late():
            first = next(iter(self._useful(layer, row, binary)), [])
            for each, option in (move for change in first for move in change.moves):
                likely.setdefault(layer, {}).setdefault(each, {})[option] = None
        for layer, options in likely.items():
            layer.expect({row: list(those) for row, those in options.items()})
        for layer, options in likely.items():
            for row, those in options.items():
                layer.time(row, list(those))

    def _late(self) -> Iterator[tuple[LayerRows, int, int]]:
        warmed = self._warmed()
        return ((layer, *each) for layer in self._layers for each in layer.late(warmed))

    def _late_count(self) -> int:
        warmed = self._warmed()
        return sum(layer.late_count(warmed) for layer in self._layers)

    def _warmed(self) -> frozenset[int]:
        return frozenset().union(*(layer.warmed() for layer in self._layers))

    def _mended(self, layer: LayerRows, row: int, binary: int) -> bool:
        """Make the change that leaves the fewest late kernels and loses little, if there is one."""
        for alike in self._useful(layer, row, binary):
            _time(alike)
            best = min(alike, key=lambda change: change.loss)
            if best.loss <= MOST_LOSS:
                best.make()
                return True
        return False

    def _useful(self, layer: LayerRows, row: int, binary: int) -> Iterator[list[_Change]]:
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


def _changes(layer: LayerRows, row: int, binary: int) -> Iterator[_Change]:
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
