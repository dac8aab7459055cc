"""Results as pandas DataFrames. pandas is imported when the first frame is made."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from autotune.choose.selection import Selection
from autotune.errors import InputError, install_hint
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import sizes_text
from autotune.measure import Measurement
from autotune.store.results import ShapeResult

if TYPE_CHECKING:
    import pandas as pd

    from autotune.report.sensitivity import Sensitivity
    from autotune.search.contest.curves import Summary

SHAPE_COLUMNS = tuple(each.name for each in fields(KernelShape))
CONFIG_COLUMNS = tuple(each.name for each in fields(KernelConfig))

#: The first columns of trials and selections. A study's name stands for one shape in one
#: environment.
_FIRST_COLUMNS = ("study", "gpu", "kernels", "layer", *SHAPE_COLUMNS)

_COMPILE_COLUMNS = ("shared_memory_bytes", "registers", "spills")

#: The types of columns for which pandas would guess another type where values are missing.
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
SENSITIVITY_COLUMNS = (
    *("kernels", "op", "sizes", "rank", "num_tokens"),
    *("default_us", "base_us", "one_us", "two_us", "best_us"),
    *("one", "two"),
)


def trials_frame(results: Iterable[ShapeResult]) -> pd.DataFrame:
    """One row for each measured configuration; the columns are ``TRIAL_COLUMNS`` for every op.

    ``trial`` counts from 0 within a study. ``latency_us`` is the median of the samples, also where
    timing was cut short, and missing where nothing was timed; ``samples`` is their number.
    ``is_default`` is missing in studies without a choice. A parameter that the op does not have is
    missing. ``slice_sizes`` is a text such as ``4096+1024+1024``. Times are naive UTC.

    Raises:
        InputError: pandas is not installed.
    """
    rows = [
        {**_first(result), **_trial(result, number, measurement)}
        for result in results
        for number, measurement in enumerate(result.measurements)
    ]
    return _frame_of(rows, TRIAL_COLUMNS, _TRIAL_TYPES)


def selections_frame(results: Iterable[ShapeResult]) -> pd.DataFrame:
    """One row for each shape with a choice; the columns are ``SELECTION_COLUMNS`` for every op.

    ``ratio`` says how many times as fast as vLLM's default the choice is; ``ratio_low`` and
    ``ratio_high`` are the ends of its 95 % interval. The three and ``default_us`` are missing where
    the default does not run.

    Raises:
        InputError: pandas is not installed.
    """
    rows = [
        {**_first(result), **_selection(result.selection)}
        for result in results
        if result.selection is not None
    ]
    return _frame_of(rows, SELECTION_COLUMNS, _SELECTION_TYPES)


def sensitivities_frame(found: Iterable[Sensitivity]) -> pd.DataFrame:
    """One row for each shape: how much of the best one and two changed parameters reach.

    ``base_us`` is the latency to start from. ``one`` names the parameter that gains most when it
    alone is changed, ``two`` the pair that gains more than it; they are empty where nothing gains.
    ``one_us`` and ``two_us`` are the latencies that they reach.

    Raises:
        InputError: pandas is not installed.
    """
    rows = [_sensitivity(each) for each in found]
    return _frame_of(rows, SENSITIVITY_COLUMNS, {"default_us": "float64"})


def summaries_frame(summaries: Iterable[Summary]) -> pd.DataFrame:
    """One row for each sampler of a contest: how near it came to the best, how soon, at what cost.

    Losses to the recorded best are percent, over shapes; the trials until a search came near the
    best are over searches.

    Raises:
        InputError: pandas is not installed.
    """
    rows = [_summary(each) for each in summaries]
    return _frame_of(rows, list(rows[0]) if rows else ["sampler"], {})


def _frame_of(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], types: Mapping[str, str]
) -> pd.DataFrame:
    """A frame with these columns; pandas guesses the types that are not given.

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


def _sensitivity(one: Sensitivity) -> dict[str, Any]:
    shape, base_us = one.shape, one.base_us
    alone = min(one.alone_us, key=lambda name: one.alone_us[name], default="")
    pair = min(one.pairs_us, key=lambda names: one.pairs_us[names], default=("", ""))
    one_us, two_us = one.alone_us.get(alone, base_us), one.pairs_us.get(pair, base_us)
    return {
        "kernels": one.kernels,
        "op": shape.op.value,
        "sizes": sizes_text(shape),
        "rank": shape.rank,
        "num_tokens": shape.num_tokens,
        "default_us": one.default_us,
        "base_us": one.base_us,
        "one_us": one_us,
        "two_us": two_us,
        "best_us": one.best_us,
        "one": alone if one_us < base_us else "",
        "two": " + ".join(pair) if two_us < one_us else "",
    }


def _summary(one: Summary) -> dict[str, Any]:
    row: dict[str, Any] = {"sampler": one.name}
    for mark, (median, worst) in one.regret.items():
        row |= {f"median after {mark}, %": 100 * median, f"worst after {mark}, %": 100 * worst}
    for nearness, (median, mean) in one.trials_to.items():
        row |= {f"median trials to {nearness:.0%}": median, f"mean trials to {nearness:.0%}": mean}
    return row | {"score": one.score, "ms per trial": one.sampler_ms, "failed": one.failed}
