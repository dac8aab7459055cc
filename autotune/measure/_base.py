"""Runner: what measures configurations. Knows nothing of Optuna, torch or Triton."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from autotune.errors import SpaceError
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.release import parameters_read, release_of
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure.measurement import Comparison, Measurement, RunnerStatus

if TYPE_CHECKING:
    from typing_extensions import Self

    from autotune.measure.measurement import Ceilings, Replayed


#: Called now and then during a comparison: whether the samples so far are enough.
EnoughRule = Callable[[Mapping[KernelConfig, Sequence[float]]], bool]

#: Called after every timing round with all samples so far, in microseconds: whether the
#: configuration is plainly too slow.
StopRule = Callable[[KernelConfig, Sequence[float]], bool]


def never_stop(_config: KernelConfig, _samples_us: Sequence[float]) -> bool:
    """The StopRule that times every configuration in full."""
    return False


class Runner(ABC):
    """Turns configurations of a shape into measurements.

    A runner is used from one thread at a time; only ``status`` may be read from others, and
    ``space``, ``recall`` and ``expect`` be called. Its owner closes it, as a context manager or by
    ``close``. A run may have several, one a GPU.

    Every method but ``status`` and ``close`` may raise ``DeviceLost``, once the GPU is lost. The
    run gives to its other runners then what this one had.

    Attributes:
        environment: The GPU, kernels and versions that it measures with.
        device: Tells the GPU from others of a run and of a database, such as ``GPU 0 (5f3c1a2b)``;
            empty for a replay that is alone.
        lookahead: How many configurations of all shapes should be under way, so that the next are
            compiled while one is timed.
    """

    environment: Environment
    device: str = ""
    lookahead: int = 1

    def space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """The configurations of ``shape`` that are worth measuring.

        A parameter that vLLM does not read for this shape keeps the default's value, since
        configurations that differ only in such a parameter are the same launch. A deterministic
        ``environment`` has configurations that split k left out.

        Args:
            shape: The shape.
            axes: Values that replace the usual ones, per parameter.

        Raises:
            SpaceError: The space has no valid configuration.
            ReplayMiss: The runner is a replay, and the shape was not recorded.
        """
        if not self.environment.deterministic:
            return self._whole_space(shape, axes)
        if "split_k" in shape.op.parameters:
            axes = {**axes, "split_k": (1,)}
        try:
            return self._whole_space(shape, axes).without_splits()
        except SpaceError as error:
            raise SpaceError(f"{error}; deterministic allows split_k 1 alone") from None

    def _whole_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        space = self.kernel_space(shape, axes)
        read = parameters_read(shape, release_of(self.environment))
        if read == shape.op.parameters:
            return space
        default = space.default.as_dict()
        unread = {name: value for name, value in default.items() if name not in read}
        if not read:
            return SearchSpace(shape, [space.default], default=space.default, unread=unread)
        kept = dict(space.axes) | {name: (value,) for name, value in unread.items()}
        return self.kernel_space(shape, kept).with_unread(unread)

    @abstractmethod
    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """The configurations that the kernel of ``shape`` can be launched with.

        Called by ``space``, which takes the same arguments and raises the same errors.
        """

    def first_ready(self, pending: Mapping[KernelShape, Sequence[KernelConfig]]) -> KernelShape:
        """The shape of which a configuration can be measured first.

        A runner that compiles has the configurations of all shapes compiled meanwhile, in the order
        given, and waits until one is ready.

        Args:
            pending: Configurations to measure, per shape; the most urgent shape first. At least one
                shape, and for every shape at least one configuration.
        """
        return next(iter(pending))

    @abstractmethod
    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        """Measure whichever of ``pending`` is ready first.

        A configuration that cannot be measured is an ``Outcome``, never an exception.

        Args:
            shape: The shape.
            pending: Distinct configurations of the shape's space, oldest first, at least one. The
                others may be given again in the next call.
            stop: Called after every timing round; true ends the configuration as ``too_slow``.
        """

    def expect(  # noqa: B027 - some runners compile nothing
        self, configs: Mapping[KernelShape, Sequence[KernelConfig]]
    ) -> None:
        """Say what will be needed soon, so that a runner that compiles begins; returns at once.

        Args:
            configs: Configurations that ``measure`` or ``compare`` will be given, per shape; the
                first shape first.
        """

    @abstractmethod
    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        """Time configurations side by side, one sample of each in turn, in random order.

        Args:
            shape: The shape.
            configs: Distinct configurations of the shape.
            enough: Called now and then; true ends the comparison. The runner may end it sooner.

        Returns:
            The samples. A configuration that does not run is left out.
        """

    @property
    def status(self) -> RunnerStatus | None:
        """What the runner is doing now; None for a replay. May be read from any thread."""
        return None

    @property
    def answered(self) -> Collection[KernelShape]:
        """Shapes whose measurements the runner holds already: those of a replay, else none."""
        return ()

    @property
    def replayed(self) -> Replayed | None:
        """The recordings that answer; None where a GPU measures."""
        return None

    def recall(self, measurements: Iterable[Measurement]) -> None:  # noqa: B027 - most need not know
        """Take in measurements of earlier runs; the space of their shape was asked for before."""

    def leave(self, shape: KernelShape) -> None:  # noqa: B027 - some runners hold nothing
        """Drop what is held for a shape, and what is still to be compiled for it."""

    def ceilings(self) -> Ceilings | None:
        """What the device reaches at best, for rooflines; None where that is not known."""
        return None

    def close(self) -> None:  # noqa: B027 - some runners hold nothing
        """End processes and free memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
