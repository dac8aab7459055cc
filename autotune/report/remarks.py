"""What a reader must know first: the answer in one sentence, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from autotune.choose.served import Distinct
from autotune.measure import Outcome
from autotune.report.records import DeviceReport, ShapeReport
from autotune.report.words import OUTCOME_NAMES, counted

#: Shapes that a remark names; it counts the others.
_MOST_NAMED = 4

#: By verdict that needs a remark: its level, and how a sentence about such shapes goes on.
_OF_VERDICTS = {
    "slower": (
        "bad",
        "slower than the default: a MoE layer has one block_m, the best for its ops together",
    ),
    "nothing works": ("bad", "without a configuration that works: nothing is exported there"),
    "not finished": ("note", "without a choice yet: a run is under way, or was interrupted"),
    "default fails": (
        "note",
        "whose default does not run: there is nothing to compare the choice with",
    ),
    "same": ("note", "no faster than the default beyond the noise"),
    "default kept": ("note", "where nothing beats vLLM's default: the default's values are kept"),
}


@dataclass(frozen=True, slots=True)
class Remark:
    """One sentence to read, and its level: ``good``, ``note`` or ``bad``."""

    level: str
    text: str


def answer(device: DeviceReport) -> str:
    """The result for a device, in one sentence."""
    ratios, median = device.ratios, device.median_ratio
    if median is None:
        return "No shape has a ratio to vLLM's default yet, so there is nothing to compare."
    best, where = ratios[-1]
    count = len(ratios)
    if count == 1:
        return f"The choice is {best:.2f} times as fast as vLLM's default ({where.name})."
    return (
        f"The choice is {median:.2f} times as fast as vLLM's default in the median of "
        f"{count} shapes, and up to {best:.2f} times ({where.name})."
    )


def remarks(device: DeviceReport) -> list[Remark]:
    """What went wrong or needs a note; where all is well, the first remark says so."""
    found = [
        *_of_replays(device),
        *_of_verdicts(device),
        *_of_failures(device),
        *_of_choices(device),
        *_of_configurations(device),
    ]
    has_slower = any(one.verdict == "slower" for one in device.shapes)
    if device.ratios and not has_slower and not any(one.level == "bad" for one in found):
        found.insert(0, Remark("good", "No choice is slower than vLLM's default."))
    return found


def _of_replays(device: DeviceReport) -> Iterator[Remark]:
    for replayed, count in device.replays.items():
        shapes = counted(count, "shape")
        yield Remark("note", f"Replayed, not measured here: {shapes}, from {replayed}.")


def _of_verdicts(device: DeviceReport) -> Iterator[Remark]:
    remarks = dict(_OF_VERDICTS)
    if device.environment.deterministic:
        remarks["slower"] = ("note", "slower than the default, which splits k: it is not chosen")
    for verdict, (level, text) in remarks.items():
        those = [one for one in device.shapes if one.verdict == verdict]
        if those:
            yield Remark(level, _shapes(those, text))


def _of_failures(device: DeviceReport) -> Iterator[Remark]:
    """Failed configurations. Wrong numbers have their own remark: only a fault causes them."""
    failures = device.failures
    wrong = failures.pop(Outcome.WRONG_RESULT.value, 0)
    if wrong:
        text = "configurations gave wrong numbers and cannot be chosen: check the kernels, Triton"
        yield Remark("bad", f"{wrong:,} {text} and the device.")
    if failures:
        kinds = ", ".join(f"{n:,} {OUTCOME_NAMES[Outcome(name)]}" for name, n in failures.items())
        count = f"{failures.total():,} of {device.trials:,} configurations"
        yield Remark("note", f"{count} did not run ({kinds}); none of them can be chosen.")


def _of_choices(device: DeviceReport) -> Iterator[Remark]:
    stale = [one for one in device.shapes if one.is_stale]
    if stale:
        text = "with trials that are newer than the choice: run again to choose anew"
        yield Remark("note", _shapes(stale, text))
    if device.is_throttled:
        yield Remark(
            "note",
            "The device held its clocks down (heat or power) while finalists were timed. The "
            "finalists took turns, so ratios hold; latencies may be higher than usual.",
        )


def _of_configurations(device: DeviceReport) -> Iterator[Remark]:
    """How many configurations a server compiles."""
    line = Distinct.of(one.selection for one in device.shapes if one.selection is not None).line
    if line:
        yield Remark("note", line)


def _shapes(those: Iterable[ShapeReport], text: str) -> str:
    """A sentence about shapes, such as ``1 shape without a choice yet (shrink qkv, 1 token).``."""
    names = [one.name for one in those]
    more = f"; and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{counted(len(names), 'shape')} {text} ({'; '.join(names[:_MOST_NAMED])}{more})."
