"""The time of all LoRA kernels in one forward pass, by the default and as tuned."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from autotune.launch.environment import Environment
from autotune.launch.release import is_timed_as_pair
from autotune.launch.shape import KernelShape


class TimedRow(Protocol):
    """A row of a tuned file with its times, such as a ``Selection``."""

    @property
    def shape(self) -> KernelShape:
        """The shape."""

    @property
    def default_latency_us(self) -> float | None:
        """The time of vLLM's default, microseconds; None where it does not run."""

    @property
    def latency_us(self) -> float:
        """The time as tuned, microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardPass:
    """The LoRA kernels of one forward pass, one after another.

    Attributes:
        num_tokens: The batch size.
        default_us: Their time with vLLM's defaults, microseconds; None where one does not run.
        tuned_us: Their time as tuned, microseconds.
    """

    num_tokens: int
    default_us: float | None
    tuned_us: float


def forward_passes(
    selections: Iterable[TimedRow],
    runs: Mapping[KernelShape, int],
    environment: Environment,
    *,
    sampled: Collection[KernelShape] = (),
) -> list[ForwardPass]:
    """The time of a forward pass at every batch size at which all kernels are tuned.

    Args:
        selections: What was chosen, or the rows of a folder.
        runs: How often a forward pass launches each shape ``without_batch``; 0 where no model says
            so.
        environment: Where they were measured.
        sampled: The shapes, ``without_batch``, that get at most one token a sequence: above their
            largest batch size they keep its time.

    Returns:
        By rising batch size; empty where no model says how often kernels run.
    """
    kinds = [kind for kind, count in runs.items() if count]
    by_kind: dict[KernelShape, dict[int, TimedRow]] = {kind: {} for kind in kinds}
    for one in selections:
        if one.shape.without_batch in by_kind:
            by_kind[one.shape.without_batch][one.shape.num_tokens] = one
    sizes = sorted({tokens for rows in by_kind.values() for tokens in rows})
    passes = []
    for tokens in sizes:
        rows = {kind: _row(by_kind[kind], tokens, kind in sampled) for kind in kinds}
        found = {kind: row for kind, row in rows.items() if row is not None}
        if len(found) == len(kinds):
            times = {kind: _times(runs[kind], row, environment) for kind, row in found.items()}
            passes.append(_summed(tokens, times.values()))
    return passes


def _row(rows: Mapping[int, TimedRow], tokens: int, is_sampled: bool) -> TimedRow | None:
    """A kind's selection at a batch size; None where there is none."""
    if is_sampled and rows:
        tokens = min(tokens, max(rows))
    return rows.get(tokens)


def _times(runs: int, row: TimedRow, environment: Environment) -> tuple[float | None, float]:
    """The time of all launches by the default and as tuned, microseconds."""
    # One kernel does the shrink and the expand, and both have its time.
    launches = runs / 2 if is_timed_as_pair(row.shape, environment) else runs
    default_us = row.default_latency_us
    return None if default_us is None else launches * default_us, launches * row.latency_us


def _summed(tokens: int, times: Iterable[tuple[float | None, float]]) -> ForwardPass:
    defaults, tuned = zip(*times, strict=True)
    total = None if None in defaults else sum(defaults)
    return ForwardPass(num_tokens=tokens, default_us=total, tuned_us=sum(tuned))
