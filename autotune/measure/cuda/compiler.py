"""Compiles kernels in processes of their own, ahead of the process that launches them.

Triton can compile for a GPU that is not there. It keeps the compiled kernels in a cache on disk,
where the launching process finds them. Threads would not do: Triton's compiler holds the
interpreter's lock.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from autotune.errors import AutotuneError, WorkerDied
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Target
from autotune.launch.shape import KernelShape
from autotune.measure.cuda.worker import START_TIMEOUT_S, Handler, Worker, one_line
from autotune.measure.measurement import Outcome

if TYPE_CHECKING:
    from autotune.measure.kernels import CompiledKernel

#: Compiling yields to the process that launches, which needs little of a core, but at once.
_NICENESS = 10

#: Limit for compiling one kernel. That takes about 0.5 s; with too many accumulators ptxas did not
#: end within a minute.
COMPILE_TIMEOUT_S = 30.0

#: How many calls of ``ring`` are heard at once.
_MOST_RINGS = 4096


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
    """One worker process, what it is doing, and for which queue."""

    worker: Worker
    job: CompileJob | None = None
    queue: CompileQueue | None = None
    deadline: float = 0.0


class CompilePool:
    """Processes that compile, shared by the runners of all GPUs. Safe to use from several threads.

    Each runner has a queue. The next free process goes to the queue that has the fewest. A thread
    of the pool hands out jobs and takes results.

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
        #: Guards all that follows, and the queues; notified when a job is done.
        self.changed = threading.Condition()
        self._slots: list[_Slot] = []
        self._queues: list[CompileQueue] = []
        self._thread: threading.Thread | None = None
        self._error: AutotuneError | None = None
        self._bell, self._heard = socket.socketpair()
        self._bell.setblocking(False)
        #: Waits for what is heard, and for the results of the slots that compile.
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._heard, selectors.EVENT_READ)
        self.wanted_s = self.busy_s = 0.0
        self._looked_at = time.monotonic()

    def queue(self) -> CompileQueue:
        """A new queue; the pool is closed with the last of its queues."""
        made = CompileQueue(self)
        with self.changed:
            self._queues.append(made)
        return made

    def drop(self, queue: CompileQueue) -> None:
        """Forget a queue, and close the pool if it was the last."""
        with self.changed:
            was_there = queue in self._queues
            if was_there:
                self._queues.remove(queue)
            is_last = was_there and not self._queues
        if is_last:
            self.close()

    def start(self) -> None:
        """Start the processes, unless they run.

        Raises:
            WorkerDied: The pool is closed.
        """
        with self.changed:
            self.check()
            if self._thread is None:
                self._slots = [_Slot(self._start()) for _ in range(self.workers)]
                self._thread = threading.Thread(target=self._run, name="compile-pool", daemon=True)
                self._thread.start()

    def ring(self) -> None:
        """Let the pool's thread look for jobs."""
        with contextlib.suppress(OSError):  # it is closed, or has not heard many calls before
            self._bell.send(b"!")

    def check(self) -> None:
        """Raise what has ended the pool.

        Raises:
            AutotuneError: No process can be started; that is a fault of the set-up, not of a job.
            WorkerDied: The pool is closed.
        """
        if self._error is not None:
            raise self._error

    def compiling(self, queue: CompileQueue) -> int:
        """How many processes are compiling for a queue now."""
        return sum(slot.queue is queue for slot in self._slots)

    def close(self) -> None:
        """End the processes."""
        with self.changed:
            self._error = self._error or WorkerDied("the compilers have been ended")
            thread, self._thread = self._thread, None
            self.changed.notify_all()
        self.ring()
        if thread is not None:
            thread.join()
        for slot in self._slots:
            slot.worker.kill()
        self._selector.close()
        self._bell.close()
        self._heard.close()

    # ----------------------------------------------------------------- in the pool's thread

    def _run(self) -> None:
        readable: Sequence[_Slot] = ()
        while True:
            with self.changed:
                if self._error is not None:
                    return
                try:
                    self._pump(readable)
                except AutotuneError as error:
                    self._error = error
                    self.changed.notify_all()
                    return
                timeout_s = self._until_next_deadline()
            slots = [key.data for key, _ in self._selector.select(timeout_s)]
            if None in slots:
                self._heard.recv(_MOST_RINGS)
            readable = [slot for slot in slots if slot is not None]

    def _pump(self, readable: Collection[_Slot]) -> None:
        """Take results, end jobs that take too long, hand out the next."""
        self._account()
        for slot in readable:
            self._take_result(slot)
        now = time.monotonic()
        for slot in self._slots:
            if slot.job is not None and now > slot.deadline:
                reason = f"not compiled within {self._timeout_s:g} s"
                self._end(slot, CompileFailure(Outcome.COMPILE_TIMEOUT, reason))
                self._replace(slot)
            if slot.job is None and (queue := self._next_queue()) is not None:
                self._hand_out(slot, queue)

    def _next_queue(self) -> CompileQueue | None:
        """Of the queues in which a job waits, the one that has the fewest processes.

        Of several such queues it is the one whose turn is longest ago.
        """
        waiting = [queue for queue in self._queues if queue.jobs]
        chosen = min(waiting, key=self.compiling, default=None)
        if chosen is not None:
            self._queues.remove(chosen)
            self._queues.append(chosen)
        return chosen

    def _account(self) -> None:
        """Add the time since the last call to the seconds that are counted."""
        now = time.monotonic()
        elapsed = now - self._looked_at
        busy = 0
        for slot in self._slots:
            if slot.queue is not None:
                slot.queue.compiled_s += elapsed
                busy += 1
        if any(queue.jobs for queue in self._queues):
            self.wanted_s += elapsed * len(self._slots)
            self.busy_s += elapsed * busy
        self._looked_at = now

    def _start(self) -> Worker:
        return Worker(make_compiler, (self._provider,), is_forked=True)

    def _hand_out(self, slot: _Slot, queue: CompileQueue) -> None:
        job = queue.jobs.popleft()
        try:
            slot.worker.send(job)
        except WorkerDied:  # it died between two jobs, so neither is to blame
            self._replace(slot)
            slot.worker.send(job)
        slot.job, slot.queue = job, queue
        self._selector.register(slot.worker.connection, selectors.EVENT_READ, slot)
        limit_s = self._timeout_s if slot.worker.is_ready else START_TIMEOUT_S
        slot.deadline = time.monotonic() + limit_s

    def _take_result(self, slot: _Slot) -> None:
        if not slot.worker.is_ready:
            # Raises if the process could not start: that is a fault of the set-up, not of the job.
            slot.worker.wait_until_ready()
            slot.deadline = time.monotonic() + self._timeout_s
            return
        try:
            self._end(slot, slot.worker.receive(0.0))
        except WorkerDied as error:
            self._end(slot, CompileFailure(Outcome.COMPILE_FAILED, str(error)))
            self._replace(slot)

    def _end(self, slot: _Slot, result: CompiledKernel | CompileFailure) -> None:
        """Hand a job's result to the queue that wants it."""
        self._selector.unregister(slot.worker.connection)
        if slot.queue is not None and slot.job is not None:
            slot.queue.results[slot.job] = result
        slot.job = slot.queue = None
        self.changed.notify_all()

    def _replace(self, slot: _Slot) -> None:
        slot.worker.kill()
        slot.worker = self._start()

    def _until_next_deadline(self) -> float | None:
        """Seconds; None where nothing is being compiled."""
        deadlines = [slot.deadline for slot in self._slots if slot.job is not None]
        if not deadlines:
            return None
        return max(0.0, min(deadlines) - time.monotonic()) + 0.01


