"""The GPU of this machine: what it is, and its clocks and temperature as the driver reads them.

This module only reads. It never changes a setting of the GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Any

from autotune.launch.environment import Device
from autotune.measure.cuda.visible import pynvml
from autotune.measure.measurement import DeviceState

#: NVML's reasons that hold clocks below what the device would choose (nvml.h, "clocks event
#: reasons"). Idling is left out, and so are clocks that somebody set.
_THROTTLES = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


class DeviceMonitor:
    """Reads one device's state; answers None where NVML is not available."""

    def __init__(self, uuid: str) -> None:
        """Find the device.

        Args:
            uuid: As PyTorch gives it, without NVML's ``GPU-`` in front.
        """
        self._handle: Any = None
        if pynvml is None:
            return
        for find in (_whole, _of_slice):
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._handle = find(uuid)
                return

    def state(self) -> DeviceState | None:
        """Clocks, temperature and throttle reasons now; None where NVML cannot tell."""
        handle = self._handle
        if handle is None:
            return None
        try:
            reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
            return DeviceState(
                sm_clock_mhz=pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
                memory_clock_mhz=pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
                temperature_c=pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
                throttle_reasons=throttle_reasons(reasons),
            )
        except pynvml.NVMLError:
            return None


def _whole(uuid: str) -> Any:  # noqa: ANN401 - NVML's own type
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")


def _of_slice(uuid: str) -> Any:  # noqa: ANN401 - NVML's own type
    """The GPU that a MIG slice is a part of: its clocks and its heat are those of the slice."""
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
    return pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)


#: What CUDA says where the device itself has failed, and no kernel is to blame.
_OF_THE_DEVICE = (
    "uncorrectable ecc error",
    "hardware error",
    "gpu is lost",
    "fallen off the bus",
    "no cuda-capable device",
)


def blames_device(reason: str) -> bool:
    """Whether an error is the device's, and not that of what was launched."""
    return any(text in reason.lower() for text in _OF_THE_DEVICE)


def throttle_reasons(bits: int) -> tuple[str, ...]:
    """Names of the throttle reasons in NVML's bit mask."""
    return tuple(name for bit, name in _THROTTLES.items() if bits & bit)


def has_gpu() -> bool:
    """Whether a CUDA device can be used. Makes no CUDA context.

    NVIDIA's driver is asked, since to import torch takes seconds. Torch is asked on AMD's devices.
    """
    if Path("/dev/kfd").exists():  # AMD's
        import torch

        return torch.cuda.is_available()
    return _torch_has_cuda() and _devices() > 0


def _devices() -> int:
    """CUDA devices that this process may use, as ``CUDA_VISIBLE_DEVICES`` says."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return 0
    except OSError:
        return 0
    return count.value


def _torch_has_cuda() -> bool:
    """Whether the installed torch is built for CUDA, as the file of its version says."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    path = Path(found.origin).with_name("version.py")
    spec = importlib.util.spec_from_file_location("torch_version", path)
    if spec is None or spec.loader is None or not path.exists():
        return False
    version = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(version)
    return getattr(version, "cuda", None) is not None


def describe_device() -> Device:
    """The current CUDA device. Makes a CUDA context: call it in the process that launches."""
    import torch
    import triton

    number = torch.cuda.current_device()
    facts = torch.cuda.get_device_properties(number)
    # Before a launch, Triton compares a kernel's shared memory with this limit.
    limits = triton.runtime.driver.active.utils.get_device_properties(number)
    return Device(
        name=facts.name,
        capability=(facts.major, facts.minor),
        multiprocessors=facts.multi_processor_count,
        shared_memory_bytes=limits["max_shared_mem"],
        l2_bytes=facts.L2_cache_size,
        memory_bytes=facts.total_memory,
        uuid=str(facts.uuid),
    )


@functools.lru_cache
def driver_version() -> str:
    """The NVIDIA driver's version, as NVML gives it; ``unknown`` where NVML is not available."""
    if pynvml is None:
        return "unknown"
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return "unknown"
