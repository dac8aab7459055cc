"""The documentation's page of commands, made from the commands themselves by ``make docs``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from autotune.cli.commands import app

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"

_INTRODUCTION = """\
# Command reference

`autotune COMMAND --help` says the same. Flags go before what the study file says. The
[exit codes](storage.md#exit-codes) are the same for every command.
"""


def group() -> Any:
    """The program, as click knows it."""
    return typer.main.get_command(app)


def commands() -> dict[str, Any]:
    """Every command by name."""
    return dict(group().commands)


def reference() -> str:
    """The whole page: a list of flags for each command."""
    parts = [_INTRODUCTION]
    if flags := _flags(group()):
        parts.append("\n".join([*flags, ""]))
    for name, command in commands().items():
        header = [f"## autotune {name}", "", command.help, ""]
        parts.append("\n".join([*header, *_flags(command), ""]))
    return "\n".join(parts)


def _flags(command: Any) -> list[str]:
    return [_line(parameter) for parameter in command.params if parameter.name != "help"]


def _line(parameter: Any) -> str:
    if not parameter.opts[0].startswith("-"):
        return f"- `{parameter.metavar}`: {parameter.help}"
    names = "`, `".join([*parameter.opts, *parameter.secondary_opts])
    metavar = f" {parameter.metavar}" if parameter.metavar else ""
    return f"- `{names}{metavar}`: {parameter.help}"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
