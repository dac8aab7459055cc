"""The report as one HTML file that needs no network.

Tables are in it as they are; figures are kept as plotly's traces, and drawn when they are looked
at, so that a report of a hundred shapes opens as fast as one of a few.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.errors import ExportError
from autotune.files import replace_files
from autotune.report.device_view import DeviceView
from autotune.report.records import DeviceReport, Report
from autotune.report.shape_view import ShapeView
from autotune.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The template and what goes into it as it is.
_FOLDER = Path(__file__).parent


def write_report(report: Report, path: Path) -> None:
    """Write a report; the file appears under its name when it is whole.

    Args:
        report: What to tell.
        path: The HTML file.

    Raises:
        ExportError: The file cannot be written.
    """
    check_writable(path)
    replace_files({path: html_of(report)}, advice="name another file with -o")


def check_writable(path: Path) -> None:
    """Tell early what a path cannot be.

    Raises:
        ExportError: Its folder is not there, or it is a folder itself.
    """
    if path.is_dir():
        raise ExportError(f"{path} is a folder: give -o a file, such as {path / 'report.html'}")
    if not path.parent.is_dir():
        raise ExportError(
            f"cannot write {path}: there is no folder {path.parent}; make it, or name another file"
        )


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
        ShapeView(number=next(numbers), one=one, has_order=not report.is_recording, most=most)
        for one in device.shapes
    )
    return DeviceView(device=device, shapes=tuple(views))
