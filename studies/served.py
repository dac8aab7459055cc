"""What the vLLM installed here makes of a tuned folder: its own loader, wrappers and kernels.

    VLLM_TUNED_CONFIG_FOLDER=tuned python studies/served.py STUDY [RANK]

For every shape it times vLLM's wrapper as vLLM calls it, nothing replaced, beside the same wrapper
with vLLM's default configuration, and compares the tuned one's numbers with a float64 reference.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from vllm.lora.ops.triton_ops import lora_expand_op, lora_shrink_op

from autotune.launch.shape import KernelShape
from autotune.measure.cuda.gpu import describe_device
from autotune.measure.cuda.timer import CacheFlush, LaunchTimer
from autotune.measure.kernels.inputs import make_inputs
from autotune.measure.kernels.reference import check_result, expect
from autotune.measure.kernels.vllm import VllmProvider
from autotune.plan.study import StudyPlan

ROUNDS = 60
WEIGHT_SETS = 32

MODULES = (lora_shrink_op, lora_expand_op)

#: vLLM's look-up, taken before a provider takes its place.
LOOK_UP = lora_shrink_op.get_lora_op_configs


class Served:
    """vLLM's wrappers, with vLLM's look-up or with its default."""

    def __init__(self) -> None:
        self.provider = VllmProvider()
        self._stand_ins = [module.get_lora_op_configs for module in MODULES]
        self._flush = CacheFlush(describe_device().l2_bytes)

    def time(self, shape: KernelShape) -> tuple[float, float, str]:
        """Default's and tuned latency in microseconds, and what is wrong with the tuned numbers."""
        inputs = make_inputs(shape, device="cuda", weight_sets=WEIGHT_SETS, seed=1)
        default = self.provider.default(shape)

        def launch(number: int, *, tuned: bool) -> None:
            for module, stand_in in zip(MODULES, self._stand_ins, strict=True):
                module.get_lora_op_configs = LOOK_UP if tuned else stand_in
            self.provider.launch(inputs, default, number)

        check = check_result(partial(launch, 0, tuned=True), inputs, expect(inputs))
        launch(0, tuned=False)
        timers = [
            LaunchTimer(partial(launch, tuned=tuned), weight_sets=WEIGHT_SETS, flush=self._flush)
            for tuned in (False, True)
        ]
        rounds = [[timer.sample_us() for timer in timers] for _ in range(ROUNDS)]
        default_us, tuned_us = (statistics.median(each) for each in zip(*rounds, strict=True))
        return default_us, tuned_us, check.problem


def main() -> int:
    """Time all shapes of a study; 1 where numbers are wrong."""
    plan = StudyPlan.read(Path(sys.argv[1]))
    if len(sys.argv) > 2:
        plan = plan.override(rank=int(sys.argv[2]))
    served = Served()
    print(f"vLLM {served.provider.version}, torch {torch.__version__}")
    ratios, wrong = [], 0
    for shape in plan.shapes:
        default_us, tuned_us, problem = served.time(shape)
        ratios.append(default_us / tuned_us)
        wrong += bool(problem)
        print(
            f"{shape.op.value:6} {shape.label:60} {default_us:8.2f} -> {tuned_us:8.2f} µs   "
            f"{ratios[-1]:.3f}   {problem or 'numbers right'}",
            flush=True,
        )
    print(
        f"{len(ratios)} shapes, default over tuned: median {statistics.median(ratios):.3f}, "
        f"worst {min(ratios):.3f}, best {max(ratios):.3f}; {wrong} with wrong numbers"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
