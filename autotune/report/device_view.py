"""The part of the page for one device: answer, tables and figures, as the template takes them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from markupsafe import Markup

from autotune.report.page_figures import Spec, device_figures, losses_by_kind
from autotune.report.records import DeviceReport
from autotune.report.remarks import Remark, answer, remarks
from autotune.report.shape_view import ShapeView, as_json
from autotune.report.words import counted, duration_in_words, moment_text

#: Pixels in the heat map: a column, a character of the names, and everything else beside them.
_COLUMN, _CHARACTER, _BESIDE = 46, 7, 80


class Tile(NamedTuple):
    """A number to show in large type, and what it means."""

    figure: str
    text: str


@dataclass(frozen=True)  # no slots: cached_property keeps the figures beside the fields
class DeviceView:
    """One device: answer, tables and figures."""

    device: DeviceReport
    shapes: tuple[ShapeView, ...]

    @property
    def title(self) -> str:
        """The GPU, and whose kernels were timed."""
        environment = self.device.environment
        kind = ", deterministic" if environment.deterministic else ""
        return f"{environment.gpu}, {environment.kernels.replace('-', ' ')} kernels{kind}"

    @property
    def answer(self) -> str:
        """The result, in one sentence."""
        return answer(self.device)

    @property
    def remarks(self) -> list[Remark]:
        """What a reader must know beside the answer."""
        return remarks(self.device)

    @property
    def tiles(self) -> Iterator[Tile]:
        """The numbers to show first."""
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
        """The figures by name; ``opens`` has the number of the shape that each cell opens."""
        figures = device_figures(self.device)
        if "speedup" in figures:
            numbers = {(view.kind, view.tokens): view.number for view in self.shapes}
            rows = list(dict.fromkeys(view.kind for view in self.shapes if view.report.selection))
            columns = map(int, figures["speedup"]["data"][0]["x"])
            counts = list(columns)
            figures["speedup"]["opens"] = [[numbers.get((r, c), 0) for c in counts] for r in rows]
        return figures

    @property
    def figures_json(self) -> Markup:
        """The figures for the page's script."""
        return as_json(self.figures)

    @property
    def map_style(self) -> str:
        """CSS for the width that the texts of the heat map need."""
        heat = self.figures["speedup"]["data"][0]
        names = max(len(view.kind) for view in self.shapes)
        width = _BESIDE + names * _CHARACTER + len(heat["x"]) * _COLUMN
        return f"--map: {width}px"

    @property
    def has_ceilings(self) -> bool:
        """Whether shares of the roofline are known."""
        return self.device.ceilings is not None

    @property
    def between(self) -> str:
        """The losses between rows, in sentences; empty where they were not measured."""
        losses = [
            (after, before, f"{kind}, {counted(count, 'token')}")
            for kind, by_count in losses_by_kind(self.device).items()
            for count, (before, after) in by_count.items()
        ]
        if not losses:
            return ""
        worst, _, where = max(losses)
        before = max(each[1] for each in losses)
        return (
            "For a batch size without a row, vLLM takes the nearest row. "
            f"{len(losses)} pairs of kernel and batch size were timed with the rows on both sides "
            f"and with vLLM's default. Worst case now: the nearest row {_loss_text(worst)} "
            f"({where}). Worst case before rows were added: the nearest row {_loss_text(before)}."
        )

    @property
    def time(self) -> str:
        """How long measuring took, in sentences; empty where that is not known."""
        period = self.device.period
        if period is None:
            return ""
        begun, ended = period
        spent_s = sum(sum(one.spent_s.values()) for one in self.device.shapes)
        took_s = (ended - begun).total_seconds()
        if len({gpu for *_, gpu in self.device.works}) > 1:
            trials = f"Trials took {duration_in_words(spent_s)} on all GPUs together"
        else:
            took_s = max(took_s, spent_s)
            share = f" ({spent_s / took_s:.0%})" if took_s else ""
            trials = f"Trials took {duration_in_words(spent_s)}{share} of it"
        return (
            f"From {moment_text(begun)} to {moment_text(ended)} UTC: {duration_in_words(took_s)}. "
            f"{trials}: checking numbers and timing. "
            "The rest went into waiting for the compiler, choosing what to try next, timing "
            "finalists, and pauses between runs."
        )

    @property
    def environment(self) -> Iterator[tuple[str, str]]:
        """The environment and the ceilings, as names and values."""
        where, ceilings, period = self.device.environment, self.device.ceilings, self.device.period
        version = f" {where.provider_version}"
        yield "GPU", where.gpu
        yield "Driver", where.driver
        yield "Kernels", {"builtin": "autotune's own"}.get(where.provider, where.provider) + version
        yield "PyTorch", where.torch
        yield "Triton", where.triton
        if ceilings is None:
            yield (
                "Ceilings",
                "not measured: GB/s and TFLOP/s are shown, shares of the roofline are not",
            )
        else:
            copy = f"{ceilings.copy_bytes_per_s / 1e9:,.0f} GB/s (copy)"
            matmul = f"{ceilings.matmul_flops_per_s / 1e12:,.0f} TFLOP/s (bfloat16 matrix product)"
            yield "Ceilings", f"{copy}, {matmul}"
        for replayed in self.device.replays:
            yield "Replayed from", str(replayed)
        if period is not None:
            yield "Measured", f"{moment_text(period[0])} to {moment_text(period[1])} UTC"
        for (host, process, gpu), those in self.device.works.items():
            kinds = ", ".join(dict.fromkeys(one.kind for one, _ in those))
            trials = counted(sum(count for _, count in those), "trial")
            shapes = counted(len(those), "shape")
            where_text = f"By {host}, process {process}" + (f", {gpu}" if gpu else "")
            yield where_text, f"{trials} of {shapes}: {kinds}"
        for (host, process), load in self.device.loads.items():
            yield f"Busy at {host}, process {process}", str(load)


def _loss_text(loss: float) -> str:
    return "does not run" if math.isinf(loss) else f"is {loss:.1%} slower than the fastest of them"
