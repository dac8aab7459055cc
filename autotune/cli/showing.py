"""The commands that show what was tuned, to a person with a browser."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import typer

from autotune.cli.console import err, out
from autotune.cli.exits import errors_in_one_line
from autotune.cli.flags import Host, Port, ReportOutput, ReportReplay, ReportStorage, StudiesStorage

#: The studies' database if no --storage is given.
DATABASE = "sqlite:///autotune.db"


def report(
    *,
    storage: ReportStorage = None,
    replay: ReportReplay = None,
    file: ReportOutput = Path("report.html"),
) -> None:
    """Write what was tuned, and the evidence, into one HTML page that needs no network."""
    from autotune.report.page import check_writable, write_report

    if replay and storage:
        raise typer.BadParameter("--replay and --storage both name what to show; give one of them")
    with errors_in_one_line():
        check_writable(file)
        from autotune.report.gather import of_database, of_recordings

        found = of_recordings(replay) if replay else of_database(storage or DATABASE)
        write_report(found, file)
    out.print(f"Wrote {file}")


def dashboard(
    *, storage: StudiesStorage = DATABASE, host: Host = "127.0.0.1", port: Port = 8080
) -> None:
    """Show the studies of a database in Optuna Dashboard, also while a run writes it."""
    with errors_in_one_line(), suppress(KeyboardInterrupt):
        from autotune.search.dashboard.serve import serve_dashboard

        serve_dashboard(storage, host=host, port=port, say=err.print)
