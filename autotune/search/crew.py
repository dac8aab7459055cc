"""The runners of a run, one a GPU: what is done by all of them, and what becomes of a lost one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from autotune.errors import DeviceLost, InputError
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import (
    Comparison,
    EnoughRule,
    Measurement,
    Runner,
    RunnerStatus,
    StopRule,
)
from autotune.measure.recording import RecordingRunner, RecordingWriter
from autotune.search.events import GpuLost
from autotune.store import DeviceLoad, Load

if TYPE_CHECKING:
    from autotune.measure.measurement import Ceilings, Replayed

#: How long the end of a run waits for what other GPUs measure, seconds. It is lost afterwards.
_PARTING_S = 1.0

T = TypeVar("T")


class Member(Runner):
    """A runner of a crew: it is stopped with the crew, and counts for how long it measures.

    Attributes:
        busy_s: Seconds in which it has measured and compared.
    """

    def __init__(self, inner: Runner, crew: Crew) -> None:
        """Take over a runner.

        Args:
            inner: Measures.
            crew: Says when to stop.
        """
        self._inner, self._crew = inner, crew
        self.environment, self.device = inner.environment, inner.device
        self.lookahead = inner.lookahead
        self.busy_s = 0.0

    def record(self, writer: RecordingWriter) -> None:
        """Record from now on what the inner runner measures."""
        self._inner = RecordingRunner(self._inner, writer)

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """The search space of the inner runner."""
        return self._called(lambda: self._inner.kernel_space(shape, axes))

    def first_ready(self, pending: Mapping[KernelShape, Sequence[KernelConfig]]) -> KernelShape:
        """The shape that the inner runner has ready first."""
        return self._called(lambda: self._inner.first_ready(pending))

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        """Measure as the inner runner does."""
        return self._timed(lambda: self._inner.measure(shape, pending, stop))

    def expect(self, configs: Mapping[KernelShape, Sequence[KernelConfig]]) -> None:
        """Tell the inner runner what will be needed."""
        self._called(lambda: self._inner.expect(configs))

    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        """Compare as the inner runner does."""
        return self._timed(lambda: self._inner.compare(shape, configs, enough))

    def recall(self, measurements: Iterable[Measurement]) -> None:
        """Tell the inner runner of what was measured before."""
        self._called(lambda: self._inner.recall(measurements))

    def leave(self, shape: KernelShape) -> None:
        """Let the inner runner drop what it holds for a shape."""
        self._called(lambda: self._inner.leave(shape))

    def ceilings(self) -> Ceilings | None:
        """The ceilings of the inner runner's device."""
        return self._called(self._inner.ceilings)

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

    def _called(self, call: Callable[[], T]) -> T:
        self._crew.check()
        try:
            return call()
        finally:
            # What a stopped runner answers says nothing: its processes may be ended meanwhile.
            self._crew.check()

    def _timed(self, call: Callable[[], T]) -> T:
        began_s = time.monotonic()
        try:
            return self._called(call)
        finally:
            self.busy_s += time.monotonic() - began_s


class Crew:
    """The runners of a run, and which of them are lost."""

    def __init__(
        self,
        runners: Sequence[Runner],
        *,
        say: Callable[[str], None],
        tell: Callable[[GpuLost], None],
    ) -> None:
        """Take over runners, which their owner closes.

        Args:
            runners: At least one.
            say: Called with a line when a GPU is lost.
            tell: Called then, too.

        Raises:
            InputError: They measure in different environments.
        """
        _check_alike(runners)
        self._say, self._tell = say, tell
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.members = tuple(Member(runner, self) for runner in runners)
        self._lost: set[Member] = set()

    def record(self, writer: RecordingWriter) -> None:
        """Record from now on what the runners measure."""
        for member in self.members:
            member.record(writer)

    @property
    def present(self) -> list[Member]:
        """The runners that are not lost, at least one."""
        with self._lock:
            return [each for each in self.members if each not in self._lost]

    @property
    def runner(self) -> Runner:
        """For what any of the runners may do: one that goes on with another if a GPU is lost."""
        return self.members[0] if len(self.members) == 1 else _Substitute(self)

    def load(self, *, writing_s: float) -> Load:
        """How busy the runners have been; a replay that is alone has no name to tell of."""
        statuses = [each.status for each in self.members]
        known = [each for each in statuses if each is not None]
        with self._lock:
            devices = tuple(
                DeviceLoad(device=each.device, busy_s=each.busy_s, is_lost=each in self._lost)
                for each in self.members
                if each.device
            )
        return Load(
            devices=devices,
            compilers=sum(each.compilers for each in known),
            compiled_s=sum(each.compiled_s for each in known),
            writing_s=writing_s,
        )

    def check(self) -> None:
        """End the thread of a run that has ended.

        Raises:
            Ended: The run has ended.
        """
        if self._stopped.is_set():
            raise Ended

    def lose(self, member: Member, error: DeviceLost) -> None:
        """Note that a GPU is lost.

        Raises:
            DeviceLost: It was the last one.
        """
        with self._lock:
            is_news = member not in self._lost
            left = len(self.members) - len(self._lost | {member})
            if left:
                self._lost.add(member)
        if not left:
            raise error
        if is_news:
            others = "the other GPU goes on" if left == 1 else f"the other {left} GPUs go on"
            self._say(f"{error}. What was under way there is tried again: {others}.")
            self._tell(GpuLost(device=member.device))

    def work(self, task: Callable[[Member], None]) -> None:
        """Call a function with every runner that is left, each in a thread of its own.

        With one runner it is called in this thread. The first exception that one of them raises
        stops the others, as does a signal in this thread.
        """
        present = self.present
        if len(present) == 1:
            task(present[0])
            return
        hands = _Hands(self._stopped)
        try:
            for member in present:
                hands.begin(lambda member=member: task(member), name=member.device)  # type: ignore[misc]
            hands.wait()
        except BaseException:
            self._stopped.set()
            hands.part()
            raise


