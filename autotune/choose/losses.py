"""What a batch size loses with the configurations of its nearest row.

A batch size without a row gets its nearest row in vLLM. Here that row's configurations are timed
at the batch size, beside those of the rows on both sides and vLLM's default.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from autotune.choose.selection import Selection, is_settled
from autotune.errors import ReplayMiss, SpaceError
from autotune.launch.config import KernelConfig
from autotune.launch.moe_layer import MoeLayer
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace, default_axes
from autotune.measure import Runner
from autotune.measure.racing import run_spread

#: One configuration for every kernel of a layer.
Option = tuple[KernelConfig, ...]

#: For every batch size the selections of a layer's kernels, always in the same order.
Rows = dict[int, list[Selection]]


#: A search's figures say that a configuration is slower where it is so by so many of their spreads.
_SURELY = 2.5


class NotRecorded(Exception):
    """A replay does not hold one of the configurations at this batch size."""


def option_of(row: Iterable[Selection]) -> Option:
    """The configurations of a row."""
    return tuple(one.config for one in row)


def nearest(count: int, rows: Iterable[int]) -> int:
    """The row that vLLM takes: the nearest; of two equally near rows, the first in the file."""
    return min(sorted(rows), key=lambda row: abs(row - count))


def by_layer_of_rows(selections: Iterable[Selection]) -> list[list[Selection]]:
    """The selections of every dense kernel, and of every MoE layer, at all batch sizes."""
    layers: dict[object, list[Selection]] = {}
    for one in selections:
        kind = one.shape.without_batch
        together = MoeLayer.of(kind) if kind.op.is_moe else kind
        layers.setdefault(together, []).append(one)
    return list(layers.values())


def rows_of_layers(selections: Iterable[Selection]) -> list[tuple[Rows, list[Selection]]]:
    """The rows of every dense kernel and of every MoE layer, whose kernels are treated as one.

    Returns:
        For each the rows that have a selection for every kernel, ascending, and the selections of
        the other rows, which leave nothing to choose from.
    """
    found = []
    for those_of_layer in by_layer_of_rows(selections):
        rows: Rows = {}
        for one in those_of_layer:
            rows.setdefault(one.shape.num_tokens, []).append(one)
        most = max(map(len, rows.values()))
        whole = {
            count: sorted(those, key=lambda one: one.shape.without_batch.label)
            for count, those in sorted(rows.items())
            if len(those) == most
        }
        others = [one for those in rows.values() if len(those) < most for one in those]
        found.append((whole, others))
    return found


def unnoticed(_shape: KernelShape) -> None:
    """A ``looked`` that does nothing."""


def not_searched(_shape: KernelShape) -> Mapping[KernelConfig, float]:
    """A ``searched`` that knows of nothing."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class BetweenRows:
    """What a shape at a captured batch size loses with the configuration of the nearest row.

    A loss is how much slower that configuration is than the best one timed, as a share of the best
    latency; infinite where it does not run. The kernels of a MoE layer have one loss together.

    Attributes:
        shape: A kernel at a captured batch size.
        before: The loss with the rows as tuned.
        after: The loss with the rows as they are now.
    """

    shape: KernelShape
    before: float
    after: float


