"""Which GPUs a process sees, with a driver and an NVML that are made up."""
# ruff: noqa: N802 - the names of NVML's functions

from __future__ import annotations

import os
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.measure.cuda import visible
from autotune.measure.cuda.visible import Unknown, VisibleDevice, use_by_others, visible_devices

H100 = "NVIDIA H100 80GB HBM3"
SLICE = f"{H100} MIG 1g.10gb"
GIB = 1 << 30


class NVMLError(Exception):
    pass


@dataclass
class Nvml:
    """Whole GPUs by number, each with the slices that it is divided into."""

    slices: list[list[str]] = field(default_factory=list)
    used: int = 0
    percent: int | None = 0
    processes: tuple[tuple[int, int], ...] = ()
    nvmlMemory_v2: int = 2  # noqa: N815 - NVML's name
    NVMLError: type[Exception] = NVMLError
    is_old: bool = False

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(self.slices)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> list[str]:
        return self.slices[number]

    def nvmlDeviceGetMigMode(self, parent: list[str]) -> tuple[int, int]:
        if not parent:
            raise NVMLError("Not Supported")
        return (1, 1)

    def nvmlDeviceGetMaxMigDeviceCount(self, _parent: list[str]) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, parent: list[str], place: int) -> str:
        if place >= len(parent):
            raise NVMLError("Not Found")
        return parent[place]

    def nvmlDeviceGetUUID(self, handle: str) -> bytes | str:
        return handle.encode() if self.is_old else handle

    def nvmlDeviceGetName(self, _handle: str) -> bytes | str:
        return SLICE.encode() if self.is_old else SLICE

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetMemoryInfo(self, _handle: str, version: int | None = None) -> Any:
        if self.is_old and version is not None:
            raise NVMLError("Function Not Found")
        return SimpleNamespace(used=self.used)

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: str) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes]

    def nvmlDeviceGetUtilizationRates(self, _handle: str) -> Any:
        if self.percent is None:
            raise NVMLError("Not Supported")
        return SimpleNamespace(gpu=self.percent)


@pytest.fixture
def machine(monkeypatch):
    """Set up what the driver and NVML say, and ``CUDA_VISIBLE_DEVICES``."""

    def made(
        driver: list[tuple[str, str]], nvml: Nvml | None = None, variable: str | None = None
    ) -> None:
        monkeypatch.setattr(visible, "_by_driver", lambda: driver)
        monkeypatch.setattr(visible, "pynvml", nvml)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if variable is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)

    return made


def seen() -> list[tuple[int, str, str]]:
    return [(each.number, each.uuid, each.variable) for each in visible_devices()]


def test_without_the_variable_gpus_are_numbered_as_the_driver_counts_them(machine):
    machine([(H100, "GPU-a"), (H100, "GPU-b")])
    assert seen() == [(0, "GPU-a", "0"), (1, "GPU-b", "1")]


@pytest.mark.parametrize("variable", ["3,1", " 3 , 1", "GPU-d,GPU-b", "3,1,-1,0"])
def test_a_process_of_its_own_gets_the_word_that_the_variable_has_for_its_gpu(machine, variable):
    """vLLM reads whole numbers there, in some releases nothing else."""
    machine([(H100, "GPU-d"), (H100, "GPU-b")], variable=variable)
    words = [word.strip() for word in variable.split(",")]
    assert seen() == [(0, "GPU-d", words[0]), (1, "GPU-b", words[1])]


def test_slices_that_the_variable_names_are_gpus_of_their_own(machine):
    machine(
        [(SLICE, "MIG-y")],  # the driver shows the first only
        Nvml(slices=[["MIG-x", "MIG-y"], ["MIG-z"]]),
        variable="MIG-y,MIG-z,MIG-unknown",
    )
    assert seen() == [(0, "MIG-y", "MIG-y"), (1, "MIG-z", "MIG-z")]
    assert {each.name for each in visible_devices()} == {SLICE}


@pytest.mark.parametrize("is_old", [False, True])
def test_without_the_variable_slices_come_after_whole_gpus(machine, is_old):
    nvml = Nvml(slices=[[], ["MIG-x", "MIG-y"]], is_old=is_old)
    machine([(H100, "GPU-a"), (SLICE, "MIG-x")], nvml)
    assert seen() == [(0, "GPU-a", "0"), (1, "MIG-x", "MIG-x"), (2, "MIG-y", "MIG-y")]


def test_a_slice_without_nvml_is_what_the_driver_shows(machine):
    machine([(SLICE, "MIG-y")], variable="MIG-y,MIG-z")
    assert seen() == [(0, "MIG-y", "MIG-y")]


def test_a_gpu_is_called_by_its_number_and_a_part_of_its_uuid():
    whole = VisibleDevice(2, H100, "GPU-5f3c1a2b-77aa-4cce-9c25-000000000000", "2")
    part = VisibleDevice(0, SLICE, "MIG-5f3c1a2c-77aa-4cce-9c25-000000000000", "MIG-...")
    assert (whole.label, part.label) == ("GPU 2 (5f3c1a2b)", "GPU 0 (5f3c1a2c)")


@pytest.mark.parametrize(
    ("nvml", "use"),
    [
        (Nvml(used=GIB // 2, percent=4), ""),
        (Nvml(used=41 * GIB, percent=98), "41.0 GiB of memory in use, 98 % busy"),
        (Nvml(used=2 * GIB, percent=None), "2.0 GiB of memory in use"),
        (Nvml(used=2 * GIB, is_old=True), "2.0 GiB of memory in use"),
        (Nvml(percent=60), "60 % busy"),
        (Nvml(used=5 * GIB, processes=((os.getpid(), 5 * GIB), (1, 0))), ""),
    ],
)
def test_others_use_a_gpu_if_they_have_much_of_its_memory_or_of_its_time(machine, nvml, use):
    machine([], nvml)
    assert use_by_others(VisibleDevice(0, H100, "GPU-a", "0")) == use


def test_without_nvml_it_is_not_known_who_uses_a_gpu(machine):
    machine([])
    with pytest.raises(Unknown, match="nvidia-ml-py is not installed"):
        use_by_others(VisibleDevice(0, H100, "GPU-a", "0"))


def test_the_driver_is_asked_where_there_is_one():
    """Here there is none, unless this machine has a GPU."""
    assert all(name and uuid for name, uuid in visible._by_driver())
