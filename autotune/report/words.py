"""Numbers, times, outcomes and configurations as text."""

from __future__ import annotations

from datetime import datetime

from autotune.launch.config import KernelConfig
from autotune.measure import Outcome
from autotune.report.intervals import MedianInterval

#: What a cell shows where a value is missing.
NOTHING = "–"

#: The name of each outcome in texts and figures.
OUTCOME_NAMES = {
    outcome: "cut short" if outcome is Outcome.TOO_SLOW else outcome.value.replace("_", " ")
    for outcome in Outcome
}


def counted(count: int, noun: str) -> str:
    """A count with its noun, such as ``1 token`` or ``16 tokens``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def us_text(us: float) -> str:
    """A latency in microseconds, with two decimals so that the figures of a column line up."""
    return f"{us:,.2f}"


def interval_text(interval: MedianInterval) -> str:
    """The ends of an interval in microseconds, such as ``4.46 to 4.50``."""
    return f"{us_text(interval.low)} to {us_text(interval.high)}"


def config_text(config: KernelConfig) -> str:
    """A configuration on one line, such as ``block_m 16, block_n 32, num_warps 4``."""
    return ", ".join(f"{name} {value}" for name, value in config.as_dict().items())


def moment_text(time: datetime) -> str:
    """A date and time to the second, such as ``2026-11-25 12:00:00``."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


def duration_text(seconds: float) -> str:
    """A duration as a clock shows it, such as ``0:07`` or ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration_in_words(seconds: float) -> str:
    """A duration for a sentence, such as ``1.5 s``, ``4 min 10 s`` or ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
