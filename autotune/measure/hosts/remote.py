"""A Runner that has its work done by an actor of a Ray cluster."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from autotune.errors import AutotuneError, DeviceLost, WorkerDied
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure._base import EnoughRule, Runner, StopRule
from autotune.measure.hosts.actor import Joined, Raced, Space
from autotune.measure.measurement import (
    Ceilings,
    Comparison,
    Measurement,
    Replayed,
    RunnerStatus,
)

#: The actor's methods of this group are called beside the others.
BESIDE = "beside"


class RemoteRunner(Runner):
    """Measures on a GPU of another process or host.

    A question takes about a millisecond on one host. There are two of them a configuration: the
    rules that end a configuration or a comparison go along, and are asked where the GPU is.

    A StopRule must be one that can be pickled, or copied with what it refers to. After the
    measurement it is asked again here, with the same samples, so that it knows of them.
    """

    def __init__(self, actor: Any, joined: Joined) -> None:  # noqa: ANN401 - Ray makes the type
        """Take over an actor, which its owner ends.

        Args:
            actor: A ``Measurer``, with a group of methods called ``BESIDE``.
            joined: What it said when it joined.
        """
        self._actor, self._joined = actor, joined
        self.environment, self.device = joined.environment, joined.device
        self.lookahead = joined.lookahead
        self._lock = threading.Lock()
        self._asked: Any = None
        self._status: RunnerStatus | None = None

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """The search space of the actor's runner."""
        made: Space = self._ask("kernel_space", shape, dict(axes))
        if isinstance(made, SearchSpace):
            return made
        grid, default = made
        return SearchSpace.of_grid(grid, default=default)

    def first_ready(self, pending: Mapping[KernelShape, Sequence[KernelConfig]]) -> KernelShape:
        """The shape that the actor's runner has ready first."""
        shape: KernelShape = self._ask("first_ready", dict(pending))
        return shape

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        """Measure as the actor's runner does."""
        raced: Raced = self._ask("measure", shape, list(pending), stop)
        measurement, asked = raced
        for samples_us in asked:
            stop(measurement.config, samples_us)
        return measurement

    def expect(self, configs: Mapping[KernelShape, Sequence[KernelConfig]]) -> None:
        """Tell the actor's runner what will be needed; this does not wait for it."""
        self._actor.expect.remote({shape: list(those) for shape, those in configs.items()})

    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        """Compare as the actor's runner does."""
        comparison: Comparison = self._ask("compare", shape, list(configs), enough)
        return comparison

    def leave(self, shape: KernelShape) -> None:
        """Let the actor's runner drop what it holds for a shape; this does not wait for it."""
        self._actor.leave.remote(shape)

    def ceilings(self) -> Ceilings | None:
        """The ceilings of the actor's device."""
        ceilings: Ceilings | None = self._ask("ceilings")
        return ceilings

    @property
    def status(self) -> RunnerStatus | None:
        """What the actor has answered last; nothing waits for an answer."""
        if self.replayed is not None:
            return None
        with self._lock:
            try:
                if self._asked is None:
                    method = self._actor.status.options(concurrency_group=BESIDE)
                    self._asked = method.remote()
                elif ray.wait([self._asked], timeout=0)[0]:
                    answer, self._asked = self._asked, None
                    self._status = ray.get(answer)
            except (RayError, RuntimeError):  # it is lost, or the run has ended
                self._asked = None
            return self._status

    @property
    def answered(self) -> Collection[KernelShape]:
        """The shapes that the actor's replay holds."""
        return self._joined.answered

    @property
    def replayed(self) -> Replayed | None:
        """The recordings that the actor answers from."""
        return self._joined.replayed

    def _ask(self, method: str, *arguments: object) -> Any:  # noqa: ANN401 - each its own
        """Call a method of the actor, and wait for its answer.

        Raises:
            DeviceLost: The actor is gone, or its GPU is.
            AutotuneError: What the actor's runner has raised.
        """
        try:
            return ray.get(getattr(self._actor, method).remote(*arguments))
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, AutotuneError):
                raise cause from None
            raise WorkerDied(f"{self.device}: {type(cause).__name__}: {cause}") from None
        except RayError as error:
            raise DeviceLost(f"{self.device} is lost: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """The first line of what Ray says, which says more below it, without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".:") if lines else type(error).__name__
