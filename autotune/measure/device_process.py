"""The process that owns the GPU, and another that is ready to take its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

from autotune.measure.compiler import CompilePool
from autotune.measure.worker import Handler, Worker


class DeviceProcess:
    """Answers the requests of ``protocol``, in a process that can be replaced at any time.

    A process takes seconds to start, so a spare is started beforehand, when its owner says that
    nothing is being timed that it could disturb.
    """

    def __init__(self, make_server: Callable[[str], Handler], provider: str) -> None:
        """Start the first process.

        Args:
            make_server: Makes what answers, in the process, from the provider's name.
            provider: Name of the kernel provider.
        """
        self._make_server, self._provider = make_server, provider
        self._spare: Worker | None = None
        self._worker = self._start()

    def ask(self, request: object, timeout_s: float, compilers: CompilePool | None = None) -> Any:  # noqa: ANN401 - each request has its own answer
        """Have a request answered, and keep the compilers busy meanwhile.

        Raises:
            WorkerDied: The process ended, did not answer in time, or could not make sense of it.
        """
        self._worker.wait_until_ready()
        self._worker.send(request)
        deadline = time.monotonic() + timeout_s
        while compilers is not None and time.monotonic() < deadline:
            compilers.pump()
            connections = [self._worker.connection, *compilers.connections]
            readable = wait(connections, timeout=max(0.0, deadline - time.monotonic()))
            if self._worker.connection in readable:
                break
        return self._worker.receive(max(0.0, deadline - time.monotonic()))

    def prepare_spare(self) -> None:
        """Start the next process now, so that ``replace`` need not wait for it."""
        if self._spare is None:
            self._spare = self._start()

    def replace(self) -> None:
        """Go on with a fresh process."""
        self._worker.kill()
        self._worker, self._spare = self._spare or self._start(), None

    def close(self) -> None:
        """End the processes."""
        for worker in (self._worker, self._spare):
            if worker is not None:
                worker.kill()

    def _start(self) -> Worker:
        return Worker(self._make_server, (self._provider,))
