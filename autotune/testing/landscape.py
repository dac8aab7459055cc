"""A made-up kernel whose latencies follow from a cost model: searches it with no GPU."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Comparison, EnoughRule, Measurement, Outcome, Runner, StopRule
from autotune.measure.racing import TOO_SLOW_REASON, race, take_from

#: Where the figures are from, as far as anybody asks.
ENVIRONMENT = Environment(
    gpu="NVIDIA Test-GPU",
    provider="builtin",
    provider_version="1",
    torch="2.13.0",
    triton="3.6.0",
    driver="580",
)

_AXES = {
    "block_m": (16, 32, 64, 128),
    "block_n": (16, 32, 64),
    "block_k": (32, 64, 128, 256),
    "split_k": (1, 2, 4, 8, 16, 32, 64),
    "num_warps": (2, 4, 8),
    "num_stages": (2, 3, 4, 5),
}


def shrink(**sizes: int) -> KernelShape:
    """A shrink of these sizes."""
    table = {"op": "shrink", "num_tokens": 256, "hidden_size": 4096, "rank": 64, "max_loras": 8}
    return KernelShape.from_mapping(table | sizes)


def configs() -> list[KernelConfig]:
    """4,032 configurations."""
    fixed = {"group_size_m": 8, "num_ctas": 1}
    points = itertools.product(*_AXES.values())
    return [KernelConfig(**dict(zip(_AXES, point, strict=True)), **fixed) for point in points]


@cache
def _every(stride: int) -> tuple[KernelConfig, ...]:
    """Every how many-th of them."""
    return tuple(configs()[::stride])


@dataclass
class Landscape(Runner):
    """Answers from a cost model with noise.

    Attributes:
        noise: Relative standard deviation of a configuration's figure.
        stride: Every how many-th of 4,032 configurations there is; best coprime to the axes'
            lengths.
        is_reversed: Whether what is fast elsewhere is slow here.
        breaks: Whether everything fails.
        environment: Where the figures are said to be from.
        lookahead: As every runner has it.
        device: As every runner has it.
    """

    noise: float = 0.01
    stride: int = 7
    is_reversed: bool = False
    breaks: bool = False
    environment: Environment = ENVIRONMENT
    lookahead: int = 1
    device: str = ""

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """The same configurations for every shape; ``axes`` changes nothing."""
        listed = _every(self.stride)
        return SearchSpace(shape, listed, default=listed[len(listed) // 2])

    def truth_us(self, shape: KernelShape, config: KernelConfig) -> float:
        """Latency without noise; infinite where the pipeline does not fit."""
        m, n, k = config.block_m, config.block_n, config.block_k
        split = config.split_k or 1
        step_bytes = 2 * (m + n) * k
        if self.breaks or step_bytes * config.num_stages > 200_000:
            return math.inf
        tiles = math.ceil(shape.num_tokens / 8 / m) * 8 * math.ceil(shape.rank / n)
        waves = math.ceil(tiles * split / 264)
        steps = math.ceil(shape.hidden_size / (k * split))
        hidden = min(1.0, 0.35 * (config.num_stages - 1))
        step_us = 0.15 + step_bytes / 60_000 / (0.4 + hidden)
        mismatch = abs(math.log2(m * n / 256 / config.num_warps))
        us = 3.0 + waves * (1.0 + steps * step_us) * (1 + 0.08 * mismatch**2) + 0.03 * split
        return 400.0 / us if self.is_reversed else us

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        """Answer the oldest pending configuration; the same one always gets the same figures."""
        config = pending[0]
        us = self.truth_us(shape, config)
        if math.isinf(us):
            return Measurement(
                shape=shape, config=config, outcome=Outcome.LAUNCH_FAILED, reason="too large"
            )
        seed = f"{shape.op.value} {shape.label} {config}"  # new fields of shapes change nothing
        rng = random.Random(seed)  # noqa: S311 - no secret
        us *= 1 + self.noise * max(-2.5, min(2.5, rng.gauss(0, 1)))
        taken = take_from([us * (1 + 0.003 * rng.gauss(0, 1)) for _ in range(24)])
        samples, cut = race(taken, lambda so_far: stop(config, so_far))
        outcome = Outcome.TOO_SLOW if cut else Outcome.OK
        reason = TOO_SLOW_REASON if cut else ""
        return Measurement(
            shape=shape, config=config, outcome=outcome, reason=reason, samples_us=samples
        )

    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        """Five samples of each that runs, without noise."""
        truths = {config: self.truth_us(shape, config) for config in configs}
        return Comparison(
            samples_us={c: (us,) * 5 for c, us in truths.items() if not math.isinf(us)}
        )

    def regret(self, shape: KernelShape, measurements: Sequence[Measurement]) -> float:
        """How much slower the best of some is than the best there is, by the true latencies."""
        best = min(self.truth_us(shape, config) for config in self.space(shape, {}).configs)
        ok = [m for m in measurements if m.outcome is Outcome.OK]
        chosen = min(ok, key=lambda each: each.latency_us)
        return self.truth_us(shape, chosen.config) / best - 1.0
