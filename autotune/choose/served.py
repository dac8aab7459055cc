"""What a server compiles with the rows that were chosen: how much, and how much of it late."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from autotune.choose.layer_rows import MOST_LOSS, SizesOf
from autotune.choose.losses import nearest
from autotune.choose.selection import Selection
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.late import Compiled, ServedKernel
from autotune.launch.release import release_of
from autotune.launch.shape import KernelShape

#: The smallest loss that is not printed as 0.0 %.
_LEAST_LOSS = 0.0005


@dataclass(frozen=True, slots=True)
class Distinct:
    """How many distinct configurations the rows of each kernel have.

    Attributes:
        counts: For each kernel, ``without_batch``, its number of distinct configurations.
        rows: How many rows there are of all kernels together.
        losses: What each row loses that took a configuration that is launched at the start.
    """

    counts: Mapping[KernelShape, int]
    rows: int
    losses: Sequence[float]

    @classmethod
    def of(cls, selections: Iterable[Selection]) -> Distinct:
        """Count the configurations of a folder's rows."""
        configs: dict[KernelShape, set[KernelConfig]] = {}
        rows = list(selections)
        for one in rows:
            configs.setdefault(one.shape.without_batch, set()).add(one.config)
        losses = [one.exchanged.loss for one in rows if one.exchanged is not None]
        return cls({kind: len(each) for kind, each in configs.items()}, len(rows), losses)

    @property
    def line(self) -> str:
        """A sentence on them; empty without a row."""
        if not self.counts:
            return ""
        fewest, most = min(self.counts.values()), max(self.counts.values())
        each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        text = (
            f"Distinct configurations a kernel: {each}, {sum(self.counts.values())} in all for "
            f"{self.rows} rows"
        )
        if not self.losses:
            return f"{text}."
        lost = max(self.losses)
        return (
            f"{text}; {len(self.losses)} {'row' if len(self.losses) == 1 else 'rows'} took one "
            f"that the server launches at its start, "
            f"{f'at a loss of {lost:.1%} at most' if lost >= _LEAST_LOSS else 'at no loss'}."
        )


def _config_at(rows: Mapping[int, KernelConfig], size: int) -> KernelConfig:
    return rows[nearest(size, rows)]


def served_lines(
    selections: Iterable[Selection], sizes: SizesOf, environment: Environment
) -> list[str]:
    """What the user is told of the kernels that a server compiles, a line each.

    Args:
        selections: The rows that are exported.
        sizes: The batch sizes of a kernel in the server.
        environment: Where they were measured.
    """
    rows: dict[KernelShape, dict[int, KernelConfig]] = {}
    selections = list(selections)
    for one in selections:
        rows.setdefault(one.shape.without_batch, {})[one.shape.num_tokens] = one.config
    kernels = [
        ServedKernel(
            kind=kind,
            sizes=sizes(kind),
            rows=of_kind,
            config_at=partial(_config_at, of_kind),
        )
        for kind, of_kind in rows.items()
    ]
    compiled = Compiled.of(kernels, release=release_of(environment))
    line = f"Kernels that a server compiles while it serves: {len(compiled.late)}"
    if compiled.late:
        line += (
            f", where nothing that its start launches is within {MOST_LOSS:.0%}: "
            f"{compiled.late_text()}; compile them beforehand with autotune warm"
        )
    return [each for each in (Distinct.of(selections).line, f"{line}.") if each]
