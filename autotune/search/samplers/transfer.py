"""What finished shapes tell of the next one: how fast each of its configurations should be.

The measurements of the nearest ones, each over its shape's best, are one process over figures that
mean the same for every shape, and over the sizes. What it expects of the new space is a belief
whose weight the new shape's first measurements decide: one that misleads is outvoted.
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

#: Neighbours that are listened to. Of 3, 8 and 12 the most were best on shapes that none of them
#: is like; the time that a belief takes grows by the cube (12 take 0.2 s).
_MOST_NEIGHBOURS = 12

#: Measurements of a neighbour that are learned from, and how many of these are its fastest.
_MOST_LEARNED, _FASTEST = 200, 100

#: Distance, in powers of two over all sizes, beyond which a shape tells nothing of another.
_FARTHEST = 12.0

#: How much farther away a shape counts that was measured elsewhere: one that was measured here, and
#: has one size doubled, is as good.
_ELSEWHERE = 1.0

#: What another op of the same kind is away: the two shrinks of a mixture of experts do alike work.
_OTHER_OP = 1.0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A finished shape.

    Attributes:
        shape: The shape.
        measurements: What was measured of it.
        is_elsewhere: Whether that was on another GPU or with other kernels than are searched now.
    """

    shape: KernelShape
    measurements: Sequence[Measurement]
    is_elsewhere: bool = False

    @property
    def timed(self) -> dict[KernelConfig, float]:
        """Latencies of what works, cut short or not, microseconds per launch, fastest first."""
        those = [
            (m.latency_us, m.config)
            for m in self.measurements
            if m.outcome in {Outcome.OK, Outcome.TOO_SLOW} and m.samples_us
        ]
        return {config: us for us, config in sorted(those, key=lambda pair: pair[0])}


def distance(one: KernelShape, other: KernelShape) -> float:
    """How far apart two shapes are: the sum of the logarithms to base 2 of their sizes' ratios.

    Infinite between kinds of ops that have nothing to tell each other.
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
    """The finished shapes to learn from, the nearest first; those with nothing timed are none.

    The shape itself may be among them, as an older database knows it.
    """
    near = [
        (distance(shape, each.shape) + each.is_elsewhere * _ELSEWHERE, each) for each in finished
    ]
    near = [pair for pair in near if pair[0] <= _FARTHEST and pair[1].timed]
    near.sort(key=lambda pair: pair[0])
    return [each for _, each in near[:_MOST_NEIGHBOURS]]


def in_order(shapes: Sequence[KernelShape], known: Iterable[KernelShape] = ()) -> list[KernelShape]:
    """The shapes, each after one that is near it.

    The first is the one that is nearest to all others; then always the one that is nearest to any
    before it (Prim's algorithm). A kind of op that none before it belongs to starts likewise.

    Args:
        shapes: What is ordered.
        known: Shapes that are there before the first.
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
    """Sum of the distances to others; a kind of op that has none counts as far away."""
    return sum(min(distance(shape, other), 100.0) for other in others)


def belief(space: SearchSpace, neighbours: Sequence[Neighbour]) -> Floats | None:
    """What finished shapes expect of every configuration, as ``squash`` has it.

    Args:
        space: The new space.
        neighbours: With something timed; for none there is no belief.
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
    """Those of a shape that are worth learning from: the fastest, and of the others every so many.

    Args:
        timed: The fastest first, as ``Neighbour`` has them.
    """
    ranked = list(timed.items())
    others = ranked[_FASTEST:]
    every = max(1, math.ceil(len(others) / (_MOST_LEARNED - _FASTEST)))
    return dict(ranked[:_FASTEST] + others[::every])
