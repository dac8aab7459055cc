"""Results as pandas DataFrames; pandas is only imported when one is made."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from autotune.choose.selection import Selection
from autotune.errors import InputError, install_hint
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement
from autotune.store.results import ShapeResult

if TYPE_CHECKING:
    import pandas as pd

SHAPE_COLUMNS = tuple(each.name for each in fields(KernelShape))
CONFIG_COLUMNS = tuple(each.name for each in fields(KernelConfig))

#: Columns that both frames begin with: a study's name tells a shape and its environment from all
#: others.
_FIRST_COLUMNS = ("study", "gpu", "kernels", "layer", *SHAPE_COLUMNS)

_COMPILE_COLUMNS = ("shared_memory_bytes", "registers", "spills")

#: The types of columns that pandas would guess wrong where values are missing.
_TRIAL_TYPES = {
    **dict.fromkeys((*CONFIG_COLUMNS, *_COMPILE_COLUMNS), "Int64"),
    "is_default": "boolean",
    "latency_us": "float64",
    "relative_error": "float64",
    "started_at": "datetime64[us]",
    "finished_at": "datetime64[us]",
}
_SELECTION_TYPES = {
    **dict.fromkeys(CONFIG_COLUMNS, "Int64"),
    **dict.fromkeys(("default_us", "ratio", "ratio_low", "ratio_high"), "float64"),
}

TRIAL_COLUMNS = (
    *_FIRST_COLUMNS,
    "trial",
    *CONFIG_COLUMNS,
    "is_default",
    "outcome",
    "reason",
    "latency_us",
    "samples",
    "relative_error",
    *_COMPILE_COLUMNS,
    "started_at",
    "finished_at",
)
SELECTION_COLUMNS = (
    *_FIRST_COLUMNS,
    *CONFIG_COLUMNS,
    "default_us",
    "tuned_us",
    "ratio",
    "ratio_low",
    "ratio_high",
    "is_default",
    "trials",
)


def trials_frame(results: Iterable[ShapeResult]) -> pd.DataFrame:
    """One row a measured configuration; the columns are ``TRIAL_COLUMNS``, whatever the ops.

    ``trial`` counts from 0 within a study. ``latency_us`` is the median of the ``samples`` that
    were taken, of what was cut short too, and missing where nothing was timed. ``is_default`` is
    missing of studies that have not come to their choice. A parameter that the op does not have is
    missing, ``slice_sizes`` is a text such as ``4096+1024+1024``, and times are naive UTC.

    Raises:
        InputError: pandas is not installed.
    """
    rows = [
        {**_first(result), **_trial(result, number, measurement)}
        for result in results
        for number, measurement in enumerate(result.measurements)
    ]
    return frame_of(rows, TRIAL_COLUMNS, _TRIAL_TYPES)


def selections_frame(results: Iterable[ShapeResult]) -> pd.DataFrame:
    """One row a shape with a choice; the columns are ``SELECTION_COLUMNS``, whatever the ops.

    ``ratio`` says how many times as fast as vLLM's default the choice is, with the ends of its 95 %
    interval; it and ``default_us`` are missing where the default does not run.

    Raises:
        InputError: pandas is not installed.
    """
    rows = [
        {**_first(result), **_selection(result.selection)}
        for result in results
        if result.selection is not None
    ]
    return frame_of(rows, SELECTION_COLUMNS, _SELECTION_TYPES)


def frame_of(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], types: Mapping[str, str]
) -> pd.DataFrame:
    """A frame with these columns, of the types that are not left to pandas.

    Raises:
        InputError: pandas is not installed.
    """
    if importlib.util.find_spec("pandas") is None:
        raise InputError(
            "results as DataFrames need pandas, which is not installed here; install it with: "
            + install_hint("pandas")
        )
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(columns))
    return frame.astype(dict(types))


def _first(result: ShapeResult) -> dict[str, Any]:
    shape, environment = result.shape, result.environment
    return {
        "study": result.study,
        "gpu": environment.gpu,
        "kernels": environment.kernels,
        "layer": result.layer,
        **{name: getattr(shape, name) for name in SHAPE_COLUMNS},
        "op": shape.op.value,
        "slice_sizes": "+".join(map(str, shape.slice_sizes)),
    }


def _trial(result: ShapeResult, number: int, measurement: Measurement) -> dict[str, Any]:
    started_at, finished_at = result.times[number] if result.times else (None, None)
    default = result.default
    return {
        "trial": number,
        **measurement.config.as_dict(),
        "is_default": None if default is None else measurement.config == default,
        "outcome": measurement.outcome.value,
        "reason": measurement.reason,
        "latency_us": measurement.latency_us if measurement.samples_us else None,
        "samples": len(measurement.samples_us),
        "relative_error": measurement.relative_error,
        **{name: getattr(measurement, name) for name in _COMPILE_COLUMNS},
        "started_at": started_at,
        "finished_at": finished_at,
    }


def _selection(selection: Selection) -> dict[str, Any]:
    ratio = selection.ratio
    return {
        **selection.config.as_dict(),
        "default_us": selection.default_latency_us,
        "tuned_us": selection.latency_us,
        "ratio": ratio and ratio.value,
        "ratio_low": ratio and ratio.low,
        "ratio_high": ratio and ratio.high,
        "is_default": selection.is_default,
        "trials": selection.trials,
    }