class CompileQueue:
    """What one runner wants compiled, in the order in which it wants it.

    Attributes:
        jobs: The jobs that wait, for the pool.
        results: What became of those that are done, from the pool.
        compiled_s: Seconds of all workers together in which they have compiled for the queue.
    """

    def __init__(self, pool: CompilePool) -> None:
        """Want nothing yet.

        Args:
            pool: Compiles; its lock guards the queue.
        """
        self._pool = pool
        self.jobs: deque[CompileJob] = deque()
        self.results: dict[CompileJob, CompiledKernel | CompileFailure] = {}
        self.compiled_s = 0.0
        self._submitted: set[CompileJob] = set()

    @property
    def compiling(self) -> int:
        """How many processes compile for this queue now."""
        return self._pool.compiling(self)

    @property
    def waiting(self) -> int:
        """How many jobs wait for a process."""
        return len(self.jobs)

    def want(self, jobs: Sequence[CompileJob]) -> None:
        """Queue jobs, and from now on compile those that wait in this order, before all others."""
        self._pool.start()
        with self._pool.changed:
            new = self._submit(jobs)
            if new or self.jobs:
                urgent = dict.fromkeys(jobs)
                waiting = {*self.jobs, *new}
                first = [job for job in urgent if job in waiting]
                self.jobs = deque((*first, *(job for job in self.jobs if job not in urgent)))
        if new:
            self._pool.ring()

    def expect(self, jobs: Sequence[CompileJob]) -> None:
        """Queue jobs after all others."""
        self._pool.start()
        with self._pool.changed:
            new = self._submit(jobs)
            self.jobs.extend(new)
        if new:
            self._pool.ring()

    def first_done(
        self, jobs: Sequence[CompileJob]
    ) -> tuple[CompileJob, CompiledKernel | CompileFailure]:
        """Wait until a job is done; where several are, the first in the sequence is answered.

        Raises:
            AutotuneError: No process can be started, or the pool is closed.
        """
        self.want(jobs)
        with self._pool.changed:
            while True:
                for job in jobs:
                    if job in self.results:
                        return job, self.results[job]
                self._pool.check()
                self._pool.changed.wait()

    def forget(self, shape: KernelShape) -> None:
        """Drop the results and waiting jobs of a shape that is finished."""
        with self._pool.changed:
            finished = {job for job in self._submitted if job.shape == shape}
            self._submitted -= finished
            self.jobs = deque(job for job in self.jobs if job not in finished)
            for job in finished:
                self.results.pop(job, None)

    def _submit(self, jobs: Sequence[CompileJob]) -> list[CompileJob]:
        """Note jobs; returns those that are new, each once."""
        new = [job for job in dict.fromkeys(jobs) if job not in self._submitted]
        self._submitted.update(new)
        return new

    def close(self) -> None:
        """Want nothing any more; the last queue closes the pool."""
        with self._pool.changed:
            self.jobs.clear()
        self._pool.drop(self)


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
