"""The events of a run: its plan, every trial, and every shape that is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from autotune.choose.selection import Selection
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The result of one shape.

    Attributes:
        shape: The shape.
        selection: The configuration chosen; None where none works. While a run is under way it is
            the best for the shape alone; at the end it has the ``block_m`` of its MoE layer.
        outcomes: How many distinct configurations ended in which outcome, earlier runs included.
    """

    shape: KernelShape
    selection: Selection | None
    outcomes: Counter[str]

    @property
    def trials(self) -> int:
        """Distinct configurations measured, earlier runs included."""
        return self.outcomes.total()


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A run begins.

    Attributes:
        trials: For every shape, in the order of the search, how many configurations are measured at
            most. When all shapes are done, shapes that still gain may get more.
        defaults: For every shape vLLM's configuration.
    """

    trials: Mapping[KernelShape, int]
    defaults: Mapping[KernelShape, KernelConfig]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The search of a shape begins, or goes on.

    Attributes:
        shape: The shape.
        tried: How many configurations were measured before.
        most: How many configurations are measured at most when this search ends.
        best_us: The lowest latency measured before, microseconds; None where nothing works.
        default_us: Latency of vLLM's default, microseconds; None where it is not measured, or does
            not run.
        device: The GPU that it is searched on, as its runner has it.
    """

    shape: KernelShape
    tried: int
    most: int
    best_us: float | None = None
    default_us: float | None = None
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A configuration was measured.

    Attributes:
        measurement: Its measurement.
        tried: How many configurations of the shape are measured now.
        best_us: The lowest latency so far, microseconds; None where nothing works.
        default_us: Latency of vLLM's default, microseconds; None where it is not measured, or does
            not run.
    """

    measurement: Measurement
    tried: int
    best_us: float | None
    default_us: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choosing:
    """A shape's finalists are timed side by side.

    Attributes:
        shape: The shape.
        finalists: How many finalists there are, the default included.
    """

    shape: KernelShape
    finalists: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The search of a shape is over for now. It may be opened again, if budget is left.

    Attributes:
        shape: The shape.
    """

    shape: KernelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeDone:
    """A shape is done. The event comes again each time that the shape was searched further.

    Attributes:
        tuned: The shape's result.
        number: The shape's place in the order of the search, from 1.
        count: How many shapes there are.
    """

    tuned: Tuned
    number: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """Configurations of a batch size between the tuned ones were timed.

    Attributes:
        shape: The kernel at that batch size.
    """

    shape: KernelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLost:
    """A GPU does not work any more; the others take its shapes over.

    Attributes:
        device: The GPU, as its runner has it.
    """

    device: str


Event: TypeAlias = Planned | Opened | Tried | Choosing | Closed | ShapeDone | Looked | GpuLost

#: Called with every event, in the thread that measures: it must return at once. Where several GPUs
#: measure, one event comes after the other, never two at a time.
Watch = Callable[[Event], None]


#: Called when a shape is done: its result, its number from 1, and how many shapes there are.
Progress = Callable[[Tuned, int, int], None]


def on_done(progress: Progress) -> Watch:
    """The Watch that passes on shapes that are done, and nothing else."""

    def tell(event: Event) -> None:
        if isinstance(event, ShapeDone):
            progress(event.tuned, event.number, event.count)

    return tell


def watched_by(*watches: Watch) -> Watch:
    """The Watch that passes every event on to several, in this order."""

    def tell(event: Event) -> None:
        for watch in watches:
            watch(event)

    return tell


def unwatched(_event: Event) -> None:
    """The Watch that does nothing."""
