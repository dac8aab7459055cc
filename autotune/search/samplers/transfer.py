"""Predicts, from finished shapes, how fast each configuration of the next shape should be.

One Gaussian process is fitted to the measurements of the nearest shapes, each over its shape's best
latency. It sees figures that mean the same for every shape, and the sizes. Its prediction for the
new space is a belief. The new shape's first measurements decide how much it weighs, so that a
belief that misleads is outvoted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import is_shrink, matmul_sizes
from autotune.launch.space import SearchSpace
from autotune.measure import Measurement, Outcome
from autotune.search.samplers.features import between_shapes
from autotune.search.samplers.surrogate import Floats, interpolated, squash

#: Neighbours to learn from. Of 3, 8 and 12, 12 was best on shapes unlike all neighbours. The time
#: of a belief grows with the cube of the number (0.2 s for 12).
_MOST_NEIGHBOURS = 12

#: How many measurements of a neighbour are used, and how many of these are its fastest.
_MOST_LEARNED, _FASTEST = 200, 100

#: Shapes farther apart than this, in powers of two over all sizes, do not learn from each other.
_FARTHEST = 12.0

#: Distance added for a shape that was measured elsewhere: it is worth as much as a shape that was
#: measured here and differs by the doubling of one size.
_ELSEWHERE = 1.0

#: Distance added for another op of the same kind, such as the two shrinks of a MoE layer.
_OTHER_OP = 1.0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A finished shape.

    Attributes:
        shape: The shape.
        measurements: The shape's measurements.
        is_elsewhere: Whether they come from another GPU or other kernels than are searched now.
    """

    shape: KernelShape
    measurements: Sequence[Measurement]
    is_elsewhere: bool = False

    @property
    def timed(self) -> dict[KernelConfig, float]:
        """The latency of every configuration that works, microseconds per launch, fastest first.

        Configurations that were cut short count, with the samples that they have.
        """
        those = [
            (m.latency_us, m.config)
            for m in self.measurements
            if m.outcome in {Outcome.OK, Outcome.TOO_SLOW} and m.samples_us
        ]
        return {config: us for us, config in sorted(those, key=lambda pair: pair[0])}


def distance(one: KernelShape, other: KernelShape) -> float:
    """How far apart two shapes are: the sum of the logarithms to base 2 of their sizes' ratios.

    Infinite between a dense op and a MoE op, and between a shrink and an expand.
    """
    if one.op.is_moe != other.op.is_moe or is_shrink(one.op) != is_shrink(other.op):
        return math.inf
    sizes = zip(_sizes(one), _sizes(other), strict=True)
    apart = sum(abs(math.log2(a / b)) for a, b in sizes)
    return apart + (one.op is not other.op) * _OTHER_OP


def _sizes(shape: KernelShape) -> tuple[float, ...]:
    m, n, k = matmul_sizes(shape)
    experts = (shape.num_experts or 1, shape.top_k or 1)
    return (max(m, shape.num_tokens), n, k, shape.num_slices, shape.loras_with_tokens, *experts)


def nearest(shape: KernelShape, finished: Iterable[Neighbour]) -> list[Neighbour]:
    """The finished shapes to learn from, the nearest first.

    Shapes without a single timed configuration are skipped. The shape itself may be among the
    finished ones if it was searched before.
    """
    near = [
        (distance(shape, each.shape) + each.is_elsewhere * _ELSEWHERE, each) for each in finished
    ]
    near = [pair for pair in near if pair[0] <= _FARTHEST and pair[1].timed]
    near.sort(key=lambda pair: pair[0])
    return [each for _, each in near[:_MOST_NEIGHBOURS]]


def in_order(shapes: Sequence[KernelShape], known: Iterable[KernelShape] = ()) -> list[KernelShape]:
    """Order shapes so that each comes after one that is near it.

    The next shape is always the one nearest to any shape before it (Prim's algorithm). The first
    shape is the one nearest to all others; so is the first of each kind of op that no shape before
    it can teach.

    Args:
        shapes: The shapes to order.
        known: Shapes that were searched before.
    """
    left, there = list(shapes), list(known)
    ordered: list[KernelShape] = []
    nearby: Mapping[KernelShape, float] = {
        shape: min((distance(shape, each) for each in there), default=math.inf) for shape in left
    }
    while left:
        closest = min(left, key=lambda shape: nearby[shape])
        if math.isinf(nearby[closest]):
            closest = min(left, key=lambda shape: _remoteness(shape, left))
        left.remove(closest)
        ordered.append(closest)
        nearby = {shape: min(nearby[shape], distance(shape, closest)) for shape in left}
    return ordered


def _remoteness(shape: KernelShape, others: Sequence[KernelShape]) -> float:
    """Sum of the distances to others, each counting at most 100."""
    return sum(min(distance(shape, other), 100.0) for other in others)


def belief(space: SearchSpace, neighbours: Sequence[Neighbour]) -> Floats | None:
    """The squashed logarithm of latency that finished shapes predict for every configuration.

    Args:
        space: The new space.
        neighbours: Finished shapes, each with at least one timed configuration.

    Returns:
        The predictions, (len(space.configs),); None without neighbours.
    """
    if not neighbours:
        return None
    points, targets = [], []
    for neighbour in neighbours:
        timed = instructive(neighbour.timed)
        points.append(between_shapes(neighbour.shape, list(timed)))
        targets.append(squash(np.log(np.array(list(timed.values())))))
    wanted = between_shapes(space.shape, space.configs)
    return interpolated(np.vstack(points), np.concatenate(targets), wanted)


def instructive(timed: Mapping[KernelConfig, float]) -> dict[KernelConfig, float]:
    """The configurations worth learning from: the fastest, and an even sample of the others.

    Args:
        timed: Latencies by configuration, the fastest first, as in ``Neighbour.timed``.
    """
    ranked = list(timed.items())
    others = ranked[_FASTEST:]
    every = max(1, math.ceil(len(others) / (_MOST_LEARNED - _FASTEST)))
    return dict(ranked[:_FASTEST] + others[::every])
