"""A runner whose GPU is lost in the middle, to test what becomes of a run then."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from autotune.errors import DeviceLost
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Comparison, EnoughRule, Measurement, Runner, RunnerStatus, StopRule

if TYPE_CHECKING:
    from autotune.measure.measurement import Ceilings, Replayed


class LossyRunner(Runner):
    """Does what another runner does, until its GPU is lost."""

    def __init__(self, inner: Runner, *, after: int) -> None:
        """Take over a runner.

        Args:
            inner: Measures.
            after: How many configurations it measures before the GPU is lost.
        """
        self._inner, self._left = inner, after
        self.environment, self.lookahead = inner.environment, inner.lookahead
        self.device = inner.device

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """The search space of the inner runner."""
        return self._alive.kernel_space(shape, axes)

    def first_ready(self, pending: Mapping[KernelShape, Sequence[KernelConfig]]) -> KernelShape:
        """The shape that the inner runner has ready first."""
        return self._alive.first_ready(pending)

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        """Measure as the inner runner does; the GPU may be lost before it answers."""
        found = self._alive.measure(shape, pending, stop)
        self._left -= 1
        return found

    def expect(self, configs: Mapping[KernelShape, Sequence[KernelConfig]]) -> None:
        """Tell the inner runner what will be needed."""
        self._alive.expect(configs)

    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        """Compare as the inner runner does."""
        return self._alive.compare(shape, configs, enough)

    def recall(self, measurements: Iterable[Measurement]) -> None:
        """Tell the inner runner of what was measured before."""
        self._alive.recall(measurements)

    def leave(self, shape: KernelShape) -> None:
        """Let the inner runner drop what it holds for a shape."""
        self._alive.leave(shape)

    def ceilings(self) -> Ceilings | None:
        """The ceilings of the inner runner's device."""
        return self._alive.ceilings()

    @property
    def status(self) -> RunnerStatus | None:
        """The status of the inner runner."""
        return self._inner.status

    @property
    def answered(self) -> Collection[KernelShape]:
        """The shapes that the inner runner holds measurements of."""
        return self._inner.answered

    @property
    def replayed(self) -> Replayed | None:
        """The recordings that the inner runner answers from."""
        return self._inner.replayed

    def close(self) -> None:
        """Close the inner runner."""
        self._inner.close()

    @property
    def _alive(self) -> Runner:
        if self._left <= 0:
            raise DeviceLost(f"{self.device} is lost: it was made up")
        return self._inner
