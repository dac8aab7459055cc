"""What a new runner, sampler or database must pass, as pytest suites, and doubles to test with.

Subclass a suite in a test file and give it what it asks for::

    from autotune.testing import SamplerSuite

    class TestMySampler(SamplerSuite):
        def make_sampler(self, space, untried, positions, *, seed):
            return MySampler(untried, positions, seed=seed)

Needs pytest, which autotune itself does not install.
"""

import pytest

pytest.register_assert_rewrite(
    "autotune.testing.runner_suite",
    "autotune.testing.sampler_suite",
    "autotune.testing.store_suite",
)

from autotune.testing.landscape import Landscape  # noqa: E402 - after its asserts are rewritten
from autotune.testing.lossy import LossyRunner  # noqa: E402 - likewise
from autotune.testing.runner_suite import RunnerSuite  # noqa: E402 - likewise
from autotune.testing.sampler_suite import SamplerSuite  # noqa: E402 - likewise
from autotune.testing.store_suite import StoreSuite  # noqa: E402 - likewise

__all__ = ["Landscape", "LossyRunner", "RunnerSuite", "SamplerSuite", "StoreSuite"]
