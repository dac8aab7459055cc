"""What the page's template is filled with for one device: its answer, tables and figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

from markupsafe import Markup

from autotune.report.page_figures import Spec, device_figures, losses_by_kind
from autotune.report.records import DeviceReport
from autotune.report.remarks import Remark, answer, remarks
from autotune.report.shape_view import ShapeView, as_json

#: Pixels that the heat map needs: of a column, of a character of the names, and beside them.
_COLUMN, _CHARACTER, _BESIDE = 46, 7, 80


class Tile(NamedTuple):
    """A figure to see first, and what it is."""

    figure: str
    text: str


@dataclass(frozen=True)  # its figures are made once, and cached beside the fields
class DeviceView:
    """One device: its answer, its tables and its figures."""

    device: DeviceReport
    shapes: tuple[ShapeView, ...]

    @property
    def title(self) -> str:
        """The GPU and whose kernels."""
        environment = self.device.environment
        return f"{environment.gpu}, {environment.kernels.replace('-', ' ')} kernels"

    @property
    def answer(self) -> str:
        """What came of it."""
        return answer(self.device)

    @property
    def remarks(self) -> list[Remark]:
        """What a reader must know."""
        return remarks(self.device)

    @property
    def tiles(self) -> Iterator[Tile]:
        """The figures to see first."""
        device, verdicts = self.device, self.device.verdicts
        if device.median_ratio is not None:
            yield Tile(f"{device.median_ratio:.2f}x", "median ratio to the default")
            yield Tile(f"{device.ratios[-1][0]:.2f}x", "largest")
            yield Tile(f"{device.ratios[0][0]:.2f}x", "smallest")
        yield Tile(f"{verdicts['faster']} of {len(device.shapes)}", "shapes faster")
        yield Tile(str(verdicts["slower"]), "slower")
        yield Tile(str(verdicts["nothing works"]), "where nothing works")
        yield Tile(f"{device.trials:,}", "configurations measured")

    @cached_property
    def figures(self) -> dict[str, Spec]:
        """Its figures by name; a cell of the map opens the shape of that number."""
        figures = device_figures(self.device)
        if "speedup" in figures:
            numbers = {(view.kind, view.tokens): view.number for view in self.shapes}
            rows = list(dict.fromkeys(view.kind for view in self.shapes if view.one.selection))
            columns = map(int, figures["speedup"]["data"][0]["x"])
            counts = list(columns)
            figures["speedup"]["opens"] = [[numbers.get((r, c), 0) for c in counts] for r in rows]
        return figures

    @property
    def figures_json(self) -> Markup:
        """The same for the page's script."""
        return as_json(self.figures)

    @property
    def map_style(self) -> str:
        """How wide the heat map must be for its texts."""
        heat = self.figures["speedup"]["data"][0]
        names = max(len(view.kind) for view in self.shapes)
        width = _BESIDE + names * _CHARACTER + len(heat["x"]) * _COLUMN
        return f"min-width: {width}px"

    @property
    def has_ceilings(self) -> bool:
        """Whether shares of the roofline are known."""
        return self.device.ceilings is not None

    @property
    def rows(self) -> tuple[ShapeView, ...]:
        """Of the table of all shapes."""
        return self.shapes

    @property
    def between(self) -> str:
        """What is lost between rows; empty where nobody looked."""
        losses = [
            (after, before, f"{kind}, {count} tokens")
            for kind, by_count in losses_by_kind(self.device).items()
            for count, (before, after) in by_count.items()
        ]
        if not losses:
            return ""
        worst, _, where = max(losses)
        before = max(each[1] for each in losses)
        return (
            "For a batch size that has no row vLLM takes the nearest one. "
            f"{len(losses)} kernels and batch sizes were timed with the rows on both sides and "
            "with vLLM's default. Against the fastest of those the nearest row loses "
            f"{worst:.1%} at worst now ({where}), and lost {before:.1%} before rows were added."
        )

    @property
    def time(self) -> str:
        """How long it took; empty where that is not known."""
        period = self.device.period
        if period is None:
            return ""
        begun, ended = period
        spent_s = sum(sum(one.spent_s.values()) for one in self.device.shapes)
        took_s = max((ended - begun).total_seconds(), spent_s)
        share = f" ({spent_s / took_s:.0%})" if took_s else ""
        return (
            f"From {_moment(begun)} to {_moment(ended)} UTC, {duration_text(took_s)}. Of that "
            f"{duration_text(spent_s)}{share} went into configurations: waiting for their "
            "compiler, checking their numbers, timing. The rest is choosing what to try next, "
            "timing finalists, and pauses between runs."
        )

    @property
    def environment(self) -> Iterator[tuple[str, str]]:
        """Where it was measured, as names and values."""
        where, ceilings, period = self.device.environment, self.device.ceilings, self.device.period
        version = f" {where.provider_version}"
        yield "GPU", where.gpu
        yield "Driver", where.driver
        yield "Kernels", {"builtin": "autotune's own"}.get(where.provider, where.provider) + version
        yield "PyTorch", where.torch
        yield "Triton", where.triton
        if ceilings is None:
            yield "Ceilings", "not measured: GB/s and TFLOP/s are shown, and no share of a roofline"
        else:
            copy = f"{ceilings.copy_bytes_per_s / 1e9:,.0f} GB/s (copy)"
            matmul = f"{ceilings.matmul_flops_per_s / 1e12:,.0f} TFLOP/s (bfloat16 matrix product)"
            yield "Ceilings", f"{copy}, {matmul}"
        if period is not None:
            yield "Measured", f"{_moment(period[0])} to {_moment(period[1])} UTC"


def duration_text(seconds: float) -> str:
    """A duration, such as ``1.5 s``, ``4 min 10 s`` or ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _moment(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
