"""A real vLLM per supported release."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import absent
from tests.vllm.process import Prepared
from tests.vllm.real import RealVllm
from tests.vllm.releases import NEWEST, RELEASES, is_here, releases_folder


def need(version: str, config: pytest.Config) -> Path:
    """The folder of a release; ends the test where it is not here."""
    if not is_here(version):
        what = f"no vLLM {version} in {releases_folder()}; get it: python -m tests.vllm.fetch"
        absent(config, "vllm", what)
    return releases_folder() / version


@pytest.fixture(scope="session")
def prepared() -> Iterator[Prepared]:
    """What a process with a vLLM is forked from."""
    with Prepared() as running:
        yield running


@pytest.fixture(scope="session")
def interpreting() -> Iterator[Prepared]:
    """The same where kernels run in Triton's interpreter."""
    with Prepared(is_interpreting=True) as running:
        yield running


def _started(version: str, request: pytest.FixtureRequest) -> Iterator[RealVllm]:
    need(version, request.config)
    log = request.getfixturevalue("tmp_path_factory").mktemp("vllm") / f"{version}.log"
    with RealVllm(version, log, request.getfixturevalue("prepared")) as vllm:
        yield vllm


@pytest.fixture(scope="session", params=RELEASES)
def vllm(request) -> Iterator[RealVllm]:
    """Each release in turn."""
    yield from _started(request.param, request)


@pytest.fixture(scope="session", params=[NEWEST])
def newest_vllm(request) -> Iterator[RealVllm]:
    """The newest release."""
    yield from _started(request.param, request)
