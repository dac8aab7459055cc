"""A process that owns the GPU, and its replacement by a fresh one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from autotune.errors import DeviceLost, WorkerDied
from autotune.launch.shape import KernelShape
from autotune.measure.cuda.protocol import Open
from autotune.measure.cuda.visible import VARIABLE, VisibleDevice
from autotune.measure.cuda.worker import Handler, Worker

#: Limit for a request that is not about a single configuration, such as making a shape's inputs or
#: taking some turns of a comparison, in seconds.
REQUEST_TIMEOUT_S = 120.0


class DeviceProcess:
    """Has the requests of ``protocol`` answered in a process that can be replaced at any time."""

    def __init__(
        self,
        make_server: Callable[[str], Handler],
        provider: str,
        device: VisibleDevice | None = None,
    ) -> None:
        """Note what to start; nothing runs before ``start``.

        Args:
            make_server: Called in the process with the provider's name; makes what answers there.
            provider: Name of the kernel provider.
            device: The only GPU that the process sees; None for those that this process sees.
        """
        variables = {} if device is None else {VARIABLE: device.variable}
        self._make_worker = partial(Worker, make_server, (provider,), variables=variables)
        self._name = "the GPU" if device is None else device.label
        self._worker: Worker | None = None
        self._spare: Worker | None = None
        self._has_answered = False
        self._opened: set[KernelShape] = set()

    def start(self) -> None:
        """Start the process unless it runs; the first request waits until it is ready."""
        if self._worker is None:
            self._worker = self._make_worker()

    def prepare_spare(self) -> None:
        """Start a second process unless there is one, so that ``replace`` need not wait seconds."""
        if self._spare is None:
            self._spare = self._make_worker()

    def replace(self) -> None:
        """End the process and go on with a fresh one."""
        if self._worker is not None:
            self._worker.kill()
        self._worker, self._spare = self._spare or self._make_worker(), None
        self._opened.clear()

    def open(self, shape: KernelShape) -> None:
        """Have the process make the inputs of ``shape``, unless it has made them before.

        Raises:
            WorkerDied: The inputs cannot be made.
        """
        if shape not in self._opened:
            self.ask(Open(shape), REQUEST_TIMEOUT_S)
            self._opened.add(shape)

    def ask(self, request: object, timeout_s: float) -> Any:  # noqa: ANN401 - each request has its own answer
        """Have a request answered.

        Raises:
            WorkerDied: The process ended, did not answer in time, or could not handle the request.
            DeviceLost: A process has answered before, and none can be started any more.
        """
        worker = self._ready()
        worker.send(request)
        answer = worker.receive(timeout_s)
        self._has_answered = True
        return answer

    def _ready(self) -> Worker:
        """The process once it is ready."""
        self.start()
        worker = self._worker
        assert worker is not None  # noqa: S101 - for mypy: start made it
        try:
            worker.wait_until_ready()
        except WorkerDied:
            if not self._has_answered:
                raise
        else:
            return worker
        worker.kill()
        self._worker = worker = self._make_worker()
        self._opened.clear()
        try:
            worker.wait_until_ready()
        except WorkerDied as error:
            raise DeviceLost(
                f"{self._name} is lost: its process cannot be started again: {error}"
            ) from None
        return worker

    def close(self) -> None:
        """End the processes."""
        for worker in (self._worker, self._spare):
            if worker is not None:
                worker.kill()
