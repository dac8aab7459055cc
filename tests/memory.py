"""Temporary files in memory, where there is enough of it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux has such files

#: A run of all tests leaves less than 1 GB.
_ENOUGH_BYTES = 4_000_000_000


def use_for_temporary_files() -> None:
    """Have this process and those that it starts keep temporary files in memory.

    ``TMPDIR`` says where else, if it is set.
    """
    if "TMPDIR" not in os.environ and _free_bytes() >= _ENOUGH_BYTES:
        os.environ["TMPDIR"] = str(_MEMORY)
        tempfile.tempdir = None  # so that it is looked up again


def _free_bytes() -> int:
    """How much fits there."""
    if not os.access(_MEMORY, os.W_OK):
        return 0
    available = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    assert available is not None
    return min(shutil.disk_usage(_MEMORY).free, 1024 * int(available[1]))
