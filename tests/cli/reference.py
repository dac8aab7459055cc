"""The README's list of flags, made from the commands themselves: ``make docs`` rewrites it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from autotune.cli.commands import app

README = Path(__file__).parents[2] / "README.md"
START, END = "<!-- flags: made by make docs -->\n", "<!-- end of flags -->\n"


def commands() -> dict[str, Any]:
    """Every command by name."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def reference() -> str:
    """One table of flags for each command."""
    parts = []
    for name, command in commands().items():
        rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
        header = f"`autotune {name}`: {command.help}"
        parts.append("\n".join([header, "", "| | |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def rewritten(readme: str) -> str:
    """The README with the present flags in it."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}{reference()}{END}{after}"


def _row(parameter: Any) -> str:
    is_option = parameter.opts[0].startswith("-")
    names = "`, `".join(parameter.opts) if is_option else parameter.metavar
    metavar = f" {parameter.metavar}" if parameter.metavar and is_option else ""
    text = f"{names}{metavar}".replace("|", "\\|")
    return f"| `{text}` | {parameter.help} |"


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text()))
