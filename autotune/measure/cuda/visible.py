"""The GPUs of this machine that this process may use, and whether others are using them.

The driver is asked, not torch, whose import takes seconds. This module only reads.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

#: NVML; None where nvidia-ml-py, which is installed beside autotune, was left out.
pynvml: Any = None
with contextlib.suppress(ImportError):
    pynvml = importlib.import_module("pynvml")

#: The variable that says which GPUs a process may use, in their order.
VARIABLE = "CUDA_VISIBLE_DEVICES"

#: A GPU on which others have more memory than this, bytes, or which was busy for more than this
#: share of the last moments, percent, is left alone. A desktop has less of both.
_MUCH_BYTES = 1 << 30
_MUCH_PERCENT = 10

#: Bytes of a GPU's name that the driver writes at most.
_LONGEST_NAME = 256


@dataclass(frozen=True, slots=True)
class VisibleDevice:
    """A GPU, or a MIG slice of one.

    Attributes:
        number: Its place among those that this process may use, from 0, as torch counts.
        name: Its name.
        uuid: Such as ``GPU-5f3c1a2b-...`` or ``MIG-...``.
        variable: What ``CUDA_VISIBLE_DEVICES`` must be for a process that is to use it alone.
    """

    number: int
    name: str
    uuid: str
    variable: str

    @property
    def label(self) -> str:
        """Such as ``GPU 0 (5f3c1a2b)``: its number, and what tells it from those of other hosts."""
        return device_label(self.number, self.uuid)


def device_label(number: int, uuid: str) -> str:
    """How a GPU is called, by its number and its UUID."""
    return f"GPU {number} ({uuid.removeprefix('GPU-').removeprefix('MIG-')[:8]})"


class Unknown(Exception):
    """NVML is not installed, or cannot be used; the message is the reason."""


def visible_devices() -> list[VisibleDevice]:
    """The GPUs that this process may use, in the order of ``CUDA_VISIBLE_DEVICES``.

    A process sees only one MIG slice, so that slices are looked for with NVML.
    """
    listed = os.environ.get(VARIABLE)
    entries = None if listed is None else [each.strip() for each in listed.split(",")]
    try:
        slices = dict(_slices())
    except Unknown:
        slices = {}
    if entries is not None and any(entry.startswith("MIG-") for entry in entries):
        known = [(slices[entry], entry, entry) for entry in entries if entry in slices]
        if known:
            return [VisibleDevice(n, *each) for n, each in enumerate(known)]
    whole = list(_by_driver())
    if entries is None:
        found = [each for each in enumerate(whole) if not each[1][1].startswith("MIG-")]
        those = [(name, uuid, str(number)) for number, (name, uuid) in found]
        those += [(name, uuid, uuid) for uuid, name in slices.items()]
    else:
        those = [(*each, entry) for each, entry in zip(whole, entries, strict=False)]
    return [VisibleDevice(number, *each) for number, each in enumerate(those)]


def seen_text() -> str:
    """Which GPUs there are, for messages: ``the GPUs here are GPU 0 (NVIDIA H100 80GB HBM3)``."""
    devices = visible_devices()
    if not devices:
        return "no CUDA GPU is here"
    known = ", ".join(f"{each.number} ({each.name})" for each in devices)
    return f"the GPUs here are {known}" if len(devices) > 1 else f"the only GPU here is {known}"


def use_by_others(device: VisibleDevice) -> str:
    """How much others use a GPU, such as ``41.2 GiB of memory in use``; empty if they hardly do.

    To be asked before this run uses the GPU itself. What this process has there does not count.

    Raises:
        Unknown: NVML does not say.
    """
    nvml = _nvml()
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(device.uuid)
        used = _used_bytes(nvml, handle)
    except nvml.NVMLError as error:
        raise Unknown(str(error)) from None
    try:
        percent = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except nvml.NVMLError:  # a MIG slice has none
        percent = 0
    texts = [f"{used / 2**30:.1f} GiB of memory in use"] if used > _MUCH_BYTES else []
    texts += [f"{percent} % busy"] if percent > _MUCH_PERCENT else []
    return ", ".join(texts)


def _used_bytes(nvml: Any, handle: Any) -> int:  # noqa: ANN401 - NVML's own types
    """Memory in use by other processes, without what the driver keeps for itself."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except (nvml.NVMLError, AttributeError, TypeError):  # an older driver, or an older pynvml
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    mine = 0
    try:
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            mine += (process.usedGpuMemory or 0) if process.pid == os.getpid() else 0
    except nvml.NVMLError:
        pass
    return max(0, int(memory.used) - mine)


def _slices() -> Iterator[tuple[str, str]]:
    """The UUID and the name of every MIG slice that NVML shows.

    Raises:
        Unknown: NVML does not say.
    """
    nvml = _nvml()
    try:
        for number in range(nvml.nvmlDeviceGetCount()):
            parent = nvml.nvmlDeviceGetHandleByIndex(number)
            for place in range(_most_slices(nvml, parent)):
                try:
                    handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, place)
                except nvml.NVMLError:  # no slice has this place
                    continue
                yield _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError as error:
        raise Unknown(str(error)) from None


def _most_slices(nvml: Any, parent: Any) -> int:  # noqa: ANN401 - NVML's own types
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(parent)
        return int(nvml.nvmlDeviceGetMaxMigDeviceCount(parent)) if current else 0
    except nvml.NVMLError:  # it cannot be divided
        return 0


def _nvml() -> Any:  # noqa: ANN401 - a module without types
    """NVML, ready to be asked.

    Raises:
        Unknown: It is not installed, or cannot be used.
    """
    if pynvml is None:
        raise Unknown("nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise Unknown(str(error)) from None
    return pynvml


def _by_driver() -> Sequence[tuple[str, str]]:
    """The name and the UUID of every GPU, as the driver counts them for this process."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [_described(driver, number) for number in range(count.value)]


def _described(driver: ctypes.CDLL, number: int) -> tuple[str, str]:
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(_LONGEST_NAME)
    raw = (ctypes.c_ubyte * 16)()
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, _LONGEST_NAME, device)
    # The first gives the UUID of a MIG slice; the other, in older drivers, that of its GPU.
    ask = getattr(driver, "cuDeviceGetUuid_v2", None) or driver.cuDeviceGetUuid
    ask(ctypes.byref(raw), device)
    text = name.value.decode(errors="replace")
    return text, f"{'MIG' if ' MIG ' in text else 'GPU'}-{UUID(bytes=bytes(raw))}"


def _text(value: str | bytes) -> str:
    """Older releases of pynvml give bytes."""
    return value.decode() if isinstance(value, bytes) else value
