"""What a run has done and has still to do, from its events. Prints nothing."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Outcome
from autotune.search.events import (
    Choosing,
    Closed,
    Event,
    GpuLost,
    Looked,
    Opened,
    Planned,
    ShapeDone,
    Tried,
)

#: How many of a shape's latest trials are kept.
_LAST = 8

#: After so many new trials the time that is left can be estimated.
_ENOUGH = 10


@dataclass(slots=True)
class Search:
    """How far the search of one shape is.

    Attributes:
        tried: How many configurations are measured.
        most: How many will be measured at most.
        best_us: The fastest configuration, microseconds; None while none works.
        default_us: vLLM's default, microseconds; None where it is not measured, or does not run.
        last: The latest trials, in the order in which they were made.
        finalists: How many finalists are timed side by side now; 0 while the shape is searched.
        device: The GPU that it is searched on.
    """

    tried: int
    most: int
    best_us: float | None = None
    default_us: float | None = None
    last: deque[Measurement] = field(default_factory=lambda: deque(maxlen=_LAST))
    finalists: int = 0
    device: str = ""


class RunProgress:
    """The state of a run.

    Attributes:
        lock: Another thread must hold it while it reads the state.
        trials: Per planned shape how many configurations are measured at most.
        done: Per finished shape how many configurations were measured.
        searches: Per shape that is searched now, how far its search is.
        shape: Of these the one that something was last heard of; None where none is searched.
        latest: The same for every GPU that searches one.
        measured: How many configurations of all shapes this run has measured.
        looked: At how many batch sizes between the tuned ones something was timed.
        lost: The GPUs that do not work any more.
    """

    def __init__(
        self, *, time_budget_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start the clock.

        Args:
            time_budget_s: The run's time budget, seconds; None for none.
            clock: Returns the time, seconds.
        """
        self.lock = threading.Lock()
        self._time_budget_s, self._clock = time_budget_s, clock
        self._started_s = self._searching_s = clock()
        self.trials: Mapping[KernelShape, int] = {}
        self.done: dict[KernelShape, int] = {}
        self.searches: dict[KernelShape, Search] = {}
        self.shape: KernelShape | None = None
        self.latest: dict[str, KernelShape] = {}
        self.measured = self.looked = 0
        self.lost: set[str] = set()

    def watch(self, event: Event) -> None:
        """Bring the state up to date with an event."""
        with self.lock:
            self._take(event)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._started_s

    @property
    def search(self) -> Search | None:
        """How far the search of ``shape`` is; None where none is searched."""
        return None if self.shape is None else self.searches[self.shape]

    @property
    def share(self) -> float:
        """How much of the first search of every shape is done, from 0 to 1."""
        here = math.fsum(
            min(1.0, one.tried / one.most)
            for shape, one in self.searches.items()
            if shape in self.trials and shape not in self.done and one.most
        )
        return min(1.0, (len(self.done) + here) / max(1, len(self.trials)))

    @property
    def is_going_on(self) -> bool:
        """Whether every shape is done, and shapes that still gain get more trials."""
        return bool(self.trials) and len(self.done) == len(self.trials)

    @property
    def left_s(self) -> float | None:
        """About how many seconds the run still takes; None where that cannot be told.

        It is assumed that a trial takes as long as those so far, and that a shape needs the same
        share of its allowed trials as the finished shapes.
        """
        budget_s = self._time_budget_s
        left_s = None if budget_s is None else max(0.0, budget_s - self.elapsed_s)
        if self.is_going_on or self.measured < _ENOUGH:
            return left_s
        allowed = sum(self.trials[shape] for shape in self.done if shape in self.trials)
        needed = sum(self.done.values()) / allowed if allowed else 1.0
        ahead = sum(
            most
            for shape, most in self.trials.items()
            if shape not in self.done and shape not in self.searches
        )
        under_way = self.searches.values()
        left = ahead * needed + sum(max(0.0, one.most * needed - one.tried) for one in under_way)
        # The time counts from the end of the first trial: before it, processes start.
        expected_s = left * (self._clock() - self._searching_s) / (self.measured - 1)
        return expected_s if left_s is None else min(left_s, expected_s)

    def _take(self, event: Event) -> None:
        match event:
            case Planned():
                self.trials = event.trials
                self._started_s = self._searching_s = self._clock()
            case Opened():
                self._open(event)
            case Tried():
                self._count(event)
            case Choosing():
                self._hear_of(event.shape)
                self.searches[event.shape].finalists = event.finalists
            case Closed():
                self._close(event.shape)
            case ShapeDone():
                self._close(event.tuned.shape)
                self.done[event.tuned.shape] = event.tuned.trials
            case Looked():
                self.shape, self.looked = None, self.looked + 1
                self.searches.clear()
                self.latest.clear()
            case GpuLost():
                self.lost.add(event.device)

    def _open(self, event: Opened) -> None:
        self.searches[event.shape] = Search(
            tried=event.tried,
            most=event.most,
            best_us=event.best_us,
            default_us=event.default_us,
            device=event.device,
        )
        self._hear_of(event.shape)

    def _hear_of(self, shape: KernelShape) -> None:
        self.shape = self.latest[self.searches[shape].device] = shape

    def _count(self, event: Tried) -> None:
        if not self.measured:
            self._searching_s = self._clock()
        self.measured += 1
        self._hear_of(event.measurement.shape)
        one = self.searches[event.measurement.shape]
        one.tried, one.best_us, one.default_us = event.tried, event.best_us, event.default_us
        one.last.append(event.measurement)

    def _close(self, shape: KernelShape) -> None:
        closed = self.searches.pop(shape, None)
        self.shape = next(iter(self.searches), None)
        if closed is not None and self.latest.get(closed.device) == shape:
            del self.latest[closed.device]
            for other, search in self.searches.items():
                if search.device == closed.device:
                    self.latest.setdefault(closed.device, other)


def trial_text(measurement: Measurement) -> str:
    """How a trial ended, such as ``ok 6.02 µs`` or ``launch failed (OutOfResources)``."""
    if measurement.outcome is Outcome.OK:
        return f"ok {measurement.latency_us:.2f} µs"
    name: str = measurement.outcome.value.replace("_", " ")
    # Racing's reason says nothing that the outcome does not.
    if measurement.outcome is Outcome.TOO_SLOW or not measurement.reason:
        return name
    return f"{name} ({' '.join(measurement.reason.split())})"
