"""How long tuning will take, before it starts."""

from __future__ import annotations

from collections.abc import Iterable

from autotune.launch.release import NEWEST_RELEASE, reads_only_block_m
from autotune.launch.shape import KernelShape
from autotune.launch.space import default_axes

#: An H100 with 16 cores from a cold cache, vLLM 0.33.0's kernels: the compiler limits
#: (``studies/LOG.md``, 2026-11-23).
_CONFIGS_PER_S = 27.5

#: The finalists of a study and the default, six configurations, on the same machine, seconds.
_FINALISTS_S = 1.0

#: Between two rows, their two winners and the default: three configurations.
_BETWEEN_S = _FINALISTS_S / 2


def tuning_s(shapes: Iterable[KernelShape], trials: int, *, between: int = 0) -> float:
    """Seconds that the studies take on an H100 with 16 cores, at most.

    Less where a space holds fewer configurations than there are trials, as many an ``expand``'s of
    a small rank does; what is measured already costs nothing. Rows that are added between others
    are not counted, but for looking there.

    Args:
        shapes: One study each.
        trials: Distinct configurations for each.
        between: How many shapes between them are looked at afterwards.
    """
    studies = sum(_FINALISTS_S + _trials(shape, trials) / _CONFIGS_PER_S for shape in shapes)
    return studies + between * _BETWEEN_S


def _trials(shape: KernelShape, trials: int) -> int:
    if reads_only_block_m(shape, NEWEST_RELEASE):
        return min(trials, len(default_axes(shape.op)["block_m"]))
    return trials
