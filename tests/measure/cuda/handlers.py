"""Handlers that tests run in worker processes, which import them by name.

Each such process imports this module and what it imports, so that is little.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.errors import InputError, KernelsUnusable
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Device, Environment
from autotune.launch.op import LoraOp
from autotune.measure import DeviceState, Outcome
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
from autotune.measure.cuda.worker import Handler
from autotune.measure.measurement import Ceilings
from tests.recordings import ENVIRONMENT

#: What the fake device does wrong, as the ``num_warps`` that makes it do so.
CRASHES, HANGS, LIES, LOSES_CONTEXT, FAILS = 1, 2, 8, 16, 32


#: What the fake device reaches: 1 TB/s and 1 PFLOP/s.
CEILINGS = Ceilings(1e12, 1e15)


def obedient() -> Handler:
    """A handler that does what its request says."""

    def handle(request: tuple[str, Any]) -> object:
        verb, value = request
        match verb:
            case "echo":
                return value
            case "sleep":
                time.sleep(value)
            case "exit":
                os._exit(value)
            case "raise":
                raise ValueError(value)
            case "environment":
                return os.environ.get(value)
            case "refuse":
                raise InputError(value)
            case "spawn":  # a child that would outlive its parent
                child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
                Path(value).write_text(str(child.pid))
                time.sleep(600)
        return None

    return handle


def unusable() -> Handler:
    """Raises an error of our own, so that there is no handler."""
    raise KernelsUnusable("no kernels today")


def never_made() -> Handler:
    raise RuntimeError("no such device\nwith details")


class FakeDevice:
    """Answers like the device's process; a latency is the configuration's ``block_k``."""

    def __init__(self, _provider: str) -> None:
        self._config: KernelConfig | None = None

    def __call__(self, request: object) -> object:  # noqa: PLR0911 - one for each request
        match request:
            case Describe():
                device = Device(
                    name=ENVIRONMENT["gpu"],
                    capability=(9, 0),
                    multiprocessors=132,
                    shared_memory_bytes=232448,
                    l2_bytes=1 << 20,
                    memory_bytes=1 << 30,
                    uuid="0",
                )
                return Description(device, Environment.from_mapping(ENVIRONMENT))
            case Consult(shape):
                table = {"block_m": 32, "block_n": 16, "block_k": 64, "num_warps": 4}
                table |= {"num_stages": 2} | ({"split_k": 8} if shape.op is LoraOp.SHRINK else {})
                return Advice(KernelConfig.from_mapping(shape.op, table), {})
            case Open():
                return None
            case Start(_, config, samples):
                return self._start(config, samples)
            case More(samples):
                return self._samples(samples)
            case Prepare(config):
                started = self._start(config, 1)
                return started if isinstance(started, Failure) else None
            case TakeTurns(orders):
                state = DeviceState(sm_clock_mhz=1980, memory_clock_mhz=2619, temperature_c=40)
                taken = {config: (float(config.block_k),) * len(orders) for config in orders[0]}
                return Turns(taken, state)
            case MeasureCeilings():
                return CEILINGS
        raise ValueError(f"unknown request {request!r}")

    def _start(self, config: KernelConfig, samples: int) -> Started | Failure:
        self._config = config
        if config.num_warps == CRASHES:
            os._exit(139)
        if config.num_warps == HANGS:
            time.sleep(600)
        if config.num_warps == LIES:
            return Failure(Outcome.WRONG_RESULT, "relative error 1 exceeds 0.001", 1.0)
        if config.num_warps == LOSES_CONTEXT:
            return Failure(Outcome.LAUNCH_FAILED, "illegal memory access", is_lost=True)
        return Started(1e-6, self._samples(samples))

    def _samples(self, count: int) -> tuple[float, ...]:
        return (float(self._config.block_k),) * count if self._config else ()


class HotDevice(FakeDevice):
    """A fake device that holds its clocks down in the first comparison after every start."""

    def __init__(self, provider: str) -> None:
        super().__init__(provider)
        self._is_hot = True

    def __call__(self, request: object) -> object:
        answer = super().__call__(request)
        if isinstance(answer, Turns) and answer.state and self._is_hot:
            self._is_hot = False
            state = replace(answer.state, throttle_reasons=("power cap",))
            return Turns(answer.samples_us, state)
        return answer


#: Where a made-up GPU keeps what has become of it, for all its processes.
FOLDER = "TEST_GPU_FOLDER"

ECC = "RuntimeError: CUDA error: uncorrectable ECC error encountered"
FAULT = "RuntimeError: CUDA error: unspecified launch failure"


class FragileDevice(FakeDevice):
    """Fails as its folder says.

    ``plan`` there has what fails next, one word a line:
    ``gone``: the GPU falls off the bus, in the middle of a launch.
    ``ecc``: one launch meets an error of the memory, and then all is well.
    ``inputs``: the same while inputs are made.
    ``turns``: the GPU falls off the bus while finalists are timed.
    """

    def __init__(self, provider: str) -> None:
        super().__init__(provider)
        self._folder = Path(os.environ[FOLDER]) / os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        self._check()
        with (self._folder / "started").open("a") as file:
            file.write("x")

    def __call__(self, request: object) -> object:
        match request:
            case Describe():
                self._check()
            case Start():
                if self._fails("ecc"):
                    return Failure(Outcome.LAUNCH_FAILED, ECC, is_lost=True)
                if self._fails("gone"):
                    (self._folder / "is gone").touch()
                    return Failure(Outcome.LAUNCH_FAILED, FAULT, is_lost=True)
            case Open():
                if self._fails("inputs"):
                    raise RuntimeError(ECC.partition(": ")[2])
            case TakeTurns():
                if self._fails("turns"):
                    (self._folder / "is gone").touch()
                    raise RuntimeError(FAULT.partition(": ")[2])
        return super().__call__(request)

    def _check(self) -> None:
        if (self._folder / "is gone").exists():
            raise RuntimeError("No CUDA GPUs are available")

    def _fails(self, what: str) -> bool:
        plan = self._folder / "plan"
        words = plan.read_text().split()
        if what not in words[:1]:
            return False
        plan.write_text("\n".join(words[1:]))
        return True


def make_fragile(provider: str) -> FragileDevice:
    return FragileDevice(provider)
