"""The report as one HTML file that needs no network.

The file holds the tables as HTML and the figures as plotly's traces. Figures are drawn when they
come into view, so that a report of a hundred shapes opens as fast as a small one.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.errors import ExportError
from autotune.files import replace_files, try_file
from autotune.report.device_view import DeviceView
from autotune.report.records import DeviceReport, Report
from autotune.report.shape_view import ShapeView
from autotune.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Where the template, the styles and the script are.
_FOLDER = Path(__file__).parent


def write_report(report: Report, path: Path) -> None:
    """Write a report; the file appears under its name once it is complete.

    Args:
        report: The contents.
        path: The HTML file.

    Raises:
        ExportError: The file cannot be written.
    """
    check_writable(path)
    replace_files({path: html_of(report)}, advice="name another file with -o")


def check_writable(path: Path) -> None:
    """Refuse a path that cannot be written, before anything is gathered.

    Raises:
        ExportError: The path is a folder, or its folder does not exist or cannot be written.
    """
    if path.is_dir():
        raise ExportError(f"{path} is a folder: give -o a file, such as {path / 'report.html'}")
    try_file(path, ExportError, advice="make room there, or name another file with -o")


def html_of(report: Report) -> str:
    """The whole page."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = {name: (_FOLDER / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    parts["plotly"] = get_plotlyjs()
    numbers = count(1)
    devices = [_view(device, report, numbers) for device in report.devices]
    return environment.get_template("page.html.j2").render(
        report=report,
        title="; ".join(device.title for device in devices),
        devices=devices,
        version=__version__,
        **{name: Markup(text) for name, text in parts.items()},  # noqa: S704 - files of our own
    )


def _view(device: DeviceReport, report: Report, numbers: Iterator[int]) -> DeviceView:
    most = max((ratio for ratio, _ in device.ratios), default=1.0)
    views = (
        ShapeView(number=next(numbers), report=one, has_order=not report.is_recording, most=most)
        for one in device.shapes
    )
    return DeviceView(device=device, shapes=tuple(views))
