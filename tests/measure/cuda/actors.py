"""Actors of a Ray cluster that tests start in place of autotune's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ray

from autotune.measure.cuda.runner import CudaRunner, Processes
from autotune.measure.hosts.actor import Joined, Measurer
from autotune.measure.hosts.remote import BESIDE
from autotune.measure.replay import ReplayRunner
from tests.measure.cuda.handlers import FakeDevice


class FakeMeasurer(Measurer):
    """The real compilers, and a fake device."""

    def join(self, kernels: str, recorded: ReplayRunner | None, number: int) -> Joined:
        self._runner = CudaRunner(Processes("builtin", compile_workers=2, device_server=FakeDevice))
        return Joined(
            environment=self._runner.environment,
            device=self._runner.device,
            lookahead=self._runner.lookahead,
            replayed=None,
            answered=frozenset(),
            lines=(),
        )


class OtherMeasurer(Measurer):
    """A replay whose Triton is another one on each host."""

    def join(self, kernels: str, recorded: ReplayRunner | None, number: int) -> Joined:
        joined = super().join(kernels, recorded, number)
        return replace(joined, environment=replace(joined.environment, triton=f"{number}.0"))


def actor_of(actor: type[Measurer]) -> Any:
    made = ray.remote(num_gpus=1, num_cpus=0, concurrency_groups={BESIDE: 1})(actor)
    return made.remote()


def actor_with_a_fake_device() -> Any:
    return actor_of(FakeMeasurer)


def actor_of_its_own_triton() -> Any:
    return actor_of(OtherMeasurer)
