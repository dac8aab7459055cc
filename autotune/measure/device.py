"""The process that owns the GPU: it launches, checks and times. It never compiles."""

from __future__ import annotations

import torch
import triton
from triton.runtime.errors import OutOfResources

from autotune.environment import Device, Environment, describe_device, driver_version
from autotune.kernels import KernelProvider, provider
from autotune.kernels.inputs import Inputs, make_inputs, weight_set_bytes
from autotune.kernels.reference import check_result, expect
from autotune.measure._base import Outcome
from autotune.measure.nvml import DeviceMonitor
from autotune.measure.protocol import (
    Advice,
    Consult,
    Describe,
    Description,
    Failure,
    More,
    Open,
    Prepare,
    Start,
    Started,
    TakeTurns,
    Turns,
)
from autotune.measure.timer import CacheFlush, LaunchTimer, sample_in_turn
from autotune.measure.worker import one_line
from autotune.shapes import KernelShape
from autotune.space import KernelConfig

#: Weight sets that launches rotate over, if the memory holds them.
_WEIGHT_SETS = 32

#: Share of the device's memory that weight sets may take.
_WEIGHT_SHARE = 0.25

#: Seed of inputs: the same shape is always timed on the same numbers.
_SEED = 2026


class DeviceServer:
    """Answers the requests of ``protocol``; holds the inputs of one shape at a time."""

    def __init__(self, provider_name: str) -> None:
        self._provider = provider(provider_name)
        self._device = describe_device()
        self._flush = CacheFlush(self._device.l2_bytes)
        self._bench: _ShapeBench | None = None
        self._timer: LaunchTimer | None = None
        self._ready: dict[KernelConfig, LaunchTimer] = {}
        self._monitor = DeviceMonitor(self._device.uuid)

    def __call__(self, request: object) -> object:  # noqa: PLR0911 - one for each request
        """The answer to a request."""
        match request:
            case Describe():
                return Description(self._device, self._environment())
            case Consult(shape):
                forced = self._provider.forced(shape, self._device.capability)
                return Advice(self._provider.default(shape), dict(forced))
            case Open(shape):
                self._open(shape)
                return None
            case Start(config, samples):
                return self._start(config, samples)
            case More(samples):
                return self._more(samples)
            case Prepare(config):
                return self._prepare(config)
            case TakeTurns(orders):
                return self._take_turns(orders)
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
        self._timer = self._bench = None  # give the memory back first
        self._ready.clear()
        self._bench = _ShapeBench(shape, self._provider, self._device, self._flush)

    def _start(self, config: KernelConfig, samples: int) -> Started | Failure:
        self._timer = None  # its graph goes before the next is captured
        try:
            checked = self._bench_here().checked_timer(config)
            if isinstance(checked, Failure):
                return checked
            relative_error, self._timer = checked
            return Started(relative_error, tuple(self._timer.samples_us(samples)))
        except _LAUNCH_ERRORS as error:
            return _failure(error)

    def _more(self, samples: int) -> tuple[float, ...] | Failure:
        if self._timer is None:
            raise ValueError("no configuration is started")
        try:
            return tuple(self._timer.samples_us(samples))
        except _LAUNCH_ERRORS as error:
            return _failure(error)

    def _prepare(self, config: KernelConfig) -> Failure | None:
        self._timer = None
        try:
            checked = self._bench_here().checked_timer(config)
        except _LAUNCH_ERRORS as error:
            return _failure(error)
        if isinstance(checked, Failure):
            return checked
        self._ready[config] = checked[1]
        return None

    def _take_turns(self, orders: tuple[tuple[KernelConfig, ...], ...]) -> Turns:
        samples: dict[KernelConfig, list[float]] = {config: [] for config in orders[0]}
        for order in orders:
            timers = [self._ready[config] for config in order]
            for config, sample in zip(order, sample_in_turn(timers, self._flush), strict=True):
                samples[config].append(sample)
        return Turns({c: tuple(taken) for c, taken in samples.items()}, self._monitor.state())

    def _bench_here(self) -> _ShapeBench:
        if self._bench is None:
            raise ValueError("no shape is open")
        return self._bench


class _ShapeBench:
    """The inputs of a shape and what comes out of them."""

    def __init__(
        self, shape: KernelShape, kernels: KernelProvider, device: Device, flush: CacheFlush
    ) -> None:
        self._kernels, self._flush = kernels, flush
        room = int(device.memory_bytes * _WEIGHT_SHARE) // weight_set_bytes(shape)
        self._inputs = _inputs_that_fit(shape, max(1, min(_WEIGHT_SETS, room)))
        self._expected = expect(self._inputs)

    def checked_timer(self, config: KernelConfig) -> tuple[float, LaunchTimer] | Failure:
        """Launch once and compare with the reference; the error and a timer if it is right."""
        check = check_result(lambda: self._launch(config, 0), self._inputs, self._expected)
        if check.problem:
            return Failure(Outcome.WRONG_RESULT, check.problem, check.relative_error)
        timer = LaunchTimer(
            lambda number: self._launch(config, number),
            weight_sets=len(self._inputs.weight_sets),
            flush=self._flush,
        )
        return check.relative_error, timer

    def _launch(self, config: KernelConfig, weight_set: int) -> None:
        self._kernels.launch(self._inputs, config, weight_set)


def _inputs_that_fit(shape: KernelShape, weight_sets: int) -> Inputs:
    """Inputs with as many weight sets as the memory holds: others may be using the device."""
    try:
        return make_inputs(shape, device="cuda", weight_sets=weight_sets, seed=_SEED)
    except torch.cuda.OutOfMemoryError:
        if weight_sets == 1:
            raise
    torch.cuda.empty_cache()
    return _inputs_that_fit(shape, weight_sets // 2)


#: What a launch may raise: torch's CUDA errors, out of memory among them, are RuntimeErrors.
_LAUNCH_ERRORS = (RuntimeError, OutOfResources)


def _failure(error: Exception) -> Failure:
    return Failure(Outcome.LAUNCH_FAILED, one_line(error), is_lost=_context_is_lost())


def _context_is_lost() -> bool:
    """Whether an error was of the kind that leaves the CUDA context unusable."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
