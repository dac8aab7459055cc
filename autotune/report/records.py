"""What a report tells: of every shape what is known, and of every device its shapes."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from autotune.choose.selection import BetweenRows
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import sizes_text
from autotune.measure import Measurement, Outcome
from autotune.measure.measurement import Ceilings
from autotune.report.intervals import MedianInterval

if TYPE_CHECKING:
    from autotune.choose.selection import Selection
    from autotune.store.results import ShapeResult

#: Outcomes of configurations that worked, if slowly.
_WORKED = {Outcome.OK, Outcome.TOO_SLOW}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeReport:
    """One shape of a report.

    Attributes:
        result: All that is known of it.
        kind: What it shares with shapes that differ in their batch only, such as ``shrink qkv``.
        importances: Per parameter its share in what is fast; empty where too little was timed.
        bytes_moved: What one launch must move.
        flops: Operations of one launch.
        floor_us: The roofline's latency, microseconds; None where the ceilings are not known.
        kernel: What its launch is called where it does more than its op; empty otherwise.
    """

    result: ShapeResult
    kind: str
    importances: Mapping[str, float]
    bytes_moved: int
    flops: int
    floor_us: float | None
    kernel: str = ""

    @property
    def shape(self) -> KernelShape:
        """The shape."""
        return self.result.shape

    @property
    def selection(self) -> Selection | None:
        """What was chosen."""
        return self.result.selection

    @property
    def name(self) -> str:
        """The shape in a sentence, such as ``shrink qkv, 16 tokens``."""
        count = self.shape.num_tokens
        return f"{self.kind}, {count} token{'' if count == 1 else 's'}"

    @property
    def default(self) -> MedianInterval | None:
        """The default's latency, microseconds; None where it does not run, or is not known."""
        return self.latency(self.result.default)

    @property
    def tuned(self) -> MedianInterval | None:
        """The latency of what was chosen, microseconds; None where nothing was."""
        return None if self.selection is None else self.latency(self.selection.config)

    def latency(self, config: KernelConfig | None) -> MedianInterval | None:
        """Of a configuration: as a finalist if it was one, else as the search timed it."""
        if config is None:
            return None
        samples: Sequence[float] = ()
        if self.selection is not None:
            samples = self.selection.samples_us.get(config, ())
        if not samples:
            found = self.measurement(config)
            samples = () if found is None else found.samples_us
        return MedianInterval.of(samples) if samples else None

    def measurement(self, config: KernelConfig | None) -> Measurement | None:
        """What the search measured of a configuration."""
        return next((one for one in self.result.measurements if one.config == config), None)

    @property
    def verdict(self) -> str:
        """How the shape came out, in a word or two."""
        selection = self.selection
        if selection is None:
            outcomes = {one.outcome for one in self.result.measurements}
            return "not finished" if not outcomes or outcomes & _WORKED else "nothing works"
        if selection.is_default:
            return "default kept"
        return "default fails" if selection.ratio is None else selection.ratio.verdict

    @property
    def is_stale(self) -> bool:
        """Whether trials were made after the choice."""
        return self.selection is not None and self.selection.trials < len(self.result.measurements)

    @property
    def outcomes(self) -> Counter[str]:
        """How many configurations ended in which outcome."""
        return Counter(one.outcome.value for one in self.result.measurements)

    @property
    def spent_s(self) -> dict[str, float]:
        """Seconds from handing a configuration out to its figures, by outcome."""
        spent: dict[str, float] = {}
        if self.result.times:
            pairs = zip(self.result.measurements, self.result.times, strict=True)
            for one, (started, ended) in pairs:
                seconds = (ended - started).total_seconds()
                spent[one.outcome.value] = spent.get(one.outcome.value, 0.0) + seconds
        return spent


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """What was measured in one environment.

    Attributes:
        environment: The environment.
        ceilings: What the device reaches at best; None where nothing says.
        shapes: Those of one kind together, by rising number of tokens.
        between: What is lost at batch sizes between rows; empty where nobody looked.
    """

    environment: Environment
    ceilings: Ceilings | None
    shapes: tuple[ShapeReport, ...]
    between: tuple[BetweenRows, ...]

    @property
    def ratios(self) -> list[tuple[float, ShapeReport]]:
        """How many times as fast as the default, of every shape that has a ratio; rising."""
        found = [
            (one.selection.ratio.value, one)
            for one in self.shapes
            if one.selection is not None and one.selection.ratio is not None
        ]
        return sorted(found, key=lambda pair: pair[0])

    @property
    def median_ratio(self) -> float | None:
        """The median of the ratios; None where there is none."""
        ratios = [ratio for ratio, _ in self.ratios]
        return statistics.median(ratios) if ratios else None

    @property
    def verdicts(self) -> Counter[str]:
        """How many shapes came out how."""
        return Counter(one.verdict for one in self.shapes)

    @property
    def trials(self) -> int:
        """Configurations measured."""
        return sum(len(one.result.measurements) for one in self.shapes)

    @property
    def failures(self) -> Counter[str]:
        """How many of them neither worked nor were thrown out by a rule, by outcome."""
        harmless = {*_WORKED, Outcome.INVALID}
        return Counter(
            one.outcome.value
            for shape in self.shapes
            for one in shape.result.measurements
            if one.outcome not in harmless
        )

    @property
    def period(self) -> tuple[datetime, datetime] | None:
        """When the first measurement was begun and the last one ended, UTC, if that is known."""
        times = [pair for one in self.shapes for pair in one.result.times]
        if not times:
            return None
        return min(started for started, _ in times), max(ended for _, ended in times)

    @property
    def kinds(self) -> dict[KernelShape, str]:
        """The name of each kind of shape, by the shape without its batch."""
        return {one.shape.without_batch: one.kind for one in self.shapes}

    @property
    def is_throttled(self) -> bool:
        """Whether the device held its clocks down while finalists were timed."""
        return any(one.selection is not None and one.selection.is_throttled for one in self.shapes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole report.

    Attributes:
        source: The database or the recordings, as a reader knows them.
        is_recording: Whether it is recordings: those know neither order nor time of their trials,
            and nothing was timed side by side.
        devices: One for each environment.
        written_at: When the report was made, UTC.
    """

    source: str
    is_recording: bool
    devices: tuple[DeviceReport, ...]
    written_at: datetime


def in_order(results: Iterable[ShapeResult]) -> list[ShapeResult]:
    """Those of one kind together, as they first appear, by rising number of tokens."""
    kinds: dict[KernelShape, list[ShapeResult]] = {}
    for one in results:
        kinds.setdefault(one.shape.without_batch, []).append(one)
    by_tokens = (sorted(those, key=lambda one: one.shape.num_tokens) for those in kinds.values())
    return [one for those in by_tokens for one in those]


def kind_names(layers: Mapping[KernelShape, str]) -> dict[KernelShape, str]:
    """A name for each kind of shape: the op and the layers, and no more than tells it apart.

    Args:
        layers: Of shapes without their batch the names of their layers, empty where none is known.
    """
    names = {kind: _candidates(kind, layer) for kind, layer in layers.items()}
    found = {}
    for kind, candidates in names.items():
        others = [those for other, those in names.items() if other != kind]
        unique = (each for each in candidates if not any(each in those for those in others))
        found[kind] = next(unique, candidates[-1])
    return found


def _candidates(kind: KernelShape, layer: str) -> list[str]:
    """Names of a kind, from the shortest to one that no other kind has."""
    op = kind.op.value.removeprefix("fused_moe_lora_")
    sizes, label = sizes_text(kind), kind.label.removeprefix("m=1,")
    longer = [f"{op} {layer} {sizes}"] if layer else []
    return [f"{op} {layer or sizes}", *longer, f"{op} {layer} {label}".replace("  ", " ")]
