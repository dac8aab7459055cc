"""When a shape is left, and how what is left of a budget is shared. Knows nothing of Optuna."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

#: Configurations of a shape that are measured even when its time is over, the default among them: a
#: shape without an entry would get one of its neighbours' in vLLM.
FEWEST_TRIALS = 10

#: What a search is expected to gain beyond what its past tells, over the number of its trials. With
#: 0.35 a search that stops below 0.5 % has made at least 70 trials; none of 34 searches of more
#: than 200 recorded configurations (two recordings of an H100) then missed more than 0.5 %. With
#: 0.3 one of them missed 2.7 %, with 0.25 five 1 % in the mean.
_UNSEEN_GAIN = 0.35

#: A second round is not worth its comparisons of finalists below this share of the time.
_LEAST_LEFT = 0.02

#: How often the time that follows a search goes into a slice of the second round, at least.
_LEAST_SLICE = 3.0

Shape = TypeVar("Shape")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long to search one shape.

    Attributes:
        trials: Distinct configurations, those measured in earlier runs included.
        deadline: When to stop, as ``time.monotonic()`` counts, but not before ``FEWEST_TRIALS``;
            None for no limit.
        least_gain: The search ends where going on is expected to gain less; None for never. A space
            of no more configurations than ``trials`` is searched whole.
    """

    trials: int
    deadline: float | None = None
    least_gain: float | None = None

    def is_spent(self, tried: int) -> bool:
        """Whether no further configuration may be started."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return tried >= (min(FEWEST_TRIALS, self.trials) if late else self.trials)

    def is_enough(self, best_us: Sequence[float], *, configs: int) -> bool:
        """Whether a search may end before its budget.

        Args:
            best_us: As for ``expected_gain``.
            configs: How many configurations the space has.
        """
        if self.least_gain is None or configs <= self.trials:
            return False
        return expected_gain(best_us) < self.least_gain


def expected_gain(best_us: Sequence[float]) -> float:
    """By what share of its latency a shape is expected to get faster by as many trials again.

    As much as by the second half of those that it had, and a little more the fewer these were: a
    search that has found nothing for half of its time is about done.

    Args:
        best_us: After each trial the lowest latency so far, infinite where nothing has worked.
    """
    tried = len(best_us)
    if not tried or math.isinf(best_us[-1]):
        return math.inf
    seen = 1.0 - best_us[-1] / best_us[max(0, tried // 2 - 1)]
    return seen + _UNSEEN_GAIN / tried


def extra_trials(left: int, worth: Mapping[Shape, float], *, most: int) -> dict[Shape, int]:
    """Trials that nobody needed, shared by worth.

    Args:
        left: How many there are.
        worth: Of the shapes that still gain.
        most: For one shape.
    """
    total = math.fsum(worth.values())
    shared = {shape: min(most, int(left * each / total)) for shape, each in worth.items()}
    return {shape: trials for shape, trials in shared.items() if trials}


class TimeShares:
    """Hands out a time budget, evenly at first and then by worth.

    In the first round no shape gets more than an even share: what one does not need is left for the
    second, for whoever gains most.
    """

    def __init__(self, budget_s: float, *, shapes: int) -> None:
        """Start the clock.

        Args:
            budget_s: Of all shapes together, seconds.
            shapes: How many there are.
        """
        self._budget_s = budget_s
        self._end = time.monotonic() + budget_s
        self._even_s = budget_s / shapes
        self._overruns_s: list[float] = []

    @property
    def left_s(self) -> float:
        """What is left of the budget, seconds."""
        return max(0.0, self._end - time.monotonic())

    def even_share(self, *, shapes_left: int) -> float:
        """The next shape's deadline, as ``time.monotonic()`` counts.

        Args:
            shapes_left: How many have had no share yet, the next one included.
        """
        return self._deadline(min(self._even_s, self.left_s / shapes_left))

    def share_by_worth(self, worth: float, *, total: float) -> float | None:
        """The deadline of a shape that still gains; None where too little is left to begin.

        Args:
            worth: Of the shape.
            total: Of it and all that come after it.
        """
        slice_s = max(self.left_s * worth / total, _LEAST_SLICE * self._reserve_s)
        if slice_s > self.left_s or self.left_s < _LEAST_LEFT * self._budget_s:
            return None
        return self._deadline(slice_s)

    def ended(self, deadline: float) -> None:
        """Note that a shape is done, with its finalists, whose search had this deadline."""
        late_s = time.monotonic() - deadline
        if late_s > 0.0:
            self._overruns_s.append(late_s)

    @property
    def _reserve_s(self) -> float:
        """What follows a deadline: the configurations under way, and the finalists.

        The median, because the first shape of a run also waits for processes that start.
        """
        return statistics.median(self._overruns_s) if self._overruns_s else 0.0

    def _deadline(self, share_s: float) -> float:
        """The end of a share, less what follows it, but never of less than half of it."""
        return time.monotonic() + share_s - min(self._reserve_s, share_s / 2)
