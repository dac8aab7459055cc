"""How hard a search tries before it stops by itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from autotune.launch.release import NEWEST_RELEASE, reads_only_block_m
from autotune.launch.shape import KernelShape
from autotune.launch.space import default_axes


@dataclass(frozen=True, slots=True)
class Effort:
    """When the search of a shape ends.

    Attributes:
        trials: The most distinct configurations of a shape. A shape that still gets faster may have
            more of them where others needed fewer.
        least_gain: The search ends where going on is expected to make the shape faster by less than
            this share of its latency.
        fewest: Configurations that are measured before an expected gain may end the search.
        usual: The configurations that a shape needs in the mean, as recorded.
    """

    trials: int
    least_gain: float
    fewest: int
    usual: int


#: The efforts, by the names that ``--effort`` takes. What each loses is in ``studies/LOG.md``
#: (2026-11-28): 41 recorded shapes, searched with what other recordings teach.
EFFORTS: Mapping[str, Effort] = {
    "instant": Effort(trials=6, least_gain=0.2, fewest=3, usual=3),
    "quick": Effort(trials=60, least_gain=0.02, fewest=9, usual=10),
    "normal": Effort(trials=200, least_gain=0.01, fewest=12, usual=15),
    "thorough": Effort(trials=1000, least_gain=0.002, fewest=30, usual=50),
}

#: The effort of a run that gives neither trials nor an effort.
NORMAL = "normal"

#: Configurations compiled and timed a second, on an H100 with 16 cores from a cold cache, vLLM
#: 0.33.0's kernels; compiling takes most of it (``studies/LOG.md``, 2026-11-23).
_CONFIGS_PER_S = 27.5

#: Time until the first configuration is measured: half of it goes into importing vLLM.
_START_S = 25.0

#: Time to make a study's inputs, and to compare its finalists and the default.
_FINALISTS_S = 0.4

#: Time to look at a shape between two rows: their two winners and the default.
_BETWEEN_S = _FINALISTS_S / 2


def effort_beside(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a study file or flags leave unsaid by giving only one of trials and effort.

    An effort brings its own number of trials. Trials without an effort are all made: there is then
    no effort, which could end the search before.

    Args:
        given: What is given, with ``trials`` and ``effort`` among it or not.

    Returns:
        ``trials`` or ``effort``, the one to add; empty where both or neither are given.
    """
    if given.get("effort") is not None:
        return {"trials": EFFORTS[given["effort"]].trials} if "trials" not in given else {}
    return {"effort": None} if "trials" in given else {}


def tuning_s(
    shapes: Collection[KernelShape], trials: int, *, effort: str | None = None, between: int = 0
) -> float:
    """About how many seconds tuning takes on an H100 with 16 cores and no compiled kernels.

    It takes less where a space holds fewer configurations than there are trials, as that of an
    ``expand`` of a small rank often does, and where configurations were measured in earlier runs.
    Tuning the rows that are added between others is not counted, only looking for them.

    Args:
        shapes: The shapes to tune.
        trials: Distinct configurations for each shape, at most.
        effort: One of ``EFFORTS``, by which searches end sooner; None if all trials are made.
        between: How many shapes between two rows are looked at afterwards.
    """
    usual = trials if effort is None else min(trials, EFFORTS[effort].usual)
    studies = sum(_FINALISTS_S + _trials(shape, usual) / _CONFIGS_PER_S for shape in shapes)
    return _START_S + studies + between * _BETWEEN_S


def _trials(shape: KernelShape, trials: int) -> int:
    if reads_only_block_m(shape, NEWEST_RELEASE):
        return min(trials, len(default_axes(shape.op)["block_m"]))
    return trials
