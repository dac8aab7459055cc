from __future__ import annotations

import pytest

from autotune.measure.cuda.gpu import DeviceMonitor, throttle_reasons


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
