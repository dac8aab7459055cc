"""What finished shapes tell of the next one: their winners, and what they make likely.

A neighbour's measurements train a surrogate of their own; what it predicts for the new space is one
belief, whose weight the new shape's first measurements decide: one that misleads is outvoted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.measure import Measurement, Outcome
from autotune.search.features import carried_over, features
from autotune.search.surrogate import Floats, Surrogate
from autotune.shapes import KernelShape
from autotune.space import KernelConfig, SearchSpace, is_shrink, matmul_sizes

#: Neighbours that are listened to, and the best configurations of each that are tried at once.
_MOST_NEIGHBOURS = 3
_WINNERS = 2

#: Measurements of a neighbour that are learned from, the fastest: more cost time and add little.
_MOST_LEARNED = 200

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


def winners(space: SearchSpace, neighbours: Sequence[Neighbour]) -> list[int]:
    """Places in the space of the neighbours' fastest configurations, without repetition."""
    places = {config: place for place, config in enumerate(space.configs)}
    found: dict[int, None] = {}
    for neighbour in neighbours:
        ranked = (places.get(space.canonical(config)) for config in neighbour.timed)
        ours = [place for place in ranked if place is not None]
        found |= dict.fromkeys(ours[:_WINNERS])
    return list(found)


def beliefs(space: SearchSpace, neighbours: Sequence[Neighbour]) -> Floats:
    """What each neighbour predicts, (configurations, neighbours), as ``squash`` has it."""
    columns = [_belief(space, neighbour) for neighbour in neighbours]
    return np.stack(columns, axis=1) if columns else np.zeros((len(space.configs), 0))


def _belief(space: SearchSpace, neighbour: Neighbour) -> Floats:
    timed = dict(list(neighbour.timed.items())[:_MOST_LEARNED])
    theirs = features(neighbour.shape, list(timed))
    points = carried_over(np.vstack((theirs, features(space.shape, space.configs))))
    logs = np.log(np.array(list(timed.values())))
    return Surrogate(points).predict(range(len(timed)), logs).mean[len(timed) :]