class Ended(BaseException):
    """Ends a thread of a run that has ended; no handler of errors is to catch it."""


class _Hands:
    """The threads of one piece of work."""

    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped
        self._lock, self._changed = threading.Lock(), threading.Event()
        self._busy = 0
        self._error: BaseException | None = None

    def begin(self, work: Callable[[], None], *, name: str) -> None:
        """Start a thread. It is a daemon: what it waits for may never come."""
        with self._lock:
            self._busy += 1
        threading.Thread(target=self._run, args=(work,), name=name, daemon=True).start()

    def wait(self) -> None:
        """Wait until all threads have ended, and raise the first error of one of them.

        Raises:
            BaseException: What a thread has raised.
        """
        while self._busy and self._error is None:
            self._changed.wait()
            self._changed.clear()
        if self._error is not None:
            raise self._error

    def part(self) -> None:
        """Give threads that are stopped a moment to end."""
        late = time.monotonic() + _PARTING_S
        while self._busy and (left_s := late - time.monotonic()) > 0:
            self._changed.wait(left_s)
            self._changed.clear()

    def _run(self, work: Callable[[], None]) -> None:
        error: BaseException | None = None
        try:
            work()
        except Ended:
            pass
        except BaseException as raised:  # noqa: BLE001 - raised again in the owner's thread
            error = raised
            self._stopped.set()
        with self._lock:
            self._error = self._error or error
            self._busy -= 1
        self._changed.set()


class _Substitute(Runner):
    """Any runner of a crew: where one is lost, the next does the same again."""

    def __init__(self, crew: Crew) -> None:
        self._crew, first = crew, crew.members[0]
        self.environment, self.lookahead = first.environment, first.lookahead

    @property
    def device(self) -> str:  # type: ignore[override]  # it changes
        """That of the runner that is used now."""
        return self._crew.present[0].device

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """The search space of a runner."""
        return self._by_any(lambda runner: runner.kernel_space(shape, axes))

    def first_ready(self, pending: Mapping[KernelShape, Sequence[KernelConfig]]) -> KernelShape:
        """The shape that a runner has ready first."""
        return self._by_any(lambda runner: runner.first_ready(pending))

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        """Measure with a runner."""
        return self._by_any(lambda runner: runner.measure(shape, pending, stop))

    def expect(self, configs: Mapping[KernelShape, Sequence[KernelConfig]]) -> None:
        """Tell a runner what will be needed."""
        self._by_any(lambda runner: runner.expect(configs))

    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        """Compare with a runner."""
        return self._by_any(lambda runner: runner.compare(shape, configs, enough))

    def recall(self, measurements: Iterable[Measurement]) -> None:
        """Tell a runner of what was measured before."""
        kept = list(measurements)
        self._by_any(lambda runner: runner.recall(kept))

    def leave(self, shape: KernelShape) -> None:
        """Let a runner drop what it holds for a shape."""
        self._by_any(lambda runner: runner.leave(shape))

    def ceilings(self) -> Ceilings | None:
        """The ceilings of a runner's device."""
        return self._by_any(lambda runner: runner.ceilings())

    @property
    def status(self) -> RunnerStatus | None:
        """The status of a runner."""
        return self._crew.present[0].status

    @property
    def answered(self) -> Collection[KernelShape]:
        """The shapes that the runners hold measurements of."""
        return self._crew.members[0].answered

    @property
    def replayed(self) -> Replayed | None:
        """The recordings that the runners answer from."""
        return self._crew.members[0].replayed

    def _by_any(self, call: Callable[[Member], T]) -> T:
        while True:
            member = self._crew.present[0]
            try:
                return call(member)
            except DeviceLost as error:
                self._crew.lose(member, error)


def _check_alike(runners: Sequence[Runner]) -> None:
    first = runners[0]
    for other in runners[1:]:
        difference = first.environment.difference(other.environment)
        if difference:
            raise InputError(
                f"{first.device} and {other.device} differ ({difference}), and so would their "
                "files: give each kind of GPU a run of its own"
            )
