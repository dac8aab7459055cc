"""Compiles kernels in processes of their own, ahead of the process that launches them.

Triton needs no GPU to compile for one, and keeps its results in a cache on disk, where the
launching process finds them. Threads would not do: Triton's compiler holds the interpreter.
"""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, NamedTuple

from autotune.errors import WorkerDied
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Target
from autotune.launch.shape import KernelShape
from autotune.measure.cuda.worker import START_TIMEOUT_S, Handler, Worker, one_line
from autotune.measure.measurement import Outcome

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from autotune.measure.kernels import CompiledKernel

#: The process that launches has the right of way: it needs little of a core, but at once.
_NICENESS = 10

#: One kernel takes about 0.5 s; with too many accumulators ptxas did not end within a minute.
COMPILE_TIMEOUT_S = 30.0


class Job(NamedTuple):
    """What to compile: a configuration of a shape, and for which GPU."""

    shape: KernelShape
    config: KernelConfig
    target: Target


@dataclass(frozen=True, slots=True)
class CompileFailure:
    """Why there is no kernel."""

    outcome: Outcome
    reason: str


@dataclass(slots=True)
class _Slot:
    """One worker process and what it is doing."""

    worker: Worker
    job: Job | None = None
    deadline: float = 0.0


class CompilePool:
    """Compiles jobs in the order in which they are submitted.

    Nothing runs behind the owner's back: jobs are handed out and results taken in ``pump``, which
    the owner calls while it waits for something else.

    Attributes:
        wanted_s: Worker-seconds that there were while a job was waiting.
        busy_s: How many of them were worked.
    """

    def __init__(
        self,
        provider: str,
        *,
        workers: int,
        timeout_s: float = COMPILE_TIMEOUT_S,
    ) -> None:
        """Start the processes.

        Args:
            provider: Name of the kernel provider.
            workers: How many processes.
            timeout_s: Limit for one job, in seconds.
        """
        self._provider, self._timeout_s = provider, timeout_s
        self._slots = [_Slot(self._start()) for _ in range(workers)]
        self._waiting: deque[Job] = deque()
        self._submitted: set[Job] = set()
        self._results: dict[Job, CompiledKernel | CompileFailure] = {}
        self.wanted_s = 0.0
        self.busy_s = 0.0
        self._looked_at = time.monotonic()

    @property
    def workers(self) -> int:
        """How many processes compile."""
        return len(self._slots)

    @property
    def compiling(self) -> int:
        """How many of them are at work."""
        return sum(slot.job is not None for slot in self._slots)

    @property
    def waiting(self) -> int:
        """How many jobs wait for one of them."""
        return len(self._waiting)

    @property
    def connections(self) -> list[Connection]:
        """What becomes readable when a job is done: for ``multiprocessing.connection.wait``."""
        return [slot.worker.connection for slot in self._slots if slot.job is not None]

    def submit(self, job: Job) -> None:
        """Have a job done, unless it is already."""
        if job not in self._submitted:
            self._submitted.add(job)
            self._waiting.append(job)

    def first_done(self, jobs: Sequence[Job]) -> tuple[Job, CompiledKernel | CompileFailure]:
        """Wait until one of the jobs is done; the first in the sequence where several are."""
        for job in jobs:
            self.submit(job)
        while True:
            self.pump()
            for job in jobs:
                if job in self._results:
                    return job, self._results[job]
            wait(self.connections, timeout=self._until_next_deadline())

    def forget(self, shape: KernelShape) -> None:
        """Drop the results and waiting jobs of a shape that is finished."""
        finished = {job for job in self._submitted if job.shape == shape}
        self._submitted -= finished
        self._waiting = deque(job for job in self._waiting if job not in finished)
        for job in finished:
            self._results.pop(job, None)

    def pump(self) -> None:
        """Take in results, end what takes too long, hand out jobs. Returns at once."""
        self._account()
        for slot in self._slots:
            if slot.job is not None:
                self._look_at(slot)
            if slot.job is None and self._waiting:
                self._hand_out(slot, self._waiting.popleft())

    def close(self) -> None:
        """End the processes."""
        for slot in self._slots:
            slot.worker.kill()

    def _account(self) -> None:
        """How busy the workers were since the last look, while a job was waiting for one."""
        now = time.monotonic()
        if self._waiting:
            elapsed = now - self._looked_at
            self.wanted_s += elapsed * len(self._slots)
            self.busy_s += elapsed * self.compiling
        self._looked_at = now

    def _start(self) -> Worker:
        return Worker(make_compiler, (self._provider,))

    def _hand_out(self, slot: _Slot, job: Job) -> None:
        try:
            slot.worker.send(job)
        except WorkerDied:  # between jobs: no job's fault
            self._replace(slot)
            slot.worker.send(job)
        slot.job = job
        limit_s = self._timeout_s if slot.worker.is_ready else START_TIMEOUT_S
        slot.deadline = time.monotonic() + limit_s

    def _look_at(self, slot: _Slot) -> None:
        job = slot.job
        if job is None:
            return
        is_readable = slot.worker.connection.poll()
        if is_readable and not slot.worker.is_ready:
            # A process that cannot even start is a fault of the set-up, not of the job.
            slot.worker.wait_until_ready()
            slot.deadline = time.monotonic() + self._timeout_s
            return
        if not is_readable:
            if time.monotonic() > slot.deadline:
                reason = f"not compiled within {self._timeout_s:g} s"
                self._results[job] = CompileFailure(Outcome.COMPILE_TIMEOUT, reason)
                self._replace(slot)
            return
        try:
            self._results[job] = slot.worker.receive(0.0)
            slot.job = None
        except WorkerDied as error:
            self._results[job] = CompileFailure(Outcome.COMPILE_FAILED, str(error))
            self._replace(slot)

    def _replace(self, slot: _Slot) -> None:
        slot.worker.kill()
        slot.worker, slot.job = self._start(), None

    def _until_next_deadline(self) -> float:
        deadlines = [slot.deadline for slot in self._slots if slot.job is not None]
        return max(0.0, min(deadlines, default=0.0) - time.monotonic()) + 0.01


def make_compiler(provider_name: str) -> Handler:
    """In the worker: a function from a job to a compiled kernel or the reason why there is none."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a context here would take memory from the launcher
    os.environ.pop("TRITON_INTERPRET", None)  # the interpreter compiles nothing
    os.environ["TRITON_STORE_BINARY_ONLY"] = "1"  # nobody reads the rest: 4 % of a compile
    os.nice(_NICENESS)
    from autotune.measure.kernels import provider

    kernels = provider(provider_name)
    # What is imported lives as long as the process; looking through it again and again for garbage
    # took 7 % of a compile.
    gc.freeze()

    def compile_job(job: Job) -> CompiledKernel | CompileFailure:
        try:
            return kernels.compile(*job)
        except Exception as error:  # noqa: BLE001 - whatever a compiler raises is a value here
            return CompileFailure(Outcome.COMPILE_FAILED, _reason(error))

    return compile_job


def _reason(error: Exception) -> str:
    """The line that says what is wrong: Triton puts ptxas's own below a general one."""
    fatal = [line for line in str(error).splitlines() if line.startswith("ptxas fatal")]
    return f"{type(error).__name__}: {fatal[0]}" if fatal else one_line(error)
