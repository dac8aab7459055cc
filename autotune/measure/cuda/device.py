"""The process that owns the GPU: it launches, checks and times. It never compiles."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from functools import partial

import torch
import triton
from triton.runtime.errors import OutOfResources

from autotune.launch.config import KernelConfig
from autotune.launch.environment import Device, Environment
from autotune.launch.shape import KernelShape
from autotune.measure.cuda.clock import CacheFlush, LaunchClock
from autotune.measure.cuda.gpu import DeviceMonitor, describe_device, driver_version
from autotune.measure.cuda.protocol import (
    Advice,
    Consult,
    Describe,
    Description,
    Failure,
    MeasureCeilings,
    More,
    Open,
    Prepare,
    Start,
    Started,
    TakeTurns,
    Turns,
)
from autotune.measure.cuda.worker import one_line
from autotune.measure.kernels import KernelProvider, provider
from autotune.measure.kernels.inputs import Inputs, make_inputs, weight_set_bytes
from autotune.measure.kernels.reference import check_result, expect
from autotune.measure.measurement import Ceilings, Outcome

#: Weight sets that launches rotate over, if the memory holds them.
_WEIGHT_SETS = 16

#: Share of the device's memory that weight sets of a shape may take, and those of all others held.
_WEIGHT_SHARE = 0.25

#: Shapes whose inputs are held at a time, so that a search may go back and forth between them.
_MOST_HELD = 8

#: Memory that is wanted for the inputs of a shape, in multiples of its weight sets: the reference
#: result and what is made on the way take some too.
_ROOM = 2

#: Size of the buffer that is copied to measure the memory, in multiples of the L2 cache: what the
#: cache still holds from the copy before is then a small part of the buffer.
_COPY_FACTOR = 16

#: Side of the square matrices whose product is measured: large enough to keep any device busy.
_MATMUL_SIDE = 8192

#: How often the copy and the product are run to warm up, and how often for the median.
_CEILING_WARM_UPS = 5
_CEILING_RUNS = 15

#: Seed of the inputs: the same shape is always timed on the same numbers.
_SEED = 2026


class DeviceServer:
    """Answers the requests of ``protocol``; holds the inputs of the shapes opened last."""

    def __init__(self, provider_name: str) -> None:
        self._provider = provider(provider_name)
        self._device = describe_device()
        self._flush = CacheFlush(self._device.l2_bytes)
        self._held: dict[KernelShape, _OpenShape] = {}  # the one opened last comes last
        self._open_shape: _OpenShape | None = None
        self._clock: LaunchClock | None = None
        self._ready: dict[KernelConfig, LaunchClock] = {}
        self._monitor = DeviceMonitor(self._device.uuid)

    def __call__(self, request: object) -> object:  # noqa: PLR0911 - one for each request
        """The answer to a request."""
        match request:
            case Describe():
                torch.cuda.synchronize()
                return Description(self._device, self._environment())
            case Consult(shape):
                forced = self._provider.forced(shape, self._device.target)
                return Advice(self._provider.default(shape), dict(forced))
            case Open(shape):
                self._open(shape)
                return None
            case Start(shape, config, samples):
                self._open(shape)
                return self._start(config, samples)
            case More(samples):
                return self._more(samples)
            case Prepare(config):
                return self._prepare(config)
            case TakeTurns(orders):
                return self._take_turns(orders)
            case MeasureCeilings():
                return _measure_ceilings(self._device.l2_bytes)
        raise ValueError(f"cannot answer {request!r} now")

    def _environment(self) -> Environment:
        return Environment(
            gpu=self._device.name,
            provider=self._provider.name,
            provider_version=self._provider.version,
            torch=torch.__version__,
            triton=triton.__version__,
            driver=driver_version(),
        )

    def _open(self, shape: KernelShape) -> None:
        self._clock = None  # its graph goes before the next is captured, or other inputs come
        self._ready.clear()
        held = self._held.pop(shape, None)
        if held is None:
            self._make_room(self._bytes_of(shape))
            held = _OpenShape(shape, self._provider, self._device, self._flush)
        self._held[shape] = self._open_shape = held

    def _bytes_of(self, shape: KernelShape) -> int:
        """Size of all weight sets of a shape that is not held yet."""
        pair = self._provider.runs_pair(shape)
        sets = _weight_sets(shape, self._device.memory_bytes, pair=pair)
        return sets * weight_set_bytes(shape, pair=pair)

    def _make_room(self, needed_bytes: int) -> None:
        """Drop the shapes opened longest ago, until the inputs of another have room beside them."""
        limit_bytes = self._device.memory_bytes * _WEIGHT_SHARE
        while self._held and (
            len(self._held) >= _MOST_HELD
            or sum(each.weight_bytes for each in self._held.values()) > limit_bytes
            or _usable_bytes() < _ROOM * needed_bytes
        ):
            del self._held[next(iter(self._held))]

    def _start(self, config: KernelConfig, samples: int) -> Started | Failure:
        checked = self._checked_clock(config)
        if isinstance(checked, Failure):
            return checked
        relative_error, self._clock = checked
        taken = self._more(samples)
        return taken if isinstance(taken, Failure) else Started(relative_error, taken)

    def _more(self, samples: int) -> tuple[float, ...] | Failure:
        if self._clock is None:
            raise ValueError("no configuration is started")
        try:
            return tuple(self._clock.samples_us(samples))
        except _LAUNCH_ERRORS as error:
            return _failure(error)

    def _prepare(self, config: KernelConfig) -> Failure | None:
        self._clock = None
        checked = self._checked_clock(config)
        if isinstance(checked, Failure):
            return checked
        self._ready[config] = checked[1]
        return None

    def _take_turns(self, orders: tuple[tuple[KernelConfig, ...], ...]) -> Turns:
        samples: dict[KernelConfig, list[float]] = {config: [] for config in orders[0]}
        for config in itertools.chain(*orders):
            samples[config].append(self._ready[config].sample_us())
        return Turns({c: tuple(taken) for c, taken in samples.items()}, self._monitor.state())

    def _checked_clock(self, config: KernelConfig) -> tuple[float, LaunchClock] | Failure:
        """Check a configuration of the open shape; see ``_OpenShape.checked_clock``."""
        if self._open_shape is None:
            raise ValueError("no shape is open")
        try:
            return self._open_shape.checked_clock(config)
        except _LAUNCH_ERRORS as error:
            return _failure(error)


class _OpenShape:
    """The inputs of one shape, and what its launches must leave in the output.

    Attributes:
        weight_bytes: Size of all its weight sets.
    """

    def __init__(
        self, shape: KernelShape, kernels: KernelProvider, device: Device, flush: CacheFlush
    ) -> None:
        self._kernels, self._flush = kernels, flush
        pair = kernels.runs_pair(shape)
        self._inputs = rotating_inputs(shape, device.memory_bytes, pair=pair)
        self.weight_bytes = len(self._inputs.weight_sets) * weight_set_bytes(shape, pair=pair)
        self._expected = expect(self._inputs)

    def checked_clock(self, config: KernelConfig) -> tuple[float, LaunchClock] | Failure:
        """Launch once and compare with the reference: the relative error and a clock if right."""
        check = check_result(partial(self._launch_whole, config), self._inputs, self._expected)
        if check.problem:
            return Failure(Outcome.WRONG_RESULT, check.problem, check.relative_error)
        clock = LaunchClock(
            lambda number: self._launch(config, number),
            weight_sets=len(self._inputs.weight_sets),
            flush=self._flush,
        )
        return check.relative_error, clock

    def _launch(self, config: KernelConfig, weight_set: int) -> None:
        self._kernels.launch(self._inputs, config, weight_set)

    def _launch_whole(self, config: KernelConfig) -> None:
        """Launch with the first weight set, and bring the whole result into the output."""
        self._launch(config, 0)
        self._kernels.collect(self._inputs, config)


def rotating_inputs(shape: KernelShape, memory_bytes: int, *, pair: bool = False) -> Inputs:
    """Inputs on the device, with the weight sets that its memory has room for.

    Args:
        shape: The shape.
        memory_bytes: Size of the device's memory.
        pair: As for ``make_inputs``.
    """
    sets = _weight_sets(shape, memory_bytes, pair=pair)
    return _inputs_that_fit(shape, sets, pair=pair)


def _weight_sets(shape: KernelShape, memory_bytes: int, *, pair: bool) -> int:
    room = int(memory_bytes * _WEIGHT_SHARE) // weight_set_bytes(shape, pair=pair)
    return max(1, min(_WEIGHT_SETS, room))


def _inputs_that_fit(shape: KernelShape, weight_sets: int, *, pair: bool) -> Inputs:
    """Inputs with fewer weight sets where memory runs out: others may be using the device."""
    try:
        return make_inputs(shape, device="cuda", weight_sets=weight_sets, seed=_SEED, pair=pair)
    except torch.cuda.OutOfMemoryError:
        if weight_sets == 1:
            raise
    torch.cuda.empty_cache()
    return _inputs_that_fit(shape, weight_sets // 2, pair=pair)


def _usable_bytes() -> int:
    """Memory that tensors can be made in: free on the device, or kept by torch and unused."""
    free_bytes, _ = torch.cuda.mem_get_info()
    return free_bytes + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def _measure_ceilings(l2_bytes: int) -> Ceilings:
    """What plain PyTorch reaches on the device; the memory is given back afterwards."""
    ceilings = Ceilings(_copy_bytes_per_s(_COPY_FACTOR * l2_bytes), _matmul_flops_per_s())
    torch.cuda.empty_cache()
    return ceilings


def _copy_bytes_per_s(size_bytes: int) -> float:
    """Bytes read and written per second while a buffer of that size is copied."""
    source = torch.randn(size_bytes // 4, dtype=torch.float32, device="cuda")  # (elements,)
    target = torch.empty_like(source)  # (elements,)
    return 2 * source.nbytes / _median_s(lambda: target.copy_(source))


def _matmul_flops_per_s() -> float:
    """Operations per second of a square matrix product on random numbers."""
    side = _MATMUL_SIDE
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    out = torch.empty_like(a)  # (side, side)
    return 2 * side**3 / _median_s(lambda: torch.mm(a, b, out=out))


def _median_s(enqueue: Callable[[], object]) -> float:
    """Median of the seconds that the device takes for what is enqueued, after warming up."""
    for _ in range(_CEILING_WARM_UPS):
        enqueue()
    events = []
    for _ in range(_CEILING_RUNS):
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            for _ in range(2)
        )
        start.record()
        enqueue()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    median_ms: float = statistics.median(start.elapsed_time(end) for start, end in events)
    return median_ms / 1000


#: What a launch may raise: all of torch's CUDA errors, such as out of memory, are RuntimeErrors.
_LAUNCH_ERRORS = (RuntimeError, OutOfResources)


def _failure(error: Exception) -> Failure:
    return Failure(Outcome.LAUNCH_FAILED, one_line(error), is_lost=_context_is_lost())


def _context_is_lost() -> bool:
    """Whether the last error has left the CUDA context unusable."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
