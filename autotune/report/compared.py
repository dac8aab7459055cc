"""The tables of one shape: the default beside the choice, and why configurations failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from autotune.launch.config import KernelConfig
from autotune.measure import Outcome
from autotune.report.intervals import MedianInterval
from autotune.report.records import ShapeReport
from autotune.report.words import NOTHING, OUTCOME_NAMES, interval_text, us_text

#: Outcomes whose reasons are worth reading.
_EXPLAINED = set(Outcome) - {Outcome.OK, Outcome.TOO_SLOW}

#: Reasons that are shown for each outcome; the rarer ones add little.
_MOST_REASONS = 3


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """One fact about the default and the same fact about the choice, as text."""

    name: str
    default: str
    tuned: str
    is_parameter: bool = False

    @property
    def differs(self) -> bool:
        """Whether this is a parameter that was changed."""
        return self.is_parameter and self.default != self.tuned


def compared_rows(report: ShapeReport) -> list[ComparedRow]:
    """The default beside the choice: latency, what the latency achieves, and parameters."""
    default = report.result.default
    tuned = None if report.selection is None else report.selection.config
    both = [{} if each is None else each.as_dict() for each in (default, tuned)]
    rows = [
        ComparedRow(name, *_texts(both, name), is_parameter=True)
        for name in report.shape.op.parameters
    ]
    facts = [_facts(report, each) for each in (default, tuned)]
    return [*(ComparedRow(name, text, facts[1][name]) for name, text in facts[0].items()), *rows]


def _texts(both: Iterable[Mapping[str, int]], name: str) -> tuple[str, str]:
    default, tuned = (str(of.get(name, NOTHING)) for of in both)
    return default, tuned


def _facts(report: ShapeReport, config: KernelConfig | None) -> dict[str, str]:
    latency, found = report.latency(config), report.measurement(config)
    why = NOTHING if found is None else OUTCOME_NAMES[found.outcome]
    facts = {
        "µs per launch": why if latency is None else us_text(latency.median),
        "95 % interval": NOTHING if latency is None else interval_text(latency),
        "GB/s": _rate(report.bytes_moved / 1e3, latency),
        "TFLOP/s": _rate(report.flops / 1e6, latency),
    }
    if report.floor_us is not None:
        share = NOTHING if latency is None else f"{report.floor_us / latency.median:.0%}"
        facts["share of the roofline"] = share
    names = ("registers", "spills", "shared_memory_bytes")
    known = [None if found is None else getattr(found, name) for name in names]
    texts = [NOTHING if value is None else f"{value:,}" for value in known]
    return facts | dict(zip(("registers", "spills", "shared memory, bytes"), texts, strict=True))


def _rate(amount: float, latency: MedianInterval | None) -> str:
    if latency is None:
        return NOTHING
    rate = amount / latency.median
    return f"{rate:,.1f}" if rate >= 1 else f"{rate:.2g}"


@dataclass(frozen=True, slots=True)
class Explained:
    """How many configurations ended in an outcome, and the most common reasons."""

    outcome: str
    count: int
    reasons: tuple[tuple[str, int], ...]


def explained(report: ShapeReport) -> list[Explained]:
    """Why configurations did not work, one entry for each outcome that occurred."""
    reasons: dict[Outcome, Counter[str]] = {}
    for each in report.result.measurements:
        if each.outcome in _EXPLAINED:
            reasons.setdefault(each.outcome, Counter())[each.reason] += 1
    return [
        Explained(
            OUTCOME_NAMES[outcome],
            reasons[outcome].total(),
            tuple(reasons[outcome].most_common(_MOST_REASONS)),
        )
        for outcome in Outcome
        if outcome in reasons
    ]
