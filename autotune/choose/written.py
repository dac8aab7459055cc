"""A selection as the database keeps it, its values checked."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from autotune.choose.exchanged import ExchangedTable
from autotune.launch.config import LARGEST_VALUE
from autotune.launch.op import LoraOp
from autotune.measure.figures import ReplayedTable
from autotune.untrusted import Count, Factor, Microseconds, Untrusted

#: A ratio and the ends of its interval.
RatioFigures = tuple[Factor, Factor, Factor]


class _Timed(Untrusted):
    config: dict[str, Any]
    samples_us: Annotated[tuple[Microseconds, ...], Field(min_length=1)]


class _State(Untrusted):
    sm_clock_mhz: Count
    memory_clock_mhz: Count
    temperature_c: int
    throttle_reasons: tuple[str, ...] = ()


class _Layer(Untrusted):
    block_m: Annotated[int, Field(ge=1, le=LARGEST_VALUE)]
    ops: tuple[LoraOp, ...]
    ratio: RatioFigures | None


class SelectionTable(Untrusted):
    """A selection as ``Selection.as_dict`` writes it."""

    shape: dict[str, Any]
    config: dict[str, Any]
    default: dict[str, Any]
    samples_us: tuple[_Timed, ...]
    ratio: RatioFigures | None
    trials: Count
    outcomes: dict[str, Count]
    states: tuple[_State, ...]
    layer: _Layer | None = None
    replayed: ReplayedTable | None = None
    exchanged: ExchangedTable | None = None
    deterministic: bool = False

    @model_validator(mode="after")
    def _is_evident(self) -> SelectionTable:
        chosen = [self.config, *([self.exchanged.own] if self.exchanged else [])]
        if not all(any(row.config == one for row in self.samples_us) for one in chosen):
            raise ValueError("samples_us has none of the configuration that was chosen")
        if len({len(row.samples_us) for row in self.samples_us}) > 1:
            raise ValueError("samples_us has more samples of one configuration than of another")
        return self
