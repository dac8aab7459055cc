"""What a reader must know first: the answer, and everything that is not as it should be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from autotune.measure import Outcome
from autotune.report.plots.figures import OUTCOME_NAMES
from autotune.report.records import DeviceReport, ShapeReport

#: Shapes that a remark names; more are counted.
_MOST_NAMED = 4


#: Per verdict that needs a word its level, and the end of a sentence about such shapes.
_OF_VERDICTS = {
    "slower": (
        "bad",
        "slower than the default: their MoE layer shares the block_m that is best for all of it",
    ),
    "nothing works": ("bad", "without a configuration that works: they have no entry"),
    "not finished": ("note", "without a choice yet: a run is under way, or was interrupted"),
    "default fails": ("note", "whose default does not run: there is nothing to compare with"),
    "same": ("note", "no faster than the default beyond the noise"),
    "default kept": ("note", "where nothing beats vLLM's default: its own values are kept"),
}


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing to know: ``good``, ``note`` or ``bad``, and a sentence."""

    level: str
    text: str


def answer(device: DeviceReport) -> str:
    """What came of it, in one sentence."""
    ratios, median = device.ratios, device.median_ratio
    if median is None:
        return "No shape has been chosen for yet, so there is nothing to compare."
    best, where = ratios[-1]
    count = len(ratios)
    if count == 1:
        return f"What was chosen is {best:.2f} times as fast as vLLM's default ({where.name})."
    return (
        f"What was chosen is {median:.2f} times as fast as vLLM's default in the median of "
        f"{count} shapes, and up to {best:.2f} times ({where.name})."
    )


def remarks(device: DeviceReport) -> list[Remark]:
    """Everything that is not as it should be; where all is well, one line that says so."""
    found = [*_of_verdicts(device), *_of_failures(device), *_of_choices(device)]
    if device.ratios and not any(one.level == "bad" for one in found):
        found.insert(0, Remark("good", "Nothing that was chosen is slower than vLLM's default."))
    return found


def _of_verdicts(device: DeviceReport) -> Iterator[Remark]:
    for verdict, (level, text) in _OF_VERDICTS.items():
        those = [one for one in device.shapes if one.verdict == verdict]
        if those:
            yield Remark(level, _shapes(those, text))


def _of_failures(device: DeviceReport) -> Iterator[Remark]:
    """What the search met; wrong numbers are told apart, since nothing but a fault gives them."""
    failures = device.failures
    wrong = failures.pop(Outcome.WRONG_RESULT.value, 0)
    if wrong:
        text = "configurations gave wrong numbers and were thrown out: look at the kernels, Triton"
        yield Remark("bad", f"{wrong:,} {text} or the device.")
    if failures:
        kinds = ", ".join(f"{n:,} {OUTCOME_NAMES[Outcome(name)]}" for name, n in failures.items())
        count = f"{failures.total():,} of {device.trials:,} configurations"
        yield Remark("note", f"{count} did not run ({kinds}); none of them can be chosen.")


def _of_choices(device: DeviceReport) -> Iterator[Remark]:
    stale = [one for one in device.shapes if one.is_stale]
    if stale:
        text = "searched further after they were chosen for: run again to choose anew"
        yield Remark("note", _shapes(stale, text))
    if device.is_throttled:
        yield Remark(
            "note",
            "The device held its clocks down (heat or power) while finalists were timed. They took "
            "turns, so ratios hold; latencies may be higher than usual.",
        )


def _shapes(those: Iterable[ShapeReport], text: str) -> str:
    """A sentence about shapes, such as ``2 shapes without a choice yet: …: shrink qkv, …``."""
    names = [one.name for one in those]
    count = f"{len(names)} shape{'' if len(names) == 1 else 's'}"
    more = f"; and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{count} {text} ({'; '.join(names[:_MOST_NAMED])}{more})."
