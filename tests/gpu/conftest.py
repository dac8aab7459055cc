"""Fixtures of the tests on a GPU."""

from __future__ import annotations

import importlib.util

import pytest

from autotune.measure.kernels import PROVIDERS, KernelProvider, provider


@pytest.fixture(params=PROVIDERS)
def kernels(request: pytest.FixtureRequest) -> KernelProvider:
    """Each provider whose kernels are installed."""
    if request.param == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    return provider(request.param)
