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
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autotune.launch.config import KernelConfig
from autotune.launch.listing import columns
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import is_shrink, matmul_sizes
from autotune.measure import Measurement, Outcome
from autotune.search.samplers.features import between_shapes, features
from autotune.search.samplers.surrogate import Floats, interpolated, squash

#: Measurements to learn from, of the nearest shapes. A shape that was left soon has few, so that
#: more shapes count. The time of a belief grows with the cube of the number.
_MOST_POINTS = 720

#: The time of a belief grows with the configurations, too. Of a larger space only so many get it,
#: and all others a rough one: from so many measurements of the nearest shapes.
_MOST_BELIEVED, _ROUGH = 4096, 120

#: How many measurements of a neighbour are used, and how many of these are its fastest. With 200,
#: 100 of them the fastest, a belief took ten times as long, and the best of the twelve that it put
#: first was no better (44 recorded shapes, ``studies/LOG.md``).
MOST_LEARNED, FASTEST = 60, 40

#: Shapes farther apart than this, in powers of two over all sizes, do not learn from each other.
_FARTHEST = 12.0

#: Distance added for a shape that was measured elsewhere: it is worth as much as a shape that was
#: measured here and differs by the doubling of one size.
_ELSEWHERE = 1.0

#: Distance added for another op of the same kind, such as the two shrinks of a MoE layer.
_OTHER_OP = 1.0


@dataclass(frozen=True)
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

    @cached_property
    def timed(self) -> Mapping[KernelConfig, float]:
        """The latency of every configuration that works, microseconds per launch, fastest first.

        Configurations that were cut short count, with the samples that they have.
        """
        those = [
            (m.latency_us, m.config)
            for m in self.measurements
            if m.outcome in {Outcome.OK, Outcome.TOO_SLOW} and m.samples_us
        ]
        return {config: us for us, config in sorted(those, key=lambda pair: pair[0])}

    @cached_property
    def lessons(self) -> tuple[Floats, Floats]:
        """Points to learn from, (count, features), and their squashed logarithms, (count,)."""
        timed = instructive(self.timed)
        latencies = np.array(list(timed.values()))
        points = between_shapes(self.shape, features(self.shape, columns(timed)))
        return points, squash(np.log(latencies))


def distance(one: KernelShape, other: KernelShape) -> float:
    """How far apart two shapes are: the sum of the logarithms to base 2 of their sizes' ratios.

    Infinite between a dense op and a MoE op, and between a shrink and an expand.
    """
    if _kind(one) != _kind(other):
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
    found: list[Neighbour] = []
    points = 0
    for _, each in near:
        if points >= _MOST_POINTS:
            break
        found.append(each)
        points += min(len(each.timed), MOST_LEARNED)
    return found


def in_order(shapes: Sequence[KernelShape], known: Iterable[KernelShape] = ()) -> list[KernelShape]:
    """Order shapes so that each comes after one that is near it.

    The next shape is always the one nearest to any shape before it (Prim's algorithm). The first
    shape is the one nearest to all others; so is the first of each kind of op that no shape before
    it can teach.

    Args:
        shapes: The shapes to order.
        known: Shapes that were searched before.
    """
    if not shapes:
        return []
    table = _Table(shapes)
    nearby = np.full(len(shapes), np.inf)
    for other in set(known):
        nearby = np.minimum(nearby, table.distances(other))
    left = np.ones(len(shapes), dtype=bool)
    ordered: list[KernelShape] = []
    while left.any():
        closest = int(np.argmin(np.where(left, nearby, np.inf)))
        if np.isinf(nearby[closest]) or not left[closest]:
            closest = table.least_remote(left)
        left[closest] = False
        ordered.append(shapes[closest])
        nearby = np.minimum(nearby, table.distances(shapes[closest]))
    return ordered


def nearest_before(shapes: Sequence[KernelShape]) -> dict[KernelShape, KernelShape | None]:
    """For every shape the nearest one before it; None where none before it can teach it."""
    if not shapes:
        return {}
    table = _Table(shapes)
    found: dict[KernelShape, KernelShape | None] = {}
    for number, shape in enumerate(shapes):
        apart = table.distances(shape)[:number]
        near = int(np.argmin(apart)) if number else 0
        found[shape] = shapes[near] if number and np.isfinite(apart[near]) else None
    return found


class _Table:
    """The figures that ``distance`` compares, of many shapes at once."""

    def __init__(self, shapes: Sequence[KernelShape]) -> None:
        self._shapes = shapes
        self._logs = np.log2([_sizes(shape) for shape in shapes])
        self._ops = np.array([list(LoraOp).index(shape.op) for shape in shapes])
        self._kinds = np.array([_kind(shape) for shape in shapes])

    def distances(self, other: KernelShape) -> Floats:
        """``distance`` from every shape to another, (len(shapes),)."""
        apart: Floats = np.abs(self._logs - np.log2(_sizes(other))).sum(axis=1)
        apart += (self._ops != list(LoraOp).index(other.op)) * _OTHER_OP
        apart[self._kinds != _kind(other)] = np.inf
        # Equal distances stay equal, however their sums were rounded.
        return np.round(apart, 9)

    def least_remote(self, left: npt.NDArray[np.bool_]) -> int:
        """Of the shapes that are left, the nearest to all others; each counts at most 100."""
        remoteness = np.full(len(left), np.inf)
        for place in np.flatnonzero(left):
            apart = self.distances(self._shapes[place])[left]
            remoteness[place] = np.minimum(apart, 100.0).sum()
        return int(np.argmin(remoteness))


def _kind(shape: KernelShape) -> int:
    """A number for each kind of op whose shapes learn from each other."""
    return 2 * shape.op.is_moe + is_shrink(shape.op)


def belief(shape: KernelShape, raw: Floats, neighbours: Sequence[Neighbour]) -> Floats | None:
    """The squashed logarithm of latency that finished shapes predict for every configuration.

    Args:
        shape: The new shape.
        raw: The ``features`` of its configurations, (configurations, figures).
        neighbours: Finished shapes, each with at least one timed configuration.

    Returns:
        The predictions, (configurations,); None without neighbours.
    """
    if not neighbours:
        return None
    points, targets = (
        np.concatenate(parts) for parts in zip(*(each.lessons for each in neighbours), strict=True)
    )
    wanted = between_shapes(shape, raw)
    if len(wanted) <= _MOST_BELIEVED:
        return interpolated(points, targets, wanted)
    # A rough belief of all says which of them are worth a good one.
    found = interpolated(points[:_ROUGH], targets[:_ROUGH], wanted)
    best = np.argsort(found, kind="stable")[:_MOST_BELIEVED]
    found[best] = interpolated(points, targets, wanted[best])
    return found


def instructive(
    timed: Mapping[KernelConfig, float], most: int = MOST_LEARNED, *, fastest: int = FASTEST
) -> dict[KernelConfig, float]:
    """The configurations worth learning from: the fastest, and an even sample of the others.

    Args:
        timed: Latencies by configuration, the fastest first, as in ``Neighbour.timed``.
        most: How many.
        fastest: How many of them are the fastest.
    """
    ranked = list(timed.items())
    others = ranked[fastest:]
    every = max(1, math.ceil(len(others) / (most - fastest)))
    return dict(ranked[:fastest] + others[::every])
