"""A kernel provider with faults: some of its configurations do what a kernel must not do."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from enum import IntEnum

import torch
import triton
import triton.language as tl

from autotune.launch.config import KernelConfig
from autotune.launch.environment import Target
from autotune.launch.shape import KernelShape
from autotune.measure.kernels import CompiledKernel
from autotune.measure.kernels.builtin import BuiltinProvider
from autotune.measure.kernels.inputs import Inputs


class Fault(IntEnum):
    """What goes wrong, as the ``group_size_m`` that asks for it."""

    ILLEGAL_READ = 101
    ENDLESS_LOOP = 102
    EXIT = 103
    OUT_OF_MEMORY = 104
    NAN = 105
    WRITE_OUTSIDE = 106
    ENDLESS_COMPILE = 107


@triton.jit
def _read(pointer, offset):
    tl.store(pointer, tl.load(pointer + offset))


@triton.jit
def _loop(pointer):
    while tl.load(pointer, volatile=True) == 0.0:
        pass


class FaultyProvider(BuiltinProvider):
    """The builtin kernels, and the faults."""

    def compile(self, shape: KernelShape, config: KernelConfig, target: Target) -> CompiledKernel:
        if config.group_size_m == Fault.ENDLESS_COMPILE:
            time.sleep(3600)
        # No fingerprint: a faulty launch has the binary of a good one, but is not the same launch.
        return replace(super().compile(shape, _mended(config), target), fingerprint=None)

    def launch(self, inputs: Inputs, config: KernelConfig, weight_set: int) -> None:
        super().launch(inputs, _mended(config), weight_set)
        match config.group_size_m:
            case Fault.ILLEGAL_READ:
                _read[(1,)](inputs.out, 1 << 40)
            case Fault.ENDLESS_LOOP:
                _loop[(1,)](torch.zeros(1, device="cuda"))
            case Fault.EXIT:
                os._exit(3)
            case Fault.OUT_OF_MEMORY:
                torch.empty(1 << 45, dtype=torch.uint8, device="cuda")
            case Fault.NAN:
                inputs.out.view(-1)[7] = math.nan
            case Fault.WRITE_OUTSIDE:
                inputs.margins[1][0] = 1.0


def _mended(config: KernelConfig) -> KernelConfig:
    is_faulty = config.group_size_m in set(Fault)
    return replace(config, group_size_m=8) if is_faulty else config
