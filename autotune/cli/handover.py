"""The last step of ``run`` and ``export``: vLLM's files are written and checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.cli.console import print_findings, print_written
from autotune.errors import ExportError
from autotune.export import VllmExporter
from autotune.export.check import check_exported
from autotune.files import try_folder

if TYPE_CHECKING:
    from autotune.choose.selection import Selection
    from autotune.launch.environment import Environment
    from autotune.launch.shape import KernelShape


def check_output(folder: Path) -> None:
    """Refuse a folder that vLLM's files cannot be written to, before the work.

    Raises:
        ExportError: It is a file, or cannot be written.
    """
    try_folder(folder, ExportError, advice="free the place, or give another --output")


def refuse_foreign(
    shapes: Iterable[KernelShape], environment: Environment, folder: Path, *, merge: bool
) -> None:
    """Refuse a folder with files that autotune may not add to, before the work.

    Raises:
        ExportError: A file is broken, or ``merge`` is false and autotune did not write it, or
            entries of the other kind, deterministic or not, would stay.
    """
    VllmExporter().refuse_foreign(
        shapes, environment.gpu, folder, merge=merge, deterministic=environment.deterministic
    )


def hand_over(
    stored: Sequence[tuple[Environment, Sequence[Selection]]],
    folder: Path,
    *,
    merge: bool,
    release: str | None = None,
) -> bool:
    """Write the files, say where they are, and check them.

    Args:
        stored: What was chosen in each environment.
        folder: Where to write.
        merge: Whether files that autotune did not write may be added to.
        release: The vLLM release that is to read them; None for the one that they were timed with.

    Returns:
        Whether the check found no error.

    Raises:
        ExportError: The folder cannot be written, or holds something that must not be lost.
    """
    by_gpu: dict[str | None, list[KernelShape]] = {}
    written: dict[Path, None] = {}
    for environment, selections in stored:
        paths = VllmExporter().export(selections, environment, folder, merge=merge)
        written |= dict.fromkeys(paths)
        by_gpu.setdefault(environment.gpu, []).extend(each.shape for each in selections)
    if not written:
        return True
    print_written(written, folder)
    is_deterministic = any(environment.deterministic for environment, _ in stored)
    report = check_exported(folder, by_gpu, deterministic=is_deterministic, release=release)
    print_findings(report)
    return not report.has_errors
