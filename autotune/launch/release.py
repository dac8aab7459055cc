"""Where vLLM reads only ``block_m`` of a MoE op's entry, or nothing.

From 0.22 on, and up to rank 128, ``fused_moe_lora`` runs one kernel for shrink and expand with
heuristics of its own (``_run_fused_moe_lora_one_shot`` in ``fused_moe_lora_op.py``, 0.22.1 to
0.33.0; not in 0.15.1), unless LoRAs are fully sharded. Where blocks are assigned naively it takes
16 rows whatever it is told, and for the smallest batches there is a kernel without blocks of rows
(``_run_fused_moe_lora_small_batch``).
"""

from __future__ import annotations

import re

from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import assigns_naively

#: The newest vLLM whose sources were read.
NEWEST_RELEASE = "0.33.0"

#: The largest rank for which it does.
ONE_SHOT_RANK = 128

_FIRST_RELEASE = (0, 22)


def has_one_shot_kernel(release: str) -> bool:
    """Whether a vLLM release has that kernel; one whose number cannot be read is taken as new."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return numbers is None or tuple(map(int, numbers.groups())) >= _FIRST_RELEASE


def parameters_read(shape: KernelShape, release: str) -> tuple[str, ...]:
    """What this vLLM reads of the shape's entry.

    Args:
        shape: Of any op.
        release: vLLM's version, such as ``0.33.0``.
    """
    if not reads_only_block_m(shape, release):
        return shape.op.parameters
    return () if assigns_naively(shape) else ("block_m",)


def reads_only_block_m(shape: KernelShape, release: str) -> bool:
    """Whether this vLLM reads ``block_m`` of the shape's entry at most.

    Args:
        shape: Of any op; of a dense one vLLM reads everything.
        release: vLLM's version, such as ``0.33.0``.
    """
    return (
        shape.op.is_moe
        and shape.rank <= ONE_SHOT_RANK
        and not shape.fully_sharded
        and has_one_shot_kernel(release)
    )


def release_of(environment: Environment) -> str:
    """The vLLM whose behaviour is tuned for: that whose kernels are launched, else the newest."""
    return environment.provider_version if environment.provider == "vllm" else NEWEST_RELEASE


def is_timed_as_pair(shape: KernelShape, environment: Environment) -> bool:
    """Whether what is timed of a MoE shape is vLLM's one kernel for its shrink and its expand."""
    return environment.provider == "vllm" and reads_only_block_m(shape, release_of(environment))
