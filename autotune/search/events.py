"""What a run tells whoever watches it: what it plans, every trial, every shape that is done."""

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
    """What came of one shape.

    Attributes:
        shape: The shape.
        selection: The configuration chosen; None where none works. While a run is under way it is
            the shape's own best; at the end that of the ``block_m`` of its MoE layer.
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
        trials: Per shape, in the order in which they are searched, how many configurations are
            measured at most; when all shapes are done, those that still gain may get more.
        defaults: Per shape vLLM's configuration.
    """

    trials: Mapping[KernelShape, int]
    defaults: Mapping[KernelShape, KernelConfig]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A shape is searched, or gone on with.

    Attributes:
        shape: The shape.
        tried: Configurations that were measured before.
        most: How many there are at most when this search ends.
        best_us: Of those measured before, microseconds; None where none works.
        default_us: vLLM's default; None where it is not measured, or does not run.
    """

    shape: KernelShape
    tried: int
    most: int
    best_us: float | None = None
    default_us: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A configuration was measured.

    Attributes:
        measurement: How it ended.
        tried: Configurations of the shape that are measured now.
        best_us: The fastest of them, microseconds; None where none works.
        default_us: vLLM's default; None where it is not measured, or does not run.
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
        finalists: How many they are, the default included.
    """

    shape: KernelShape
    finalists: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeDone:
    """A shape is done; told again when it was gone on with.

    Attributes:
        tuned: What came of it.
        number: Which it is, from 1, in the order in which shapes are searched.
        count: How many there are.
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


Event: TypeAlias = Planned | Opened | Tried | Choosing | ShapeDone | Looked

#: Called with every event, in the thread that measures: it must return at once.
Watch = Callable[[Event], None]


#: Called when a shape is done: what came of it, its number from 1, and how many there are.
Progress = Callable[[Tuned, int, int], None]


def on_done(progress: Progress) -> Watch:
    """The Watch that tells of shapes that are done, and of nothing else."""

    def tell(event: Event) -> None:
        if isinstance(event, ShapeDone):
            progress(event.tuned, event.number, event.count)

    return tell


def watched_by(*watches: Watch) -> Watch:
    """The Watch that tells several, in this order."""

    def tell(event: Event) -> None:
        for watch in watches:
            watch(event)

    return tell


def unwatched(_event: Event) -> None:
    """The Watch of a run that nobody looks at."""