@dataclass(slots=True)
class Timings:
    """Times configurations side by side. What was timed together once is not timed again.

    Attributes:
        runner: Times configurations.
        looked: Called with a shape after configurations of it were timed.
        searched: Returns what a shape's search measured: microseconds of every configuration that
            it tried, infinite where one does not run. Rougher than what is timed here.
        clear_loss: Configurations that lose more than this share are timed no closer.
    """

    runner: Runner
    looked: Callable[[KernelShape], None] = unnoticed
    searched: Callable[[KernelShape], Mapping[KernelConfig, float]] = not_searched
    clear_loss: float = math.inf
    _defaults: dict[KernelShape, KernelConfig] = field(default_factory=dict)
    _samples: dict[KernelShape, list[Mapping[KernelConfig, Sequence[float]]]] = field(
        default_factory=dict
    )

    def by(self, runner: Runner) -> Timings:
        """The same, with another runner for what is not timed yet."""
        return replace(self, runner=runner)

    def roughly(self, clear_loss: float) -> Timings:
        """The same, where what clearly loses more than this share need not be timed closer."""
        return replace(self, clear_loss=clear_loss)

    def know(self, selections: Iterable[Selection]) -> None:
        """Take over what finalists were timed for: that is not timed again."""
        for one in selections:
            self._defaults[one.shape] = one.default
            self._samples.setdefault(one.shape, []).append(one.samples_us)

    def default(self, shape: KernelShape) -> KernelConfig:
        """The default of vLLM for a shape that ``samples`` or ``know`` was given before."""
        return self._defaults[shape]

    def samples(
        self, shape: KernelShape, configs: Sequence[KernelConfig]
    ) -> Mapping[KernelConfig, Sequence[float]]:
        """Samples of configurations and of the default, taken side by side.

        A configuration that does not run is left out.

        Raises:
            NotRecorded: A replay does not hold one of the configurations.
        """
        space = self._space(shape, configs)
        self._defaults[shape] = space.default
        asked = {config: _known(space, config) for config in (space.default, *configs)}
        distinct = list(dict.fromkeys(asked.values()))
        timed = next(
            (each for each in self._samples.get(shape, ()) if set(distinct) <= each.keys()), None
        )
        if timed is None:
            # is_settled compares the fastest with one configuration, which may itself be the
            # fastest: so every configuration takes its turn.
            rules = [partial(is_settled, config, loss=self.clear_loss) for config in distinct]
            found = self.runner.compare(
                shape, distinct, lambda samples: all(rule(samples) for rule in rules)
            ).samples_us
            # A configuration without samples does not run: remembered, so it is not tried again.
            timed = {config: found.get(config, ()) for config in distinct}
            self._samples.setdefault(shape, []).append(timed)
            self.looked(shape)
        return {config: timed[one] for config, one in asked.items() if timed[one]}

    def expect(self, configs: Mapping[KernelShape, Sequence[KernelConfig]]) -> None:
        """Say what ``samples`` will be asked for soon; what a replay does not hold is left out."""
        wanted = {}
        for shape, those in configs.items():
            with suppress(NotRecorded):
                space = self._space(shape, those)
                each = (_known(space, config) for config in (space.default, *those))
                wanted[shape] = list(dict.fromkeys(each))
        self.runner.expect(wanted)

    def selection(self, shape: KernelShape, configs: Sequence[KernelConfig]) -> Selection | None:
        """The choice among configurations and the default; None where none may be chosen.

        Raises:
            NotRecorded: A replay does not hold one of the configurations.
        """
        samples = self.samples(shape, configs)
        if not any(map(self.may_choose, samples)):
            return None
        shortest = min(map(len, samples.values()))
        samples = {config: each[:shortest] for config, each in samples.items()}
        return Selection.of_samples(
            shape,
            self.default(shape),
            samples,
            deterministic=self.runner.environment.deterministic,
        )

    def may_choose(self, config: KernelConfig) -> bool:
        """Whether a configuration may be chosen, not only compared with."""
        return not (self.runner.environment.deterministic and config.splits_k)

    def _space(self, shape: KernelShape, configs: Sequence[KernelConfig]) -> SearchSpace:
        """A space of only these configurations' values, and the smallest value of each axis.

        The smallest values make sure that one point is valid. The whole space would be thousands of
        times as large, at every batch size.
        """
        axes = {
            name: sorted({min(values), *(config.as_dict()[name] for config in configs)})
            for name, values in default_axes(shape.op).items()
        }
        try:
            return self.runner.space(shape, axes)
        except (ReplayMiss, SpaceError):
            raise NotRecorded from None


def _known(space: SearchSpace, config: KernelConfig) -> KernelConfig:
    """The configuration that stands for all that make the same launch.

    Raises:
        NotRecorded: A replay does not hold it.
    """
    rejection = space.rejection(config)
    if rejection is not None and rejection.rule == "not_recorded":
        raise NotRecorded
    return space.canonical(config)


