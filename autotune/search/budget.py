"""When the search of a shape ends, and how shapes share a budget. Knows nothing of Optuna."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from autotune.plan.effort import Effort

#: Configurations of a shape that are measured even when its time is over, the default among them.
#: vLLM would give a shape without an entry the entry of a neighbour.
FEWEST_TRIALS = 10

#: The margin in ``expected_gain``, to be divided by the number of trials. With 0.35 a search that
#: stops below 0.5 % has made at least 70 trials. In 34 searches of more than 200 recorded
#: configurations (two recordings of an H100) none then missed more than 0.5 %. With 0.3 one search
#: missed 2.7 %; with 0.25 five searches missed 1 % on average.
_UNSEEN_GAIN = 0.35

#: With less than this share of the time left, no shape is searched again: comparing its finalists
#: would cost more than the search could gain.
_LEAST_LEFT = 0.02

#: A share of the second round is at least this many times as long as what follows a deadline.
_LEAST_SLICE = 3.0

Shape = TypeVar("Shape")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long to search one shape.

    Attributes:
        trials: The most distinct configurations to measure, earlier runs included.
        deadline: When to stop, as ``time.monotonic()`` counts, but not before ``FEWEST_TRIALS``;
            None for no limit.
        least_gain: The search ends when going on is expected to gain less than this share; None for
            no such end.
        fewest: Configurations that are measured before an expected gain may end the search.
    """

    trials: int
    deadline: float | None = None
    least_gain: float | None = None
    fewest: int = 1

    @classmethod
    def of(cls, effort: Effort | None, trials: int) -> Budget:
        """The budget of an effort, or that of all trials without one."""
        if effort is None:
            return cls(trials=trials)
        return cls(trials=trials, least_gain=effort.least_gain, fewest=effort.fewest)

    def is_spent(self, tried: int) -> bool:
        """Whether no further configuration may be started."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return tried >= (min(FEWEST_TRIALS, self.trials) if late else self.trials)

    def is_enough(self, gain: float, tried: int) -> bool:
        """Whether a search may end before its budget is spent.

        Args:
            gain: The share of its latency that the shape is expected to gain if the search goes on.
            tried: How many configurations were measured or are under way.
        """
        return self.least_gain is not None and tried >= self.fewest and gain < self.least_gain


def expected_gain(best_us: Sequence[float]) -> float:
    """By what share of its latency a shape is expected to get faster with as many trials again.

    The gain of the second half of the search so far, plus a margin that shrinks with the number of
    trials. A search that has found nothing for half of its time is about done.

    Args:
        best_us: The lowest latency after each trial; infinite where nothing has worked yet.
    """
    tried = len(best_us)
    if not tried or math.isinf(best_us[-1]):
        return math.inf
    seen = 1.0 - best_us[-1] / best_us[max(0, tried // 2 - 1)]
    return seen + _UNSEEN_GAIN / tried


def extra_trials(left: int, worth: Mapping[Shape, float], *, most: int) -> dict[Shape, int]:
    """Share unused trials among the shapes that still gain, in proportion to their worth.

    Args:
        left: How many trials are unused.
        worth: The worth of every shape that still gains.
        most: How many trials one shape gets at most.
    """
    total = math.fsum(worth.values())
    shared = {shape: min(most, int(left * each / total)) for shape, each in worth.items()}
    return {shape: trials for shape, trials in shared.items() if trials}


class TimeShares:
    """Hands out a time budget: even shares in a first round, shares by worth in a second.

    In the first round no shape gets more than an even share. Time that a shape does not need is
    left for the second round, for the shapes that gain most.
    """

    def __init__(self, budget_s: float, *, shapes: int) -> None:
        """Begin: the budget runs from now on.

        Args:
            budget_s: The time for all shapes together, seconds.
            shapes: How many shapes there are.
        """
        self._budget_s = budget_s
        self._end = time.monotonic() + budget_s
        self._even_s = budget_s / shapes
        self._overruns_s: list[float] = []

    @property
    def left_s(self) -> float:
        """The time left, seconds."""
        return max(0.0, self._end - time.monotonic())

    def even_share(self, *, shapes_left: int, lanes: int = 1) -> float:
        """The next shape's deadline, as ``time.monotonic()`` counts.

        Args:
            shapes_left: How many shapes have had no share yet, the next one included.
            lanes: How many shapes are searched at a time.
        """
        share_s = min(self._even_s, self.left_s / shapes_left) * lanes
        return self._deadline(min(share_s, self.left_s))

    def share_by_worth(self, worth: float, *, total: float, lanes: int = 1) -> float | None:
        """The deadline of a shape that still gains; None where too little time is left to begin.

        Args:
            worth: The worth of the shape.
            total: The worth of the shape and of all shapes after it.
            lanes: How many shapes are searched at a time.
        """
        share = min(1.0, lanes * worth / total)
        slice_s = max(self.left_s * share, _LEAST_SLICE * self._reserve_s)
        if slice_s > self.left_s or self.left_s < _LEAST_LEFT * self._budget_s:
            return None
        return self._deadline(slice_s)

    def ended(self, deadline: float) -> None:
        """Note that a shape with this deadline is done, its finalists included."""
        late_s = time.monotonic() - deadline
        if late_s > 0.0:
            self._overruns_s.append(late_s)

    @property
    def _reserve_s(self) -> float:
        """Seconds that a shape usually takes beyond its deadline.

        They go into configurations under way and into finalists. It is the median, because the
        first shape of a run also waits for processes to start.
        """
        return statistics.median(self._overruns_s) if self._overruns_s else 0.0

    def _deadline(self, share_s: float) -> float:
        """When to stop searching: the reserve before a share's end, but after half the share."""
        return time.monotonic() + share_s - min(self._reserve_s, share_s / 2)
