"""How precisely a median is known."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: Standard deviations to either side that hold 95 % of a normal distribution.
_TWO_SIDED_95 = 1.96


@dataclass(frozen=True, slots=True)
class MedianInterval:
    """A median with its 95 % interval, in the unit of the samples."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> MedianInterval:
        """The interval between two order statistics, which needs no assumed distribution.

        The normal approximation of the binomial distribution gives the two (Conover, "Practical
        Nonparametric Statistics", 3rd edition, 1999, section 3.2). Of fewer than eight samples the
        interval is their range.

        Args:
            samples: At least one.
        """
        ordered, count = sorted(samples), len(samples)
        half = _TWO_SIDED_95 * math.sqrt(count) / 2
        low = max(0, math.floor(count / 2 - half))
        high = min(count - 1, math.ceil(count / 2 + half) - 1)
        return cls(statistics.median(ordered), ordered[low], ordered[high])
