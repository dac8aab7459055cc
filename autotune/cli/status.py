"""How far a database's studies are, as text and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.cli.tables import plain_table, us_text
from autotune.launch.moe_layer import names_of
from autotune.launch.sizes import sizes_text
from autotune.report.words import duration_text
from autotune.store import Overview, RunState, StudyState, Work

#: Lines beside the rows of the table and the runs: the studies, the ratios, an empty line, the
#: table's title and header, and the number of studies left out.
_OTHER_LINES = 6

#: The first columns hold words, which are cut where there is no room. Numbers are never cut.
_WORDS = 3

#: Where there is not room for all studies, those in the states with low numbers are shown.
_URGENCY = {"running": 0, "done": 1, "to do": 2}


def status_lines(overview: Overview) -> list[str]:
    """The latest runs, how many studies are done, and how much faster they are."""
    lines = [line for run in overview.runs for line in _run_lines(run, overview.now)]
    counts = ", ".join(f"{overview.count(state)} {state}" for state in _URGENCY)
    text = f"{len(overview.studies)} studies: {counts}; {overview.trials} trials"
    if overview.last_at is not None:
        text += f", the last one {_ago(overview.last_at, overview.now)}"
    lines.append(text)
    replays = [study.replayed for study in overview.studies if study.replayed is not None]
    if replays:
        sources = "; ".join(dict.fromkeys(map(str, replays)))
        lines.append(f"Replayed, not measured here: {len(replays)} studies, from {sources}")
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
        overview: The state of the database.
        lines_max: The most lines to fill; None for any number. Where studies must be left out,
            those still to do go first.
    """
    shown = list(overview.studies)
    rest: list[str] = []
    if lines_max is not None:
        of_runs = sum(1 + bool(str(run.load)) for run in overview.runs)
        room = max(1, lines_max - _OTHER_LINES - of_runs)
        if len(shown) > room:
            shown = _most_urgent(shown, room)
            rest = [f"... and {len(overview.studies) - room} more"]
    texts = [Text(line, no_wrap=True, overflow="ellipsis") for line in status_lines(overview)]
    tables = [_table(those, overview.now) for those in _by_environment(shown).values()]
    return Group(*texts, Text(), *tables, *map(Text, rest))


def status_dict(overview: Overview, storage: str) -> dict[str, Any]:
    """The state of a database as JSON-ready values; times are UTC."""
    return {
        "storage": storage,
        "now": _iso(overview.now),
        "counts": {state: overview.count(state) for state in _URGENCY},
        "trials": overview.trials,
        "last_at": _iso(overview.last_at),
        "runs": [_run_dict(run) for run in overview.runs],
        "studies": [_study_dict(study) for study in overview.studies],
    }


def _run_lines(run: RunState, now: datetime) -> list[str]:
    """What a run does, and where it is known how busy it is."""
    busy = str(run.load)
    return [_run_text(run, now), *([f"  busy: {busy}"] if busy else [])]


def _run_text(run: RunState, now: datetime) -> str:
    where = f"{run.host}, process {run.process}"
    if run.state == "running":
        elapsed = duration_text((now - run.started_at).total_seconds())
        return f"A run is under way for {elapsed} ({where})"
    if run.ended_at is None:
        return f"The last run is gone; it was last seen {_ago(run.seen_at, now)} ({where})"
    endings = {"done": "is done", "interrupted": "was interrupted", "failed": "failed"}
    return f"The last run {endings.get(run.state, run.state)}, {_ago(run.ended_at, now)} ({where})"


def _most_urgent(studies: Sequence[StudyState], count: int) -> list[StudyState]:
    """The running studies, then the last done, then the next to do; kept in the order given."""

    def urgency(study: StudyState) -> tuple[int, float]:
        latest = 0.0 if study.last_at is None else -study.last_at.timestamp()
        return _URGENCY[study.state], latest if study.state == "done" else 0.0

    kept = {study.name for study in sorted(studies, key=urgency)[:count]}
    return [study for study in studies if study.name in kept]


def _by_environment(studies: Sequence[StudyState]) -> dict[tuple[str, str], list[StudyState]]:
    found: dict[tuple[str, str], list[StudyState]] = {}
    for study in studies:
        key = (study.environment.gpu, study.environment.title)
        found.setdefault(key, []).append(study)
    return found


def _table(studies: Sequence[StudyState], now: datetime) -> RenderableType:
    """The studies of one environment, a row each.

    It says whose they are where a run has some of them, or where several have measured them.
    """
    works = {(by.host, by.process, by.device) for study in studies for by in study.works}
    says_whose = len(works) > 1 or any(study.holder for study in studies)
    environment = studies[0].environment
    table = plain_table(
        ("op", "layer", "sizes"), ("tokens", "state", "trials", "default µs", "best µs", "ratio")
    )
    table.title = f"{environment.gpu}, {environment.title}"
    table.title_justify = "left"
    table.collapse_padding = True
    for column in table.columns[_WORDS:]:
        column.no_wrap = True
    if says_whose:
        table.add_column("by", no_wrap=True)
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
            us_text(study.default_us, missing="-"),
            us_text(study.best_us, missing="-"),
            ratio,
            *([_works_text(study, now)] if says_whose else []),
        )
    return table


def _works_text(study: StudyState, now: datetime) -> str:
    """Who searches a study and since when, or who has measured it."""
    if (by := study.holder) is not None and by.since is not None:
        return f"{_by_text(by)} for {duration_text(max(0.0, (now - by.since).total_seconds()))}"
    return ", ".join(f"{_by_text(by)} ({by.trials})" for by in study.works if by.trials)


def _by_text(work: Work) -> str:
    return f"{work.host} {work.process}" + (f" {work.device}" if work.device else "")


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
        "busy": {name: round(share, 3) for name, share in run.load.shares.items()},
        "lost": [one.device for one in run.load.devices if one.is_lost],
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
        "replayed": None if study.replayed is None else study.replayed.as_dict(),
        "runs": [
            {
                "host": work.host,
                "process": work.process,
                "gpu": work.device or None,
                "trials": work.trials,
                "has_it_since": _iso(work.since),
            }
            for work in study.works
        ],
    }


def _iso(utc: datetime | None) -> str | None:
    return None if utc is None else utc.isoformat(timespec="seconds") + "Z"
