"""The contents of a report: its devices, and the shapes of each device."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from autotune.choose.losses import BetweenRows
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Outcome
from autotune.measure.measurement import Ceilings, Replayed
from autotune.report.intervals import MedianInterval
from autotune.report.words import counted
from autotune.store import Load

if TYPE_CHECKING:
    from autotune.choose.selection import Selection
    from autotune.store.results import ShapeResult

#: Outcomes of configurations that work, however slowly.
_WORKED = {Outcome.OK, Outcome.TOO_SLOW}


#: Between measurements of one run there is less than this, seconds.
_PAUSE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeReport:
    """One shape of a report.

    Attributes:
        result: The trials of the shape, and what was chosen.
        kind: The name of all shapes that differ from this one in their batch only, such as
            ``shrink qkv``.
        importances: How much each parameter matters (``autotune.search.importance``); empty where
            too little was timed.
        bytes_moved: Bytes that one launch must move.
        flops: Operations of one launch.
        floor_us: The roofline's latency, microseconds; None where the ceilings are not known.
        kernel: The name of the timed kernel where it does more than this op; empty otherwise.
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
        """The choice; None where there is none."""
        return self.result.selection

    @property
    def name(self) -> str:
        """The shape in a sentence, such as ``shrink qkv, 16 tokens``."""
        return f"{self.kind}, {counted(self.shape.num_tokens, 'token')}"

    @property
    def default(self) -> MedianInterval | None:
        """The default's latency, microseconds; None where it is not known or does not run."""
        return self.latency(self.result.default)

    @property
    def tuned(self) -> MedianInterval | None:
        """The latency of the choice, microseconds; None where there is no choice."""
        return None if self.selection is None else self.latency(self.selection.config)

    def latency(self, config: KernelConfig | None) -> MedianInterval | None:
        """A configuration's latency, microseconds: among finalists, else as the search timed it."""
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
        """What the search measured for a configuration; None where it was not tried."""
        return next((one for one in self.result.measurements if one.config == config), None)

    @property
    def verdict(self) -> str:
        """The result for the shape, in a word or two."""
        selection = self.selection
        if selection is None:
            outcomes = {one.outcome for one in self.result.measurements}
            return "not finished" if not outcomes or outcomes & _WORKED else "nothing works"
        if selection.is_default:
            return "default kept"
        return "default fails" if selection.ratio is None else selection.ratio.verdict

    @property
    def is_stale(self) -> bool:
        """Whether there are trials that are newer than the choice."""
        return self.selection is not None and self.selection.trials < len(self.result.measurements)

    @property
    def times(self) -> Sequence[tuple[datetime, datetime]]:
        """When each measurement was started and finished; empty where recordings answered."""
        return () if self.result.replayed else self.result.times

    @property
    def outcomes(self) -> Counter[str]:
        """How many configurations ended in each outcome."""
        return Counter(one.outcome.value for one in self.result.measurements)

    @property
    def spent_s(self) -> dict[str, float]:
        """Seconds from asking for a measurement to having it, summed by outcome."""
        spent: dict[str, float] = {}
        if self.times:
            pairs = zip(self.result.measurements, self.times, strict=True)
            for one, (started, ended) in pairs:
                seconds = (ended - started).total_seconds()
                spent[one.outcome.value] = spent.get(one.outcome.value, 0.0) + seconds
        return spent


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """One device: everything that was measured in one environment.

    Attributes:
        environment: The environment.
        ceilings: The device's best rates; None where they were not measured.
        shapes: The shapes of each kind together, by rising number of tokens.
        between: Losses at batch sizes between rows; empty where they were not measured.
        loads: How busy the runs that measured were, by host and process; of a run that says so.
    """

    environment: Environment
    ceilings: Ceilings | None
    shapes: tuple[ShapeReport, ...]
    between: tuple[BetweenRows, ...]
    loads: Mapping[tuple[str, int], Load] = field(default_factory=dict)

    @property
    def ratios(self) -> list[tuple[float, ShapeReport]]:
        """Every ratio to the default with its shape, in rising order."""
        found = [
            (one.selection.ratio.value, one)
            for one in self.shapes
            if one.selection is not None and one.selection.ratio is not None
        ]
        return sorted(found, key=lambda pair: pair[0])

    @property
    def median_ratio(self) -> float | None:
        """The median of the ratios; None where there are no ratios."""
        ratios = [ratio for ratio, _ in self.ratios]
        return statistics.median(ratios) if ratios else None

    @property
    def verdicts(self) -> Counter[str]:
        """How many shapes have each verdict."""
        return Counter(one.verdict for one in self.shapes)

    @property
    def trials(self) -> int:
        """How many configurations were measured."""
        return sum(len(one.result.measurements) for one in self.shapes)

    @property
    def works(self) -> dict[tuple[str, int, str], list[tuple[ShapeReport, int]]]:
        """Who measured, by host, process and GPU: of which shapes how many configurations."""
        found: dict[tuple[str, int, str], list[tuple[ShapeReport, int]]] = {}
        for one in self.shapes:
            for by, count in one.result.shares.items():
                found.setdefault((by.host, by.process, by.device), []).append((one, count))
        return found

    @property
    def failures(self) -> Counter[str]:
        """How many configurations failed, by outcome; those that a rule threw out do not count."""
        harmless = {*_WORKED, Outcome.INVALID}
        return Counter(
            one.outcome.value
            for shape in self.shapes
            for one in shape.result.measurements
            if one.outcome not in harmless
        )

    @property
    def period(self) -> tuple[datetime, datetime] | None:
        """Start of the first measurement and end of the last, naive UTC; None where not known."""
        times = [pair for one in self.shapes for pair in one.times]
        if not times:
            return None
        return min(started for started, _ in times), max(ended for _, ended in times)

    @property
    def searched(self) -> Mapping[KernelShape, tuple[float, float]]:
        """When each shape was searched: from and to, seconds since the run's first measurement.

        What was measured before a pause of ``_PAUSE_S`` belongs to an earlier run, and is left out.
        """
        times = sorted(pair for one in self.shapes for pair in one.times)
        begun = times[0][0] if times else None
        for (_, ended), (started, _) in pairwise(times):
            if (started - ended).total_seconds() > _PAUSE_S:
                begun = started
        found = {}
        for one in self.shapes:
            within = [pair for pair in one.times if begun is not None and pair[0] >= begun]
            if within and begun is not None:
                ends = min(each for each, _ in within), max(each for _, each in within)
                found[one.shape] = (
                    (ends[0] - begun).total_seconds(),
                    (ends[1] - begun).total_seconds(),
                )
        return found

    @property
    def replays(self) -> Mapping[Replayed, int]:
        """The recordings that answered for runs, and for how many shapes."""
        found = (one.result.replayed for one in self.shapes)
        return Counter(each for each in found if each is not None)

    @property
    def kinds(self) -> dict[KernelShape, str]:
        """The name of each kind, by the shape without its batch."""
        return {one.shape.without_batch: one.kind for one in self.shapes}

    @property
    def is_throttled(self) -> bool:
        """Whether the device held its clocks down while finalists were timed."""
        return any(one.selection is not None and one.selection.is_throttled for one in self.shapes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole report.

    Attributes:
        source: The URL of the database, or the paths of the recordings.
        is_recording: Whether the source is recordings, which have neither the order nor the times
            of trials, and nothing that was timed side by side.
        devices: One for each environment.
        written_at: When the report was made, naive UTC.
    """

    source: str
    is_recording: bool
    devices: tuple[DeviceReport, ...]
    written_at: datetime
