"""The process that owns the GPU: it launches, checks and times. It never compiles."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
from triton.runtime.errors import OutOfResources

from autotune.environment import Device, Environment, describe_device, driver_version
from autotune.kernels import KernelProvider, provider
from autotune.kernels.inputs import make_inputs, weight_set_bytes
from autotune.kernels.reference import Check, check_result, expect
from autotune.measure._base import Outcome
from autotune.measure.protocol import (
    Advice,
    Compare,
    Consult,
    Describe,
    Description,
    Failure,
    More,
    Open,
    Start,
    Started,
)
from autotune.measure.timer import CacheFlush, LaunchTimer
from autotune.measure.worker import one_line
from autotune.shapes import KernelShape
from autotune.space import KernelConfig

#: Weight sets that launches rotate over, if the memory holds them.
_WEIGHT_SETS = 32

#: Share of the device's memory that weight sets may take.
_WEIGHT_SHARE = 0.25

#: Seed of inputs: the same shape is always timed on the same numbers.
_SEED = 2026

#: Rounds of a comparison. 40 pairs that spread by 1 % give an interval of about ±0.4 %.
_COMPARE_ROUNDS = 40


class DeviceServer:
    """Answers the requests of ``protocol``; holds the inputs of one shape at a time."""

    def __init__(self, provider_name: str) -> None:
        self._provider = provider(provider_name)
        self._device = describe_device()
        self._flush = CacheFlush(self._device.l2_bytes)
        self._bench: _ShapeBench | None = None
        self._timer: LaunchTimer | None = None

    def __call__(self, request: object) -> object:
        """The answer to a request."""
        match request:
            case Describe():
                return Description(self._device, self._environment())
            case Consult(shape):
                forced = self._provider.forced(shape, self._device.capability)
                return Advice(self._provider.default(shape), dict(forced))
            case Open(shape):
                self._timer = self._bench = None  # give the memory back first
                self._bench = _ShapeBench(shape, self._provider, self._device, self._flush)
                return None
            case Start(config, samples):
                return self._start(config, samples)
            case More(samples) if self._timer is not None:
                return tuple(self._timer.samples_us(samples))
            case Compare(configs) if self._bench is not None:
                self._timer = None
                return self._bench.compare(configs)
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

    def _start(self, config: KernelConfig, samples: int) -> Started | Failure:
        if self._bench is None:
            raise ValueError("no shape is open")
        self._timer = None  # its graph goes before the next is captured
        try:
            check = self._bench.check(config)
            if check.problem:
                return Failure(Outcome.WRONG_RESULT, check.problem, check.relative_error)
            self._timer = self._bench.timer(config)
            return Started(check.relative_error, tuple(self._timer.samples_us(samples)))
        except (RuntimeError, OutOfResources) as error:  # torch's CUDA errors are RuntimeErrors
            return Failure(Outcome.LAUNCH_FAILED, one_line(error), is_lost=_context_is_lost())


class _ShapeBench:
    """The inputs of a shape and what comes out of them."""

    def __init__(
        self, shape: KernelShape, kernels: KernelProvider, device: Device, flush: CacheFlush
    ) -> None:
        self._kernels, self._flush = kernels, flush
        room = int(device.memory_bytes * _WEIGHT_SHARE) // weight_set_bytes(shape)
        self._weight_sets = max(1, min(_WEIGHT_SETS, room))
        self._inputs = make_inputs(shape, device="cuda", weight_sets=self._weight_sets, seed=_SEED)
        self._expected = expect(self._inputs)

    def check(self, config: KernelConfig) -> Check:
        """Launch once and compare with the reference."""
        return check_result(lambda: self._launch(config, 0), self._inputs, self._expected)

    def timer(self, config: KernelConfig) -> LaunchTimer:
        """A timer of the configuration, which has been launched before."""
        return LaunchTimer(
            lambda number: self._launch(config, number),
            weight_sets=self._weight_sets,
            flush=self._flush,
        )

    def compare(
        self, configs: tuple[KernelConfig, ...]
    ) -> Mapping[KernelConfig, tuple[float, ...]]:
        """One sample of each configuration in turn, again and again."""
        timers = {}
        for config in configs:
            self._launch(config, 0)
            timers[config] = self.timer(config)
        samples: dict[KernelConfig, list[float]] = {config: [] for config in timers}
        for _ in range(_COMPARE_ROUNDS):
            for config, timer in timers.items():
                samples[config].extend(timer.samples_us(1))
        return {config: tuple(taken) for config, taken in samples.items()}

    def _launch(self, config: KernelConfig, weight_set: int) -> None:
        self._kernels.launch(self._inputs, config, weight_set)


def _context_is_lost() -> bool:
    """Whether an error was of the kind that leaves the CUDA context unusable."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
