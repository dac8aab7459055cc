"""Predicts latencies of configurations that were not measured: a Gaussian process over a list.

All points are known from the start. So a new observation costs one row of the kernel and one row of
its Cholesky factor, O(observations x points), and every point has a mean and a spread at any time.
Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, chapters 2, 4.2 and 5.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Places in the list of points.
Rows = npt.NDArray[np.int_]

#: The logarithm of latency over best latency at which differences fade: beyond 65 % slower (e^0.5)
#: it matters little how slow a configuration is. Of 0.2, 0.3, 0.5 and 0.8, searches that knew the
#: shipped recording came within 2 % soonest with 0.5; searches that knew nothing did with 0.8, then
#: 0.5 (``studies/recordings``, six seeds; most other differences are smaller than between seeds).
SOFT_LIMIT = 0.5

#: Latencies above 20 times the lowest (e^3) all count as 20 times.
_SLOWEST = 3.0

#: The standard deviation that squashed logarithms are expected to have, and how many observations
#: this expectation weighs as much as.
_AMPLITUDE, _AMPLITUDE_WEIGHT = 0.15, 2.0

#: Standard deviation of the unknown mean of all latencies, in amplitudes.
_LEVEL = 2.0

#: Standard deviation of the weight of the belief, around 1: so wide that a handful of measurements
#: decide whether the belief holds.
_BELIEF = 0.4

#: Choices for the distance over which configurations resemble each other, in units of the points,
#: and for the share of the variance that is noise. The likeliest pair is taken, with a wide prior
#: for the length.
_LENGTHS = (0.7, 1.0, 1.5, 2.2, 3.3, 5.0, 8.0)
_NOISES = (1e-3, 1e-2, 5e-2)
_USUAL_LENGTH, _LENGTH_SPREAD = 2.5, 0.7

#: The share of the variance that is noise in ``interpolated``, over many shapes.
_INTERPOLATED_NOISE = 5e-3

#: Points that ``interpolated`` predicts at a time: what it works on then stays in a core's cache.
_AT_ONCE = 128

#: ``hindsight`` looks at this many observations at least.
_FEWEST_LATER = 4

#: Added to the diagonal of a correlation matrix, so that rounding leaves it positive definite.
_JITTER = 1e-6

#: Length and noise are chosen again each time the observations have grown by a quarter, from the
#: first 160 at most: later the choice changes little, and its cost grows with the cube.
_GROWTH, _MOST_FITTED = 1.25, 160

#: The expected improvement, in spreads, of points whose mean lies ``_FARTHEST`` spreads above the
#: best to as many below, in even steps: beyond it is less than 2e-10, or as much as the distance.
#: NumPy has no error function.
_FARTHEST, _STEPS = 6.0, 12_000
_IMPROVEMENT = np.array(
    [
        0.5 * z * math.erfc(-z / math.sqrt(2.0)) + math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
        for z in np.linspace(-_FARTHEST, _FARTHEST, _STEPS + 1).tolist()
    ]
)


class Expected(NamedTuple):
    """The prediction for every point.

    Attributes:
        mean: The expected logarithm of the latency, squashed as by ``squash``.
        spread: The standard deviation of ``mean``.
        slowness: The expected logarithm of the latency over the lowest one, not squashed: it tells
            slow configurations from even slower ones.
    """

    mean: Floats
    spread: Floats
    slowness: Floats


def squash(logs: Floats) -> Floats:
    """Logarithms of latencies, less the lowest one, bent so that none exceeds ``SOFT_LIMIT``."""
    squashed: Floats = SOFT_LIMIT * np.tanh((logs - logs.min(initial=np.inf)) / SOFT_LIMIT)
    return squashed


def interpolated(points: Floats, targets: Floats, wanted: Floats) -> Floats:
    """Predict values at other points with the mean of a process that has the usual length.

    Args:
        points: The measured points, (count, features), scaled so that one unit is a step that
            matters.
        targets: The values at these points, (count,).
        wanted: The points to predict, (others, features).
    """
    usual = targets.mean()
    kernel = _matern(_distances(points, points) / _USUAL_LENGTH)
    kernel[np.diag_indices(len(points))] += _INTERPOLATED_NOISE
    weights = np.linalg.solve(kernel, targets - usual)
    mean: Floats = np.empty(len(wanted))
    # Single precision is enough for a belief, and takes half the time.
    points, wanted, weights = (np.float32(each) for each in (points, wanted, weights))
    for start in range(0, len(wanted), _AT_ONCE):  # a space may have any number of points
        some = slice(start, start + _AT_ONCE)
        mean[some] = _matern(_distances(wanted[some], points) / _USUAL_LENGTH) @ weights
    mean += usual
    return mean


class Surrogate:
    """A Gaussian process with a Matérn-3/2 kernel on a fixed list of points.

    Attributes:
        prior: Squashed logarithms expected before any measurement, (count,).
    """

    def __init__(self, points: Floats, belief: Floats | None = None) -> None:
        """Know nothing yet.

        Args:
            points: (count, features), scaled so that one unit is a step that matters.
            belief: Squashed logarithms expected before any measurement, (count,); None for zeros.
        """
        self._points, self._squares = points, _squares(points)
        self.prior = np.zeros(len(points)) if belief is None else belief
        tilt = (self.prior - self.prior.mean()) * (_BELIEF / _AMPLITUDE)
        self._trend = np.stack((np.full(len(points), _LEVEL), tilt), axis=1)
        self._fitted = 0
        self._length, self._noise = _USUAL_LENGTH, _NOISES[1]
        self._alike: dict[int, Floats] = {}
        self._kernel, self._factor, self._nearness = (np.empty((0, len(points))) for _ in range(3))
        self._rows: list[int] = []
        self._unknown = 1.0 + (self._trend**2).sum(axis=1)
        self._variance = self._unknown.copy()
        self._asked: tuple[tuple[int, ...], bytes] | None = None
        self._answer: Expected

    def predict(self, rows: Sequence[int], logs: Floats) -> Expected:
        """The prediction for every point.

        Args:
            rows: Distinct points in the order in which they were asked for. The more of the first
                ones are those of the call before, the cheaper.
            logs: Logarithms of the points' latencies; NaN where the latency is unknown, which
                lowers the spread around the point and leaves the mean.
        """
        asked = (tuple(rows), logs.tobytes())
        if self._asked != asked:
            self._asked, self._answer = asked, self._predict(rows, logs)
        self._extend(rows)  # for draws and hindsight, if anything else was asked meanwhile
        return self._answer

    def _predict(self, rows: Sequence[int], logs: Floats) -> Expected:
        known = np.isfinite(logs)
        seen = np.asarray(rows, dtype=int)[known]
        self._fit(seen, logs[known])
        self._extend(rows)
        residuals = squash(logs[known]) - self.prior[seen]
        slowness = np.minimum(logs[known] - logs[known].min(initial=np.inf), _SLOWEST)
        usual = float(np.median(slowness)) if len(slowness) else 0.0
        weights = np.zeros((len(rows), 2))
        kernel = self._kernel[np.ix_(np.flatnonzero(known), seen)]
        kernel += self._noise * np.eye(len(seen))
        weights[known] = np.linalg.solve(kernel, np.stack((residuals, slowness - usual), axis=1))
        scale = _scale(float(residuals @ weights[known, 0]), len(seen))
        found = weights.T @ self._kernel[: len(rows)]
        spread = np.sqrt(scale * np.maximum(self._variance, 1e-9))
        return Expected(self.prior + found[0], spread, usual + found[1])

    def mean(self, rows: Rows, logs: Floats) -> Floats:
        """The mean of ``predict`` alone, (count,), with the usual length and noise.

        Args:
            rows: Distinct points, at least one.
            logs: Logarithms of their latencies, all known.
        """
        kernel = self._likeness(rows) + self._trend[rows] @ self._trend.T
        among = kernel[:, rows] + self._noise * np.eye(len(rows))
        weights = np.linalg.solve(among, squash(logs) - self.prior[rows])
        found: Floats = self.prior + weights @ kernel
        return found

    def draws(self, rows: Sequence[int], expected: Expected, wanted: Rows, count: int) -> Floats:
        """Draws of the squashed logarithms at some points together, (count, len(wanted)).

        Points that are alike are fast or slow together, so the lowest of many is not as low as if
        each were drawn alone.

        Args:
            rows: As for ``predict``, which was called with them last.
            expected: What ``predict`` returned.
            wanted: The points.
            count: How many draws; the same every time.
        """
        likeness = self._likeness(wanted, wanted)
        below = self._factor[: len(rows), wanted]
        together = likeness + self._trend[wanted] @ self._trend[wanted].T - below.T @ below
        own = np.sqrt(np.maximum(np.diag(together), 1e-12))
        together /= np.outer(own, own)
        together[np.diag_indices(len(wanted))] += _JITTER
        standard = np.random.default_rng(0).standard_normal((count, len(wanted)))
        spread = expected.spread[wanted]
        found: Floats = expected.mean[wanted] + spread * (standard @ np.linalg.cholesky(together).T)
        return found

    def hindsight(self, rows: Sequence[int], logs: Floats) -> tuple[float, float]:
        """What the later half of the observations gained, and what was to be expected of them.

        Each is predicted from those before it. Both are sums of improvements on the lowest latency
        before, in squashed logarithms.

        Args:
            rows: As for ``predict``, which was called with them last.
            logs: As for ``predict``.

        Returns:
            The gain, and the sum of expected improvements.
        """
        known = np.isfinite(logs)
        seen, values = np.asarray(rows, dtype=int)[known], squash(logs[known])
        later = max(1, len(seen) - max(_FEWEST_LATER, len(seen) // 2))
        if later >= len(seen):
            return 0.0, 0.0
        kernel = self._kernel[np.ix_(np.flatnonzero(known), seen)]
        factor = np.linalg.cholesky(kernel + (self._noise + _JITTER) * np.eye(len(seen)))
        # Row i of the factor holds the prediction of observation i from those before it.
        white = np.linalg.solve(factor, values - self.prior[seen])
        scale = np.sqrt(_scale(float(white @ white), len(seen)))
        means, spreads = values - np.diag(factor) * white, scale * np.diag(factor)
        lowest = np.minimum.accumulate(values)
        before = lowest[later - 1 : -1]
        expected = expected_improvement(before, means[later:], spreads[later:])
        return float(lowest[later - 1] - lowest[-1]), float(expected.sum())

    def votes(self, rows: Sequence[int], weights: Floats) -> Floats:
        """The sums of weights of ``rows`` at every point, each weight fading with distance.

        Args:
            rows: As for ``predict``.
            weights: For each sum one weight a row, (sums, len(rows)).

        Returns:
            (sums, count).
        """
        self._extend(rows)
        # They fade as the fourth power of likeness: failing is more local than being slow.
        found: Floats = weights @ self._nearness[: len(rows)]
        return found

    # ----------------------------------------------------------------- kernel

    def _likeness(self, rows: Rows, others: Rows | slice = slice(None)) -> Floats:
        squares = self._squares[rows], self._squares[others]
        apart = _distances(self._points[rows], self._points[others], squares)
        return _matern(apart / self._length)

    def _likeness_to_all(self, rows: Rows) -> Floats:
        """That of rows to every point, (len(rows), count); it is computed once for each row."""
        new = [row for row in rows.tolist() if row not in self._alike]
        if new:
            self._alike |= zip(new, self._likeness(np.array(new)), strict=True)
        return np.array([self._alike[row] for row in rows.tolist()])

    def _extend(self, rows: Sequence[int]) -> None:
        """Bring the kernel and the factor L⁻¹K to these rows."""
        pairs = zip(rows, self._rows, strict=False)
        done = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
        done = min(len(rows), len(self._rows)) if done is None else done
        if done == len(rows) == len(self._rows):
            return
        new = np.asarray(rows[done:], dtype=int)
        if done < len(self._rows):
            self._variance = self._unknown - (self._factor[:done] ** 2).sum(axis=0)
        if len(self._kernel) < len(rows):
            grow = ((0, 2 * len(rows) - len(self._kernel)), (0, 0))
            self._kernel, self._factor = np.pad(self._kernel, grow), np.pad(self._factor, grow)
            self._nearness = np.pad(self._nearness, grow)
        if len(new):
            likeness = self._likeness_to_all(new)
            self._nearness[done : len(rows)] = np.square(np.square(likeness))
            self._kernel[done : len(rows)] = likeness + self._trend[new] @ self._trend.T
        for at, row in enumerate(new, start=done):
            across = self._factor[:at, row]
            pivot = np.sqrt(max(self._kernel[at, row] + self._noise - across @ across, 1e-9))
            self._factor[at] = (self._kernel[at] - across @ self._factor[:at]) / pivot
            self._variance -= self._factor[at] ** 2
        self._rows = list(rows)

    # ----------------------------------------------------------------- length and noise

    def _fit(self, seen: npt.NDArray[np.int_], logs: Floats) -> None:
        """Choose the length and the noise that make the first observations likeliest.

        How many observations are used depends only on how many there are. So a search that goes on
        after an interruption makes the same choice.
        """
        count = _fitted_of(len(seen))
        if count == self._fitted:
            return
        self._fitted = count
        if not count:
            return
        targets = squash(logs[:count]) - self.prior[seen[:count]]
        trend, points = self._trend[seen[:count]], self._points[seen[:count]]
        distance = _distances(points, points)
        likeliest, least = (self._length, self._noise), np.inf
        for length in _LENGTHS:
            kernel = _matern(distance / length) + trend @ trend.T
            oddity = 0.5 * (np.log(length / _USUAL_LENGTH) / _LENGTH_SPREAD) ** 2
            for noise in _NOISES:
                surprise = _surprise(kernel + noise * np.eye(count), targets) + oddity
                if surprise < least:
                    likeliest, least = (length, noise), surprise
        if likeliest != (self._length, self._noise):
            self._length, self._noise = likeliest
            self._alike, self._rows, self._variance = {}, [], self._unknown.copy()


def expected_improvement(best: float | Floats, mean: Floats, spread: Floats) -> Floats:
    """Expected improvement on ``best`` (Jones, Schonlau and Welch, 1998, equation 15)."""
    z = np.asarray((best - mean) / spread)
    steps = (np.clip(z, -_FARTHEST, _FARTHEST) + _FARTHEST) * (_STEPS / (2.0 * _FARTHEST))
    below = np.minimum(steps.astype(int), _STEPS - 1)
    between = _IMPROVEMENT[below] + (steps - below) * (
        _IMPROVEMENT[below + 1] - _IMPROVEMENT[below]
    )
    improvement: Floats = spread * np.maximum(between, z)
    # Where all improvements are too small for floats to tell apart, z decides the order.
    return np.maximum(improvement, 0.0) + 1e-12 / (1.0 + np.exp(np.clip(-z, -50.0, 50.0)))


def _scale(energy: float, count: int) -> float:
    """The variance by which a kernel of variance 1 is scaled.

    It is the mean square of the observations' surprises, each predicted from those before it, so
    predictions that were wrong widen all spreads.

    Args:
        energy: The sum of the squares.
        count: How many observations there are.
    """
    return (energy + _AMPLITUDE_WEIGHT * _AMPLITUDE**2) / (count + _AMPLITUDE_WEIGHT)


def _distances(
    ones: Floats, others: Floats, squares: tuple[Floats, Floats] | None = None
) -> Floats:
    """Euclidean distances, (ones, others), given the squares of both where they are known."""
    of_ones, of_others = squares or (_squares(ones), _squares(others))
    apart = of_ones[:, None] + of_others - 2.0 * ones @ others.T
    distances: Floats = np.sqrt(np.maximum(apart, 0.0))
    return distances


def _squares(points: Floats) -> Floats:
    squares: Floats = (points**2).sum(axis=1)
    return squares


def _matern(distance: Floats) -> Floats:
    """Matérn's covariance with smoothness 3/2; distances are in lengths."""
    scaled = np.sqrt(3.0) * distance
    likeness: Floats = (1.0 + scaled) * np.exp(-scaled)
    return likeness


def _surprise(kernel: Floats, targets: Floats) -> float:
    """Minus the logarithm of the likelihood, with the amplitude integrated out."""
    factor = np.linalg.cholesky(kernel)
    white = np.linalg.solve(factor, targets)
    energy = white @ white + _AMPLITUDE_WEIGHT * _AMPLITUDE**2
    fit = 0.5 * (len(targets) + _AMPLITUDE_WEIGHT) * np.log(energy)
    return float(fit + np.log(np.diag(factor)).sum())


def _fitted_of(count: int) -> int:
    """How many of ``count`` observations are used to choose length and noise."""
    fitted = 0
    step = 6.0
    while step <= min(count, _MOST_FITTED):
        fitted, step = int(step), step * _GROWTH
    return fitted
