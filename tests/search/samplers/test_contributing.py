"""The sampler that CONTRIBUTING.md shows is a sampler."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from autotune.testing import SamplerSuite

GUIDE = Path(__file__).parents[3] / "CONTRIBUTING.md"


def shown() -> dict[str, Any]:
    """What the two code blocks of the guide define."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        exec(block, names)  # noqa: S102 - the project's own text
    return names


NAMES = shown()


class TestShownSampler(SamplerSuite):
    def make_sampler(self, space, untried, positions, *, seed):
        return NAMES["TestNearBest"]().make_sampler(space, untried, positions, seed=seed)


def test_it_is_twenty_lines_and_a_docstring():
    source = next(
        block
        for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
        if "UntriedSampler" in block
    )
    assert len([line for line in source.splitlines() if line.strip()]) <= 20
