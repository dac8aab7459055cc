"""How hard a search tries before it stops by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """When a shape is left.

    Attributes:
        trials: Distinct configurations of each shape, unless it still gains and budget is left.
        least_gain: Going on must be expected to make a shape faster by this share of its latency.
    """

    trials: int
    least_gain: float


#: By the names that ``--effort`` takes. On the shipped recording a normal search ends after 86
#: trials in the mean, in spaces that are larger (``studies/LOG.md``).
EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(trials=60, least_gain=0.015),
    "normal": Effort(trials=200, least_gain=0.005),
    "thorough": Effort(trials=1000, least_gain=0.001),
}

#: What a run takes that says neither trials nor effort.
NORMAL = "normal"
