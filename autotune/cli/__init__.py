"""The command line. Imports nothing heavy before a command needs it."""

from autotune.cli.commands import app, main

__all__ = ["app", "main"]
