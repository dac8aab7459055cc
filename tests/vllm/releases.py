"""The vLLM releases that autotune supports, and where their Python files lie for the tests."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Oldest first. Every one of them is asked by the tests of this folder.
RELEASES = ("0.11.1", "0.15.1", "0.22.1", "0.28.0", "0.33.0")

#: The one whose defaults autotune states.
NEWEST = RELEASES[-1]


def releases_folder() -> Path:
    """Where releases are unpacked, one folder each: ``AUTOTUNE_VLLM_RELEASES``, or in .venv-dev."""
    named = os.environ.get("AUTOTUNE_VLLM_RELEASES")
    return Path(named).resolve() if named else ROOT / ".venv-dev" / "vllm-releases"


def is_here(version: str) -> bool:
    """Whether a release is unpacked."""
    return (releases_folder() / version / "vllm").is_dir()
