"""The vLLM releases that autotune supports, and where their Python files lie for the tests."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Those that the tests of this folder ask always, oldest first.
_ALWAYS = ("0.11.1", "0.15.1", "0.22.1", "0.28.0", "0.33.0")

#: Every one since the oldest: what is said of releases in between was looked up in these.
EVERY = (
    *("0.11.1", "0.11.2", "0.12.0", "0.13.0", "0.14.0", "0.14.1", "0.15.0", "0.15.1", "0.16.0"),
    *("0.17.0", "0.17.1", "0.18.0", "0.18.1", "0.19.0", "0.19.1", "0.20.0", "0.20.1", "0.20.2"),
    *("0.21.0", "0.22.0", "0.22.1", "0.23.0", "0.24.0", "0.25.0", "0.25.1", "0.26.0", "0.27.0"),
    *("0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0", "0.33.0"),
)

#: Those that are asked now.
RELEASES = EVERY if os.environ.get("AUTOTUNE_EVERY_VLLM") else _ALWAYS

#: The one whose defaults autotune states.
NEWEST = RELEASES[-1]


def releases_folder() -> Path:
    """Where releases are unpacked, one folder each: ``AUTOTUNE_VLLM_RELEASES``, or in .venv-dev."""
    named = os.environ.get("AUTOTUNE_VLLM_RELEASES")
    return Path(named).resolve() if named else ROOT / ".venv-dev" / "vllm-releases"


def is_here(version: str) -> bool:
    """Whether a release is unpacked."""
    return (releases_folder() / version / "vllm").is_dir()
