"""Compiles kernels in processes of their own, ahead of the process that launches them.

Triton can compile for a GPU that is not there. It keeps the compiled kernels in a cache on disk,
where the launching process finds them. Threads would not do: Triton's compiler holds the
interpreter's lock.
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

#: Compiling yields to the process that launches, which needs little of a core, but at once.
_NICENESS = 10

#: Limit for compiling one kernel. That takes about 0.5 s; with too many accumulators ptxas did not
#: end within a minute.
COMPILE_TIMEOUT_S = 30.0


class CompileJob(NamedTuple):
    """What to compile: a configuration of a shape, and for which GPU."""

    shape: KernelShape
    config: KernelConfig
    target: Target


@dataclass(frozen=True, slots=True)
class CompileFailure:
    """Why a job gave no kernel."""

    outcome: Outcome
    reason: str


@dataclass(slots=True)
class _Slot:
    """One worker process and what it is doing."""

    worker: Worker
    job: CompileJob | None = None
    deadline: float = 0.0


class CompilePool:
    """Compiles jobs in the order in which they are wanted.

    The pool has no thread of its own: only ``pump`` hands out jobs and takes results, and the owner
    calls it while waiting for something else.

    Attributes:
        workers: How many processes compile.
        wanted_s: Seconds in which a job was waiting, times the number of workers.
        busy_s: The part of ``wanted_s`` in which workers were compiling.
    """

    def __init__(
        self,
        provider: str,
        *,
        workers: int,
        timeout_s: float = COMPILE_TIMEOUT_S,
    ) -> None:
        """Note what to start; the first job that is submitted starts the processes.

        Args:
            provider: Name of the kernel provider.
            workers: How many processes.
            timeout_s: Limit for one job, in seconds.
        """
        self._provider, self._timeout_s = provider, timeout_s
        self.workers = workers
        self._slots: list[_Slot] = []
        self._waiting: deque[CompileJob] = deque()
        self._submitted: set[CompileJob] = set()
        self._results: dict[CompileJob, CompiledKernel | CompileFailure] = {}
        self.wanted_s = 0.0
        self.busy_s = 0.0
        self._looked_at = time.monotonic()

    def start(self) -> None:
        """Start the processes, unless they run."""
        if not self._slots:
            self._slots = [_Slot(self._start()) for _ in range(self.workers)]

    @property
    def compiling(self) -> int:
        """How many processes are compiling now."""
        return sum(slot.job is not None for slot in self._slots)

    @property
    def waiting(self) -> int:
        """How many jobs wait for a process."""
        return len(self._waiting)

    @property
    def connections(self) -> list[Connection]:
        """Become readable when a job is done: for ``multiprocessing.connection.wait``."""
        return [slot.worker.connection for slot in self._slots if slot.job is not None]

    def submit(self, job: CompileJob) -> None:
        """Queue a job, unless it was submitted before."""
        self.start()
        if job not in self._submitted:
            self._submitted.add(job)
            self._waiting.append(job)

    def want(self, jobs: Sequence[CompileJob]) -> None:
        """Queue jobs, and from now on compile those that wait in this order, before all others."""
        for job in jobs:
            self.submit(job)
        urgent = dict.fromkeys(jobs)
        waiting = set(self._waiting)
        first = [job for job in urgent if job in waiting]
        self._waiting = deque((*first, *(job for job in self._waiting if job not in urgent)))

    def first_done(
        self, jobs: Sequence[CompileJob]
    ) -> tuple[CompileJob, CompiledKernel | CompileFailure]:
        """Wait until a job is done; where several are, the first in the sequence is answered."""
        self.want(jobs)
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
        """Take results, end jobs that take too long, hand out the next. Returns at once."""
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
        """Add the time since the last call to ``wanted_s`` and ``busy_s`` if a job was waiting."""
        now = time.monotonic()
        if self._waiting:
            elapsed = now - self._looked_at
            self.wanted_s += elapsed * len(self._slots)
            self.busy_s += elapsed * self.compiling
        self._looked_at = now

    def _start(self) -> Worker:
        return Worker(make_compiler, (self._provider,), is_forked=True)

    def _hand_out(self, slot: _Slot, job: CompileJob) -> None:
        try:
            slot.worker.send(job)
        except WorkerDied:  # it died between two jobs, so neither is to blame
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
            # Raises if the process could not start: that is a fault of the set-up, not of the job.
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
    """In the worker: make the function that compiles a job, or says why it cannot."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a context here would take memory from the launcher
    os.environ.pop("TRITON_INTERPRET", None)  # the interpreter compiles nothing
    os.environ["TRITON_STORE_BINARY_ONLY"] = "1"  # to write what nobody reads took 4 % of a compile
    os.nice(_NICENESS)
    from autotune.measure.kernels import provider

    kernels = provider(provider_name)
    # Imported modules live as long as the process; searching them for garbage again and again took
    # 7 % of a compile.
    gc.freeze()

    def compile_job(job: CompileJob) -> CompiledKernel | CompileFailure:
        try:
            return kernels.compile(*job)
        except Exception as error:  # noqa: BLE001 - whatever a compiler raises is a value here
            return CompileFailure(Outcome.COMPILE_FAILED, _reason(error))

    return compile_job


def _reason(error: Exception) -> str:
    """The line that says what is wrong: Triton puts ptxas's message below a general line."""
    fatal = [line for line in str(error).splitlines() if line.startswith("ptxas fatal")]
    return f"{type(error).__name__}: {fatal[0]}" if fatal else one_line(error)
