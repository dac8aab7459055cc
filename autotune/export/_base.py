"""What an exporter is: it writes selections where a serving engine finds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from autotune.choose.selection import Selection
from autotune.launch.environment import Environment


class Exporter(ABC):
    """Writes the chosen configurations in one engine's format."""

    @abstractmethod
    def export(
        self,
        selections: Iterable[Selection],
        environment: Environment,
        folder: Path,
        *,
        merge: bool,
    ) -> tuple[Path, ...]:
        """Write the selections, keeping the entries of other shapes that are there already.

        Exporting the same selections twice gives the same bytes.

        Args:
            selections: The chosen configurations; where a shape comes twice, the later counts.
            environment: Where they were measured; its GPU names the files.
            folder: Where to write; made if it is not there.
            merge: Whether files that autotune did not write may be added to.

        Returns:
            The files written.

        Raises:
            ExportError: The folder cannot be written, or holds something that must not be lost.
        """
