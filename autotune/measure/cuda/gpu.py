"""What the driver says of a device's clocks and heat. Reads only; sets nothing, ever."""

from __future__ import annotations

import contextlib
from typing import Any

import pynvml

from autotune.measure._base import DeviceState

#: NVML's reasons that hold clocks below what the device would choose (nvml.h, "clocks event
#: reasons"). Idling and clocks that somebody set are none of them.
_THROTTLES = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


class DeviceMonitor:
    """Reads one device's state; answers None where NVML is not to be had."""

    def __init__(self, uuid: str) -> None:
        """Find the device.

        Args:
            uuid: As PyTorch gives it, without NVML's ``GPU-`` in front.
        """
        self._handle: Any = None
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")

    def state(self) -> DeviceState | None:
        """Clocks, temperature and throttle reasons now."""
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


def throttle_reasons(bits: int) -> tuple[str, ...]:
    """Names of the throttle reasons in NVML's bit mask."""
    return tuple(name for bit, name in _THROTTLES.items() if bits & bit)
