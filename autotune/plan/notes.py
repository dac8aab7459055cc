"""What a user must know of the shapes before they are tuned."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.launch.environment import Environment
from autotune.launch.moe_layer import by_layer, missing_ops, names_of
from autotune.launch.release import (
    is_timed_as_pair,
    parameters_read,
    reads_only_block_m,
    release_of,
)
from autotune.launch.shape import KernelShape


def notes(shapes: Sequence[KernelShape], environment: Environment) -> list[str]:
    """What a user must know of MoE shapes before they are tuned, in a line each."""
    release = release_of(environment)
    lines = []
    bypassed = [shape for shape in shapes if reads_only_block_m(shape, release)]
    if bypassed:
        ranks = ", ".join(map(str, sorted({shape.rank for shape in bypassed})))
        lines.append(
            f"Of MoE entries of rank {ranks} vLLM {release} reads only block_m where LoRAs are not "
            f"fully sharded: for {len(bypassed)} of {len(shapes)} shapes that alone is tuned."
        )
        unread = sum(not parameters_read(shape, release) for shape in bypassed)
        if unread:
            lines[-1] += f" For {unread} of them, of small batches, not even that is read."
        if is_timed_as_pair(bypassed[0], environment):
            lines[-1] += " Timed is vLLM's one kernel for shrink and expand: both get its figures."
    layers = by_layer(shapes, lambda shape: shape)
    missing = {missing_ops(those) for those in layers.values()} - {()}
    lines.extend(
        f"Not among the shapes: {names_of(ops)} of a MoE layer whose other ops are. All four must "
        "have one block_m: what the database or the folder does not give is taken as vLLM's "
        "default, 64."
        for ops in sorted(missing, key=names_of)
    )
    return lines
