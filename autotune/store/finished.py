"""A measurement as the database keeps it: a row, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement
from autotune.measure.figures import Figures
from autotune.store.claims import Claim
from autotune.untrusted import parse_json, read_row


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A measurement and when it was made, as naive UTC times."""

    measurement: Measurement
    started_at: datetime
    finished_at: datetime


def row_of(study: int, item: Finished, claim: Claim | None, device: str) -> dict[str, Any]:
    """A row of ``schema.measurements``, for the study of that number."""
    measurement = item.measurement
    return {
        "run_id": claim and claim.run,
        "device": device or None,
        "study_id": study,
        "config": json.dumps(measurement.config.as_dict()),
        "outcome": measurement.outcome.value,
        "reason": measurement.reason,
        "samples_us": json.dumps(measurement.samples_us),
        "relative_error": measurement.relative_error,
        "shared_memory_bytes": measurement.shared_memory_bytes,
        "registers": measurement.registers,
        "spills": measurement.spills,
        "started_at": item.started_at,
        "finished_at": item.finished_at,
    }


def finished_of(shape: KernelShape, row: sa.Row[Any]) -> Finished:
    """A row of ``schema.measurements``.

    Raises:
        InputError: A value of the row is wrong.
    """
    figures = {name: getattr(row, name) for name in Figures.model_fields}
    figures["samples_us"] = parse_json(row.samples_us)
    config = KernelConfig.from_mapping(shape.op, parse_json(row.config))
    measurement = read_row(Figures, figures).measurement(shape, config)
    return Finished(measurement=measurement, started_at=row.started_at, finished_at=row.finished_at)