class Losses:
    """What the batch sizes of one layer lose with given rows. Every figure is measured once.

    Attributes:
        counts: The captured batch sizes, ascending.
        unknown: The batch sizes that cannot be timed because a replay does not hold them.
    """

    def __init__(
        self, kinds: Sequence[KernelShape], counts: Iterable[int], timings: Timings
    ) -> None:
        self.counts = sorted(counts)
        self.unknown: set[int] = set()
        self._kinds = kinds
        self._timings = timings
        #: Microseconds of every option that was timed at a batch size; None where it does not run.
        self._timed: dict[int, dict[Option, float | None]] = {}

    def shapes(self, count: int) -> list[KernelShape]:
        """The layer's shapes at a batch size."""
        return [replace(kind, num_tokens=count) for kind in self._kinds]

    def expect(self, options: Mapping[int, Sequence[Option]]) -> None:
        """Say which options will be timed soon, by batch size."""
        self._timings.expect(
            {
                shape: [option[number] for option in those]
                for count, those in options.items()
                for number, shape in enumerate(self.shapes(count))
            }
        )

    def options(self, count: int, rows: Rows) -> list[Option]:
        """The options of the rows on both sides of a batch size, timed; or of its own row.

        Where a replay does not hold both, the nearest row's option alone, which is the one that
        vLLM takes. Where a replay does not hold that either, there are none.
        """
        mine = option_of(rows[nearest(count, rows)])
        for those in (list(dict.fromkeys(beside(count, rows))), [mine]):
            try:
                self.time(count, those)
            except NotRecorded:
                continue
            return those
        self.unknown.add(count)
        return []

    def loss(self, count: int, rows: Rows) -> float:
        """How much slower the nearest row's option is than the fastest one timed there.

        0 where nothing runs, or where a replay does not hold what must be timed.
        """
        if count in self.unknown or not self.options(count, rows):
            return 0.0
        timed = self._timed[count]
        known = [us for us in timed.values() if us is not None]
        return _ratio(timed[option_of(rows[nearest(count, rows)])], min(known)) if known else 0.0

    def of_taking(self, gets: Option, had: Option, count: int) -> float:
        """How much slower ``gets`` is than ``had`` at a batch size; infinite where not known."""
        try:
            self.time(count, [had, gets])
        except NotRecorded:
            return float("inf")
        return _ratio(self._timed[count][gets], self._timed[count][had])

    def surely_loses(self, gets: Option, had: Option, count: int, most: float) -> bool:
        """Whether the searches' own figures say that ``gets`` is slower by more than a share.

        False where they know too little, or where their noise may explain it.
        """
        gets_us, had_us = (self._searched_us(option, count) for option in (gets, had))
        if gets_us is None or had_us is None:
            return False
        noise = _SURELY * math.sqrt(2) * run_spread(had_us / len(had))
        return gets_us > had_us * (1 + most) * (1 + noise)

    def _searched_us(self, option: Option, count: int) -> float | None:
        """What a layer's searches measured of an option; None where one did not try it."""
        each = [
            self._timings.searched(shape).get(config)
            for shape, config in zip(self.shapes(count), option, strict=True)
        ]
        known = [us for us in each if us is not None]
        return sum(known) if len(known) == len(each) else None

    def time(self, count: int, options: Sequence[Option]) -> None:
        """Time options beside vLLM's default, unless that was done before.

        A default that may not be chosen is no option: nothing is lost against it.

        Raises:
            NotRecorded: A replay does not hold one of the options.
        """
        timed = self._timed.setdefault(count, {})
        if timed and all(option in timed for option in options):
            return
        shapes = self.shapes(count)
        samples = [
            self._timings.samples(shape, [option[number] for option in options])
            for number, shape in enumerate(shapes)
        ]
        default = tuple(map(self._timings.default, shapes))
        usual = [default] if all(map(self._timings.may_choose, default)) else []
        for option in (*usual, *options):
            each = [of_one.get(config, ()) for of_one, config in zip(samples, option, strict=True)]
            timed[option] = sum(map(statistics.median, each)) if all(each) else None


def beside(count: int, rows: Rows) -> list[Option]:
    """The options of the rows on both sides of a batch size; or of its own row, if it has one."""
    if count in rows:
        return [option_of(rows[count])]
    below = max((row for row in rows if row < count), default=None)
    above = min((row for row in rows if row > count), default=None)
    return [option_of(rows[row]) for row in (below, above) if row is not None]


def _ratio(us: float | None, best_us: float | None) -> float:
    if us is None:
        return float("inf")
    return 0.0 if best_us is None else us / best_us - 1
