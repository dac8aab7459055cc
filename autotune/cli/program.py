"""The program's own help, and commands that take the arguments of another program after ``--``."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

#: Where a command finds what came after ``--``.
AFTER = "autotune.after"


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


class TakesServerArguments(TyperCommand):
    """A command whose arguments after ``--`` are a server's, and none of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - as above
        """Keep what comes after ``--`` for the command, and parse the rest."""
        mine = args
        if "--" in args:
            at = args.index("--")
            mine, ctx.meta[AFTER] = args[:at], args[at + 1 :]
        parsed: list[str] = super().parse_args(ctx, mine)
        return parsed
