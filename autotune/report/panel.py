"""The tables beside the figures of one shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from autotune.launch.config import KernelConfig
from autotune.measure import Outcome
from autotune.report.intervals import MedianInterval
from autotune.report.plots.figures import OUTCOME_NAMES
from autotune.report.records import ShapeReport

#: What a cell says of something that is not there.
NOTHING = "–"

#: Outcomes that have a reason worth reading.
_EXPLAINED = set(Outcome) - {Outcome.OK, Outcome.TOO_SLOW}

#: Reasons that are shown of each outcome: of many alike the first few say it all.
_MOST_REASONS = 3


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A fact of the default beside the same of what was chosen, as text."""

    name: str
    default: str
    tuned: str
    is_parameter: bool = False

    @property
    def differs(self) -> bool:
        """Whether it is a parameter that was changed."""
        return self.is_parameter and self.default != self.tuned


def compared_rows(one: ShapeReport) -> list[ComparedRow]:
    """The default beside what was chosen: its parameters, its latency and what that achieves."""
    default = one.result.default
    tuned = None if one.selection is None else one.selection.config
    both = [{} if each is None else each.as_dict() for each in (default, tuned)]
    rows = [
        ComparedRow(name, *_texts(both, name), is_parameter=True)
        for name in one.shape.op.parameters
    ]
    facts = [_facts(one, each) for each in (default, tuned)]
    return [*(ComparedRow(name, text, facts[1][name]) for name, text in facts[0].items()), *rows]


def _texts(both: Iterable[Mapping[str, int]], name: str) -> tuple[str, str]:
    default, tuned = (str(of.get(name, NOTHING)) for of in both)
    return default, tuned


def _facts(one: ShapeReport, config: KernelConfig | None) -> dict[str, str]:
    latency, found = one.latency(config), one.measurement(config)
    why = NOTHING if found is None else OUTCOME_NAMES[found.outcome]
    facts = {
        "µs per launch": why if latency is None else us_text(latency.median),
        "95 % interval": NOTHING if latency is None else interval_text(latency),
        "GB/s": _rate(one.bytes_moved / 1e3, latency),
        "TFLOP/s": _rate(one.flops / 1e6, latency),
    }
    if one.floor_us is not None:
        share = NOTHING if latency is None else f"{one.floor_us / latency.median:.0%}"
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


def us_text(us: float) -> str:
    """A latency in microseconds with two decimals, as tables line them up."""
    return f"{us:,.2f}"


def interval_text(interval: MedianInterval) -> str:
    """The ends of an interval, such as ``4.46 to 4.50``."""
    return f"{us_text(interval.low)} to {us_text(interval.high)}"


@dataclass(frozen=True, slots=True)
class Explained:
    """Why configurations ended in an outcome: how many, and the commonest reasons."""

    outcome: str
    count: int
    reasons: tuple[tuple[str, int], ...]


def explained(one: ShapeReport) -> list[Explained]:
    """What went wrong with the configurations that did not work."""
    reasons: dict[Outcome, Counter[str]] = {}
    for each in one.result.measurements:
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
