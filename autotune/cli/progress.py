"""What a run has done and has still to do, from its events. Prints nothing."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Outcome
from autotune.search.events import Choosing, Event, Looked, Opened, Planned, ShapeDone, Tried

#: How many of a shape's latest trials are kept.
_LAST = 8

#: After so many new trials the time that is left can be estimated.
_ENOUGH = 10


class RunProgress:
    """The state of a run.

    Attributes:
        lock: Another thread must hold it while it reads the state.
        trials: Per planned shape how many configurations are measured at most.
        done: Per finished shape how many configurations were measured.
        shape: The shape that is searched now; None where none is.
        tried: How many configurations of that shape are measured.
        most: How many of them will be measured at most.
        best_us: Its fastest configuration, microseconds; None while none works.
        default_us: vLLM's default, microseconds; None where it is not measured, or does not run.
        last: The shape's latest trials, in the order in which they were made.
        finalists: How many finalists are timed side by side now; 0 while the shape is searched.
        measured: How many configurations of all shapes this run has measured.
        looked: At how many batch sizes between the tuned ones something was timed.
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
        self._started_s = clock()
        #: Seconds spent on finished shapes of which this run measured something, and the time at
        #: which the present shape was opened.
        self._searching_s, self._opened_s = 0.0, self._started_s
        self._new_here = 0
        self.trials: Mapping[KernelShape, int] = {}
        self.done: dict[KernelShape, int] = {}
        self.shape: KernelShape | None = None
        self.tried = self.most = self.finalists = self.measured = self.looked = 0
        self.best_us: float | None = None
        self.default_us: float | None = None
        self.last: deque[Measurement] = deque(maxlen=_LAST)

    def watch(self, event: Event) -> None:
        """Bring the state up to date with an event."""
        with self.lock:
            self._take(event)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._started_s

    @property
    def share(self) -> float:
        """How much of the first search of every shape is done, from 0 to 1."""
        here = 0.0
        if self.shape in self.trials and self.shape not in self.done and self.most:
            here = min(1.0, self.tried / self.most)
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
            if shape not in self.done and shape != self.shape
        )
        left = ahead * needed + max(0.0, self.most * needed - self.tried)
        here_s = self._clock() - self._opened_s if self._new_here else 0.0
        expected_s = left * (self._searching_s + here_s) / self.measured
        return expected_s if left_s is None else min(left_s, expected_s)

    def _take(self, event: Event) -> None:
        match event:
            case Planned():
                self.trials = event.trials
                self._started_s = self._clock()
            case Opened():
                self._open(event)
            case Tried():
                self.tried, self.measured = event.tried, self.measured + 1
                self.best_us, self.default_us = event.best_us, event.default_us
                self.last.append(event.measurement)
                self._new_here += 1
            case Choosing():
                self.finalists = event.finalists
            case ShapeDone():
                self._finish(event)
            case Looked():
                self.shape, self.looked = None, self.looked + 1

    def _open(self, event: Opened) -> None:
        self.shape, self.tried, self.most = event.shape, event.tried, event.most
        self.best_us, self.default_us = event.best_us, event.default_us
        self.finalists = self._new_here = 0
        self._opened_s = self._clock()
        self.last.clear()

    def _finish(self, event: ShapeDone) -> None:
        if self._new_here:
            self._searching_s += self._clock() - self._opened_s
            self._new_here = 0
        self.done[event.tuned.shape] = event.tuned.trials
        self.shape, self.finalists = None, 0


def trial_text(measurement: Measurement) -> str:
    """How a trial ended, such as ``ok 6.02 µs`` or ``launch failed (OutOfResources)``."""
    if measurement.outcome is Outcome.OK:
        return f"ok {measurement.latency_us:.2f} µs"
    name: str = measurement.outcome.value.replace("_", " ")
    # Racing's reason says nothing that the outcome does not.
    if measurement.outcome is Outcome.TOO_SLOW or not measurement.reason:
        return name
    return f"{name} ({' '.join(measurement.reason.split())})"
