from __future__ import annotations

from collections.abc import Iterator

import pynvml
import pytest

from autotune.measure.cuda.gpu import DeviceMonitor, driver_version, throttle_reasons


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        (0x0, ()),
        (0x1, ()),  # idle
        (0x2, ()),  # somebody set the clocks
        (0x4, ("power cap",)),
        (0x8 | 0x40, ("hardware slowdown", "hardware thermal slowdown")),
        (0x20 | 0x1, ("software thermal slowdown",)),
    ],
)
def test_only_heat_and_power_count_as_throttling(bits, reasons):
    assert throttle_reasons(bits) == reasons


def test_a_device_that_nvml_does_not_know_has_no_state():
    assert DeviceMonitor("00000000-0000-0000-0000-000000000000").state() is None


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """The driver's version is asked for again, and not kept for other tests."""
    driver_version.cache_clear()
    yield
    driver_version.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_the_driver_s_version_is_the_one_that_nvml_tells(monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "580.95.05")

    assert driver_version() == "580.95.05"


@pytest.mark.usefixtures("asked_anew")
def test_without_nvml_the_driver_s_version_is_unknown(monkeypatch):
    def no_library() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_library)

    assert driver_version() == "unknown"
