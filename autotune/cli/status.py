"""How far a database's studies are, for people and for machines."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.cli.tables import plain_table
from autotune.launch.moe_layer import names_of
from autotune.launch.sizes import sizes_text
from autotune.report.words import duration_text
from autotune.store import Overview, RunState, StudyState

#: Lines of a terminal that are not rows of the table: what is above it, its header, and what is
#: left out of it.
_OTHER_LINES = 6

#: Columns of words, which are cut where there is no room; numbers never are.
_WORDS = 3

#: What is shown first where there is not room for everything.
_URGENCY = {"running": 0, "done": 1, "to do": 2}


def status_lines(overview: Overview) -> list[str]:
    """What runs, how much is done, and what that has gained."""
    lines = [_run_text(run, overview.now) for run in overview.runs]
    counts = ", ".join(f"{overview.count(state)} {state}" for state in _URGENCY)
    text = f"{len(overview.studies)} studies: {counts}; {overview.trials} trials"
    if overview.last_at is not None:
        text += f", the last one {_ago(overview.last_at, overview.now)}"
    lines.append(text)
    ratios = [study.ratio for study in overview.studies if study.ratio is not None]
    if ratios:
        lines.append(
            f"Against vLLM's defaults: {statistics.median(ratios):.2f}x in the median of "
            f"{len(ratios)}, {max(ratios):.2f}x at best"
        )
    return lines


def status_view(overview: Overview, *, lines_max: int | None = None) -> RenderableType:
    """``status_lines``, and below them a row for every study.

    Args:
        overview: Of the database.
        lines_max: How many lines there is room for; studies that do not fit are left out, those to
            do first. None for any number.
    """
    shown = list(overview.studies)
    rest: list[str] = []
    if lines_max is not None:
        room = max(1, lines_max - _OTHER_LINES - len(overview.runs))
        if len(shown) > room:
            shown = _most_urgent(shown, room)
            rest = [f"... and {len(overview.studies) - room} more"]
    texts = [Text(line, no_wrap=True, overflow="ellipsis") for line in status_lines(overview)]
    tables = [_table(those) for those in _by_environment(shown).values()]
    return Group(*texts, Text(), *tables, *map(Text, rest))


def status_dict(overview: Overview, storage: str) -> dict[str, Any]:
    """The same as JSON-ready values; times are UTC."""
    return {
        "storage": storage,
        "now": _iso(overview.now),
        "counts": {state: overview.count(state) for state in _URGENCY},
        "trials": overview.trials,
        "last_at": _iso(overview.last_at),
        "runs": [_run_dict(run) for run in overview.runs],
        "studies": [_study_dict(study) for study in overview.studies],
    }


def _run_text(run: RunState, now: datetime) -> str:
    where = f"{run.host}, process {run.process}"
    if run.state == "running":
        elapsed = duration_text((now - run.started_at).total_seconds())
        return f"A run is under way for {elapsed} ({where})"
    if run.ended_at is None:
        return f"The last run is gone, without a word since {_ago(run.seen_at, now)} ({where})"
    endings = {"done": "is done", "interrupted": "was interrupted", "failed": "failed"}
    return f"The last run {endings.get(run.state, run.state)}, {_ago(run.ended_at, now)} ({where})"


def _most_urgent(studies: Sequence[StudyState], count: int) -> list[StudyState]:
    """What runs, then what was done last, then what is next; in the order that they had."""

    def urgency(study: StudyState) -> tuple[int, float]:
        latest = 0.0 if study.last_at is None else -study.last_at.timestamp()
        return _URGENCY[study.state], latest if study.state == "done" else 0.0

    kept = {study.name for study in sorted(studies, key=urgency)[:count]}
    return [study for study in studies if study.name in kept]


def _by_environment(studies: Sequence[StudyState]) -> dict[tuple[str, str], list[StudyState]]:
    found: dict[tuple[str, str], list[StudyState]] = {}
    for study in studies:
        key = (study.environment.gpu, study.environment.kernels)
        found.setdefault(key, []).append(study)
    return found


def _table(studies: Sequence[StudyState]) -> RenderableType:
    """One row a study of one environment."""
    environment = studies[0].environment
    table = plain_table(
        ("op", "layer", "sizes"), ("tokens", "state", "trials", "default µs", "best µs", "ratio")
    )
    table.title = f"{environment.gpu}, {environment.kernels}"
    table.title_justify = "left"
    table.collapse_padding = True
    for column in table.columns[_WORDS:]:
        column.no_wrap = True
    for study in studies:
        shape = study.shape
        trials = str(study.trials)
        if study.most is not None and study.state != "done":
            trials += f"/{study.most}"
        ratio = "-" if study.ratio is None else f"{study.ratio:.2f}x"
        words = (names_of((shape.op,)), study.layers, sizes_text(shape))
        names = [Text(word, no_wrap=True, overflow="ellipsis") for word in words]
        table.add_row(
            *names,
            str(shape.num_tokens),
            study.state,
            trials,
            _us(study.default_us),
            _us(study.best_us),
            ratio,
        )
    return table


def _us(latency_us: float | None) -> str:
    return "-" if latency_us is None else f"{latency_us:.2f}"


def _ago(then: datetime, now: datetime) -> str:
    """Such as ``12 s ago`` or ``3:05 min ago``."""
    seconds = max(0.0, (now - then).total_seconds())
    if seconds < 100:
        return f"{seconds:.0f} s ago"
    if seconds < 48 * 3600:
        return f"{duration_text(seconds)} ago"
    return f"{seconds / 86_400:.0f} days ago"


def _run_dict(run: RunState) -> dict[str, Any]:
    return {
        "state": run.state,
        "host": run.host,
        "process": run.process,
        "started_at": _iso(run.started_at),
        "seen_at": _iso(run.seen_at),
        "ended_at": _iso(run.ended_at),
    }


def _study_dict(study: StudyState) -> dict[str, Any]:
    chosen = study.selection
    ratio = None if chosen is None else chosen.ratio
    return {
        "name": study.name,
        "shape": study.shape.as_dict(),
        "layers": study.layers,
        "gpu": study.environment.gpu,
        "kernels": study.environment.kernels,
        "state": study.state,
        "trials": study.trials,
        "most": study.most,
        "default_us": study.default_us,
        "best_us": study.best_us,
        "ratio": study.ratio,
        "interval": None if ratio is None else [ratio.low, ratio.high],
        "config": None if chosen is None else chosen.config.as_dict(),
        "last_at": _iso(study.last_at),
    }


def _iso(utc: datetime | None) -> str | None:
    return None if utc is None else utc.isoformat(timespec="seconds") + "Z"
