"""The program's own help: every command with the whole of its first line."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class WholeSummaries(TyperGroup):
    """A group of commands whose summaries are wrapped, not cut."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - click, or what typer has of it
        """Write a row for each command."""
        rows = [(name, _summary(self.commands[name].help)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _summary(text: str | None) -> str:
    """The first paragraph of a help text, on one line."""
    return " ".join((text or "").partition("\n\n")[0].split())
