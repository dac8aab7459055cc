"""The answer of a run, which is printed last: the gain, and what to do next."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from autotune.cli.tables import plain_table
from autotune.store import shown

if TYPE_CHECKING:
    from autotune.choose.forward import ForwardPass
    from autotune.choose.selection import Selection
    from autotune.launch.shape import KernelShape
    from autotune.measure.measurement import Replayed
    from autotune.plan.study import StudyPlan


def gain_text(selections: Iterable[Selection], layers: Mapping[KernelShape, str]) -> str:
    """The median and the best ratio to vLLM's defaults, in a sentence.

    Args:
        selections: What was chosen.
        layers: The names of shapes' layers, where they are known.
    """
    ratios = [(one.ratio.value, one.shape) for one in selections if one.ratio is not None]
    if not ratios:
        return "No shape has a ratio to vLLM's default."
    best, shape = max(ratios, key=lambda pair: pair[0])
    median = statistics.median(ratio for ratio, _ in ratios)
    name = " ".join(filter(None, (shape.op.value, layers.get(shape))))
    tokens = f"{shape.num_tokens} {'token' if shape.num_tokens == 1 else 'tokens'}"
    shapes = f"{len(ratios)} {'shape' if len(ratios) == 1 else 'shapes'}"
    return (
        f"Against vLLM's defaults: {median:.2f}x in the median of {shapes}, {best:.2f}x at best "
        f"({name}, {tokens})."
    )


def passes_table(passes: Sequence[ForwardPass]) -> Table:
    """One row a batch size: the time of all LoRA kernels in a forward pass, milliseconds."""
    table = plain_table((), ("tokens", "default ms", "tuned ms", "ratio"))
    for one in passes:
        default, ratio = "does not run", "-"
        if one.default_us is not None:
            default, ratio = f"{one.default_us / 1e3:.3f}", f"{one.default_us / one.tuned_us:.2f}x"
        table.add_row(str(one.num_tokens), default, f"{one.tuned_us / 1e3:.3f}", ratio)
    return table


def next_lines(plan: StudyPlan, replayed: Replayed | None) -> list[str]:
    """The commands that show the evidence, and that time the files on the GPU.

    Args:
        plan: What was tuned.
        replayed: The recordings that answered; None where a GPU measured.
    """
    lines = [] if replayed is None else [f"Replayed, not measured here: from {replayed}."]
    return [
        *lines,
        f"See the evidence: autotune report --storage {shown(plan.storage)}",
        f"Time the files on the GPU: autotune bench {plan.output}, with the flags of this run",
    ]
