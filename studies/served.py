"""Time a tuned folder as the installed vLLM uses it, with vLLM's own loader, wrappers and kernels.

    VLLM_TUNED_CONFIG_FOLDER=tuned python studies/served.py STUDY [RANK]

For every shape it times vLLM's wrapper with vLLM's own look-up in the folder, side by side with the
same wrapper and vLLM's default configuration. It checks the numbers of the tuned launch against a
float64 reference.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path

import torch

from autotune.errors import AutotuneError, GpuMissing
from autotune.launch.shape import KernelShape
from autotune.measure.cuda.clock import CacheFlush, LaunchClock
from autotune.measure.cuda.gpu import describe_device, has_gpu
from autotune.measure.kernels.inputs import make_inputs
from autotune.measure.kernels.reference import check_result, expect
from autotune.measure.kernels.vllm import VllmProvider
from autotune.measure.kernels.vllm_parts import import_vllm, part
from autotune.plan.study import StudyPlan

#: Rounds, in each of which the default and the tuned configuration are timed once.
ROUNDS = 60

#: Weight sets that the launches rotate over.
WEIGHT_SETS = 32


class Served:
    """The wrappers of the installed vLLM, with its own look-up or with its default."""

    def __init__(self) -> None:
        import_vllm()
        self._modules = (part("lora_shrink_op"), part("lora_expand_op"))
        # The provider replaces vLLM's look-up in both modules, so it is kept first.
        self._look_up = self._modules[0].get_lora_op_configs
        self.provider = VllmProvider()
        self._stand_ins = [module.get_lora_op_configs for module in self._modules]
        self._flush = CacheFlush(describe_device().l2_bytes)

    def time(self, shape: KernelShape) -> tuple[float, float, str]:
        """Default and tuned latency, microseconds, and what is wrong with the tuned numbers."""
        inputs = make_inputs(shape, device="cuda", weight_sets=WEIGHT_SETS, seed=1)
        default = self.provider.default(shape)

        def launch(number: int, *, tuned: bool) -> None:
            for module, stand_in in zip(self._modules, self._stand_ins, strict=True):
                vars(module)["get_lora_op_configs"] = self._look_up if tuned else stand_in
            self.provider.launch(inputs, default, number)

        check = check_result(partial(launch, 0, tuned=True), inputs, expect(inputs))
        launch(0, tuned=False)
        clocks = [
            LaunchClock(partial(launch, tuned=tuned), weight_sets=WEIGHT_SETS, flush=self._flush)
            for tuned in (False, True)
        ]
        rounds = [[clock.sample_us() for clock in clocks] for _ in range(ROUNDS)]
        default_us, tuned_us = (statistics.median(each) for each in zip(*rounds, strict=True))
        return default_us, tuned_us, check.problem


def main() -> int:
    """Time all shapes of a study; the exit code is 1 if any numbers are wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="study file")
    parser.add_argument("rank", type=int, nargs="?", help="the server's rank; else the study's")
    given = parser.parse_args()
    plan = StudyPlan.read(given.study).override(rank=given.rank)
    if not has_gpu():
        raise GpuMissing("no CUDA GPU here: run this where there is one")
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
    try:
        sys.exit(main())
    except AutotuneError as error:
        sys.exit(f"error: {error}")
