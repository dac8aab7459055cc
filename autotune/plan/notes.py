"""What a user must know of MoE shapes before they are tuned."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.launch.environment import Environment
from autotune.launch.moe_layer import by_layer, missing_ops, names_of
from autotune.launch.release import (
    check_flag,
    is_timed_as_pair,
    parameters_read,
    reads_only_block_m,
    release_of,
)
from autotune.launch.shape import KernelShape


def notes(shapes: Sequence[KernelShape], environment: Environment) -> list[str]:
    """What a user must know of MoE shapes before they are tuned, in a line each.

    Args:
        shapes: Every shape of the study.
        environment: Where they are tuned.

    Raises:
        InputError: The release of vLLM whose kernels are launched has no such flag as a shape says.
    """
    release = release_of(environment)
    for name in ("dual_stream", "specialize_active_lora"):
        if any(getattr(shape, name) for shape in shapes):
            check_flag(name, release)
    if any(shape.shared_loras for shape in shapes):
        check_flag("moe_shared_loras", release)
    lines = []
    bypassed = [shape for shape in shapes if reads_only_block_m(shape, release)]
    if bypassed:
        ranks = ", ".join(map(str, sorted({shape.rank for shape in bypassed})))
        lines.append(
            f"vLLM {release} reads only block_m of MoE entries of rank {ranks} where LoRAs are not "
            f"fully sharded: for {len(bypassed)} of {len(shapes)} shapes nothing else is tuned."
        )
        unread = sum(not parameters_read(shape, release) for shape in bypassed)
        if unread:
            lines[-1] += f" For {unread} of them, of small batches, it reads not even block_m."
        if is_timed_as_pair(bypassed[0], environment):
            lines[-1] += " vLLM has one kernel for their shrink and expand: both get its time."
    layers = by_layer(shapes, lambda shape: shape)
    missing = {missing_ops(of_layer) for of_layer in layers.values()} - {()}
    lines.extend(
        f"Not among the shapes: {names_of(ops)} of a MoE layer whose other ops are. All four must "
        "have one block_m: an op that neither the database nor the folder has is taken to have "
        "vLLM's default, 64."
        for ops in sorted(missing, key=names_of)
    )
    return lines
