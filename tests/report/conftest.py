"""A device with everything that a report must cope with."""

from __future__ import annotations

import pytest

from autotune.report.gather import of_database
from autotune.report.records import DeviceReport
from tests.report.examples import odd_database


@pytest.fixture(scope="session")
def odd_device(tmp_path_factory) -> DeviceReport:
    """The device of the odd database whose ceilings are known."""
    found = of_database(odd_database(tmp_path_factory.mktemp("odd") / "odd.db"))
    here, _ = found.devices
    return here
