"""What ``autotune warm`` says of the server that is to read the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.export.warming import Warmed
from tests.measure.kernels.cases import H100
from tests.vllm.conftest import need
from tests.vllm.releases import RELEASES


def last_line(release: str) -> str:
    """What is said last of a release's server."""
    gpus, cache = {"NVIDIA_H100": H100}, Path("/cache")
    return Warmed(gpus=gpus, compiled=5, failed=(), late=2, cache=cache, release=release).lines[-1]


@pytest.mark.parametrize(
    ("release", "said"),
    [
        ("0.30.0", "vLLM 0.30.0 keeps Triton's cache in its compile cache"),
        ("0.31.0", "Start the server with TRITON_CACHE_DIR=/cache"),
        ("0.34.0.dev1", "Start the server with TRITON_CACHE_DIR=/cache"),
    ],
)
def test_which_cache_a_server_reads_is_said_by_its_release(release, said):
    assert last_line(release).startswith(said)


@pytest.mark.vllm
@pytest.mark.parametrize("release", RELEASES)
def test_a_release_reads_the_cache_that_it_is_said_to(release, request):
    files = need(release, request.config) / "vllm" / "compilation"
    leaves = 'os.environ.get("TRITON_CACHE_DIR")' in (files / "compiler_interface.py").read_text()
    assert last_line(release).startswith("Start the server with TRITON_CACHE_DIR") == leaves
