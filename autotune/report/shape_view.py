"""The part of the page for one shape: texts, cells and figures, as the template takes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from markupsafe import Markup

from autotune.launch.sizes import sizes_text
from autotune.measure.measurement import outcome_counts
from autotune.report.compared import ComparedRow, Explained, compared_rows, explained
from autotune.report.intervals import MedianInterval
from autotune.report.page_figures import Spec, shape_figures
from autotune.report.records import ShapeReport
from autotune.report.words import NOTHING, interval_text, us_text

#: What the column of ratios shows for verdicts without a ratio.
_WITHOUT_RATIO = {
    "default kept": "default kept",
    "default fails": "default fails",
    "nothing works": "nothing works",
    "not finished": "no choice yet",
}

_LEVELS = {"slower": "bad", "nothing works": "bad", "faster": "good"}


class Cell(NamedTuple):
    """A cell of the table of all shapes: text, small text below it, and the value to sort by."""

    text: str
    small: str = ""
    value: float | str = ""

    @classmethod
    def of(cls, latency: MedianInterval | None) -> Cell:
        """The cell of a latency."""
        if latency is None:
            return cls(NOTHING)
        return cls(us_text(latency.median), interval_text(latency), latency.median)


@dataclass(frozen=True)  # no slots: cached_property keeps the figures beside the fields
class ShapeView:
    """One shape: its row in the table, and its panel.

    Attributes:
        number: The place in the page, from 1; the address of the shape is ``#shape-{number}``.
        report: The shape.
        has_order: Whether the measurements are in the order in which they were made.
        most: The largest ratio of the device, which has the longest bar.
    """

    number: int
    report: ShapeReport
    has_order: bool
    most: float

    @property
    def level(self) -> str:
        """The CSS class of the row."""
        return _LEVELS.get(self.report.verdict, "note")

    @property
    def kind(self) -> str:
        """The name of the kind: op and layers."""
        return self.report.kind

    @property
    def sizes(self) -> str:
        """The sizes of the input and the output."""
        return sizes_text(self.report.shape)

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return self.report.shape.num_tokens

    @property
    def default(self) -> Cell:
        """The default's latency."""
        return Cell.of(self.report.default)

    @property
    def tuned(self) -> Cell:
        """The latency of the choice."""
        return Cell.of(self.report.tuned)

    @property
    def ratio(self) -> Cell:
        """How many times as fast as the default the choice is."""
        text = _WITHOUT_RATIO.get(self.report.verdict)
        ratio = None if self.report.selection is None else self.report.selection.ratio
        if text is not None or ratio is None:
            return Cell(text or NOTHING, value="" if ratio is None else ratio.value)
        return Cell(f"{ratio.value:.2f}", f"{ratio.low:.2f} to {ratio.high:.2f}", ratio.value)

    @property
    def bar(self) -> float:
        """The length of the bar, in percent of the longest."""
        value = self.ratio.value
        return round(100 * value / self.most, 1) if isinstance(value, float) else 0.0

    @property
    def share(self) -> Cell:
        """The share of the roofline that the choice reaches."""
        floor_us, tuned = self.report.floor_us, self.report.tuned
        if floor_us is None or tuned is None:
            return Cell(NOTHING)
        return Cell(f"{floor_us / tuned.median:.0%}", value=floor_us / tuned.median)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many configurations were measured, cut short, invalid and failed."""
        invalid, failed, cut = outcome_counts(self.report.outcomes)
        return self.report.outcomes.total(), cut, invalid, failed

    @property
    def ratio_text(self) -> str:
        """What follows the shape's name in the list of shapes."""
        text = self.ratio.text
        return f": {text}" if text in _WITHOUT_RATIO.values() else f": {text}x"

    @property
    def sentence(self) -> str:
        """The result, in one sentence."""
        default, tuned, ratio, verdict = self.default, self.tuned, self.ratio, self.report.verdict
        if self.report.selection is None:
            return f"{_WITHOUT_RATIO[verdict].capitalize()} among {self.counts[0]} configurations."
        if verdict == "default fails":
            return f"The default does not run; the choice takes {tuned.text} µs."
        if verdict == "default kept":
            return f"Nothing beats vLLM's default beyond the noise: {default.text} µs."
        return (
            f"{default.text} → {tuned.text} µs: {ratio.text} times as fast "
            f"(95 % interval {ratio.small})."
        )

    @property
    def circumstances(self) -> str:
        """For a MoE op: the kernel that was timed, and what was decided for the whole layer."""
        layer = None if self.report.selection is None else self.report.selection.layer
        sentences = [f"What was timed is {self.report.kernel}."] if self.report.kernel else []
        if layer is not None:
            sentences.append(f"All ops of the MoE layer have block_m {layer.block_m}.")
            if layer.ratio is not None:
                gain = f"{layer.ratio.value:.2f} times as fast as the default"
                sentences.append(f"Together the {len(layer.ops)} ops are {gain}.")
        return " ".join(sentences)

    @property
    def rows(self) -> list[ComparedRow]:
        """The default beside the choice."""
        return compared_rows(self.report)

    @property
    def explained(self) -> list[Explained]:
        """Why configurations did not work."""
        return explained(self.report)

    @cached_property
    def figures(self) -> dict[str, Spec]:
        """The figures by name."""
        return shape_figures(self.report, has_order=self.has_order)

    @property
    def figures_json(self) -> Markup:
        """The figures for the page's script."""
        return as_json(self.figures)


def as_json(value: object) -> Markup:
    """JSON that is safe within a script element, whatever texts it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704 - without < there is no tag
