"""How near a tuned folder comes to an exhaustive search, on the kernels of the vLLM that is here.

    python studies/exhaustive.py tuned [TOKENS...]

A shape for each token count (4, 16 and 64, where vLLM's default is known to be far off the best)
is searched in full, on a narrower space than the folder was tuned on; the folder's entry is then
timed beside the best.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from engine import AXES, search

from autotune.export import look_up, read_table
from autotune.measure.cuda import CudaRunner
from autotune.shapes import KernelShape
from autotune.space import KernelConfig


def shapes(token_counts: Sequence[int]) -> list[KernelShape]:
    """``shrink`` of Llama-3.1-8B's qkv at rank 64, for these token counts."""
    qkv = {"op": "shrink", "hidden_size": 4096, "rank": 64, "num_slices": 3, "max_loras": 8}
    return [KernelShape.from_mapping(qkv | {"num_tokens": count}) for count in token_counts]


def main() -> None:
    """Search, compare, and print one line a shape."""
    folder = Path(sys.argv[1])
    token_counts = [int(count) for count in sys.argv[2:]] or [4, 16, 64]
    with CudaRunner("vllm") as runner:
        print(runner.environment)
        for shape in shapes(token_counts):
            space = runner.space(shape, AXES)
            best = search(runner, space, "exhaustive", trials=len(space.configs), seed=0).config
            table = read_table(folder / shape.file_name(runner.environment.gpu)) or {}
            found = look_up(table, shape.lookup_key).leaf
            tuned = KernelConfig.from_mapping(shape.op, found)
            configs = list(dict.fromkeys((space.default, best, tuned)))
            samples = runner.compare(shape, configs, lambda _: False).samples_us
            default_us, best_us, tuned_us = (
                statistics.median(samples[config]) for config in (space.default, best, tuned)
            )
            print(
                f"{shape.op.value} {shape.label}: {len(space.configs)} configurations, default "
                f"{default_us:.2f}, exhaustive best {best_us:.2f}, folder {tuned_us:.2f} µs: "
                f"{best_us / tuned_us:.1%} of the best's speed",
                flush=True,
            )


if __name__ == "__main__":
    main()
