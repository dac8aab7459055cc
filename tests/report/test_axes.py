"""The parameters that vary over configurations."""

from __future__ import annotations

from autotune.launch.config import KernelConfig
from autotune.report.axes import varied


def test_a_parameter_varies_when_it_has_two_values():
    configs = [
        KernelConfig(block_m=16, block_n=block_n, block_k=64, num_warps=warps, num_stages=2)
        for block_n, warps in ((64, 4), (16, 4), (32, 8))
    ]
    assert varied(configs) == {"block_n": [16, 32, 64], "num_warps": [4, 8]}


def test_nothing_varies_without_configurations():
    assert varied([]) == {}
