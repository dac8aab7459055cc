"""What the page's template is filled with for one shape: texts, cells and figures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from markupsafe import Markup

from autotune.launch.sizes import sizes_text
from autotune.measure.measurement import outcome_counts
from autotune.report.intervals import MedianInterval
from autotune.report.page_figures import Spec, shape_figures
from autotune.report.panel import (
    NOTHING,
    ComparedRow,
    Explained,
    compared_rows,
    explained,
    interval_text,
    us_text,
)
from autotune.report.records import ShapeReport

#: Verdicts as the column of ratios says them where there is none.
_WITHOUT_RATIO = {
    "default kept": "default kept",
    "default fails": "default fails",
    "nothing works": "nothing works",
    "not finished": "no choice yet",
}

_LEVELS = {"slower": "bad", "nothing works": "bad", "faster": "good"}


class Cell(NamedTuple):
    """A cell of the table of all shapes: its text, what is smaller below it, what it sorts by."""

    text: str
    small: str = ""
    value: float | str = ""

    @classmethod
    def of(cls, latency: MedianInterval | None) -> Cell:
        """Of a latency."""
        if latency is None:
            return cls(NOTHING)
        return cls(us_text(latency.median), interval_text(latency), latency.median)


@dataclass(frozen=True)  # its figures are made once, and cached beside the fields
class ShapeView:
    """One shape: a row of the table, and its panel.

    Attributes:
        number: Its place in the report, from 1; its address is ``#shape-{number}``.
        one: The shape.
        has_order: Whether its measurements are in the order in which they were made.
        most: The largest ratio of its device, which has the longest bar.
    """

    number: int
    one: ShapeReport
    has_order: bool
    most: float

    @property
    def level(self) -> str:
        """How the row is marked."""
        return _LEVELS.get(self.one.verdict, "note")

    @property
    def kind(self) -> str:
        """Op and layer."""
        return self.one.kind

    @property
    def sizes(self) -> str:
        """What goes in and what comes out."""
        return sizes_text(self.one.shape)

    @property
    def tokens(self) -> int:
        """The batch."""
        return self.one.shape.num_tokens

    @property
    def default(self) -> Cell:
        """The default's latency."""
        return Cell.of(self.one.default)

    @property
    def tuned(self) -> Cell:
        """The latency of what was chosen."""
        return Cell.of(self.one.tuned)

    @property
    def ratio(self) -> Cell:
        """How many times as fast."""
        text = _WITHOUT_RATIO.get(self.one.verdict)
        ratio = None if self.one.selection is None else self.one.selection.ratio
        if text is not None or ratio is None:
            return Cell(text or NOTHING, value="" if ratio is None else ratio.value)
        return Cell(f"{ratio.value:.2f}", f"{ratio.low:.2f} to {ratio.high:.2f}", ratio.value)

    @property
    def bar(self) -> float:
        """Percent of the longest bar."""
        value = self.ratio.value
        return round(100 * value / self.most, 1) if isinstance(value, float) else 0.0

    @property
    def share(self) -> Cell:
        """What was chosen as a share of the roofline."""
        floor_us, tuned = self.one.floor_us, self.one.tuned
        if floor_us is None or tuned is None:
            return Cell(NOTHING)
        return Cell(f"{floor_us / tuned.median:.0%}", value=floor_us / tuned.median)

    @property
    def counts(self) -> tuple[int, ...]:
        """Configurations measured, cut short, invalid and failed."""
        invalid, failed, cut = outcome_counts(self.one.outcomes)
        return self.one.outcomes.total(), cut, invalid, failed

    @property
    def ratio_text(self) -> str:
        """What follows its name where one is chosen from a list."""
        text = self.ratio.text
        return f": {text}" if text in _WITHOUT_RATIO.values() else f": {text}x"

    @property
    def sentence(self) -> str:
        """What came of it."""
        default, tuned, ratio, verdict = self.default, self.tuned, self.ratio, self.one.verdict
        if self.one.selection is None:
            return f"{_WITHOUT_RATIO[verdict].capitalize()} among {self.counts[0]} configurations."
        if verdict == "default fails":
            return f"The default does not run; what was chosen takes {tuned.text} µs."
        if verdict == "default kept":
            return f"Nothing beats vLLM's default beyond the noise: {default.text} µs."
        return (
            f"{default.text} → {tuned.text} µs: {ratio.text} times as fast "
            f"(95 % interval {ratio.small})."
        )

    @property
    def circumstances(self) -> str:
        """What else to know of a MoE op: what is timed, and what its layer decided."""
        layer = None if self.one.selection is None else self.one.selection.layer
        sentences = [f"Timed is {self.one.kernel}."] if self.one.kernel else []
        if layer is not None:
            sentences.append(f"block_m {layer.block_m} is that of its whole MoE layer.")
            if layer.ratio is not None:
                gain = f"{layer.ratio.value:.2f} times as fast as the default"
                sentences.append(f"The {len(layer.ops)} ops together are {gain}.")
        return " ".join(sentences)

    @property
    def rows(self) -> list[ComparedRow]:
        """The default beside what was chosen."""
        return compared_rows(self.one)

    @property
    def explained(self) -> list[Explained]:
        """Why configurations did not work."""
        return explained(self.one)

    @cached_property
    def figures(self) -> dict[str, Spec]:
        """Its figures by name."""
        return shape_figures(self.one, has_order=self.has_order)

    @property
    def figures_json(self) -> Markup:
        """The same for the page's script."""
        return as_json(self.figures)


def as_json(value: object) -> Markup:
    """JSON that is safe within a script element, whatever names and reasons are in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704 - no tag is left in it
