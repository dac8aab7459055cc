"""The command line. Imports nothing heavy before a command needs it."""

import os

from autotune.cli.signals import heeded

__all__ = ["main"]


def main() -> None:
    """Entry point of the ``autotune`` command."""
    # The sampler's matrices are small. Threads for them would wait for cores that are compiling:
    # a belief then took ten times as long (H100, 16 cores).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with heeded():
        from autotune.cli.commands import app

        app()
