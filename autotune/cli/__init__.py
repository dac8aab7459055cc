"""The command line. Imports nothing heavy before a command needs it."""

from autotune.cli.signals import heeded

__all__ = ["main"]


def main() -> None:
    """Entry point of the ``autotune`` command."""
    with heeded():
        from autotune.cli.commands import app
        from autotune.cli.pipes import full_disk_in_one_line

        with full_disk_in_one_line():
            app()
