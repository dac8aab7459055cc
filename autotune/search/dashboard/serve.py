"""Optuna Dashboard on the database of a run."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Container, Iterator
from contextlib import closing, contextmanager
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import RDBStorage

from autotune.errors import InputError, install_hint
from autotune.search.dashboard.mirror import TrialMirror
from autotune.search.dashboard.note import note_text
from autotune.store import Store, shown
from autotune.store.engine import engine_options

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from optuna.trial import FrozenTrial, TrialState

#: The key under which Optuna before 5 kept constraints, and Optuna Dashboard 0.21 still looks.
_OLD_CONSTRAINTS = "constraints"


def serve_dashboard(url: str, *, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve Optuna Dashboard until Ctrl-C; a run may write to the database at the same time.

    Args:
        url: The database.
        host: The address to listen on.
        port: The port; 0 for any that is free.
        say: Called with a line that says where the dashboard is.

    Raises:
        InputError: The dashboard is not installed, the port is in use, the address is not of this
            machine, or the database holds no study.
        StorageError: The database cannot be used.
    """
    with dashboard_app(url) as app, _server(host, port) as server:
        server.set_app(app)
        where = f"http://{_bracketed(host)}:{server.server_port}/dashboard"
        say(f"{shown(url)} is shown at {where} until Ctrl-C")
        server.serve_forever()


@contextmanager
def dashboard_app(url: str) -> Iterator[WSGIApplication]:
    """The dashboard as a WSGI application. Finished shapes without a note get one.

    Args:
        url: The database.

    Raises:
        InputError: The dashboard is not installed, or the database holds no study.
        StorageError: The database cannot be used.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise InputError(
            f"Optuna Dashboard cannot be imported here ({error}); install it with: "
            + install_hint("dashboard")
        ) from None
    complete_notes(url)
    storage = _DashboardStorage(url, engine_kwargs=engine_options(url))
    try:
        yield wsgi(storage)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def complete_notes(url: str) -> None:
    """Write the notes of finished shapes that have none, as an earlier autotune left them.

    Raises:
        StorageError: The database cannot be used.
        InputError: The database holds no study.
    """
    with closing(Store(url, must_exist=True)) as store, closing(TrialMirror(url)) as mirror:
        if not mirror.study_names:
            raise InputError(f"{shown(url)} holds no study; tune one with autotune run")
        for environment, selection in store.selections():
            record = store.study_of(selection.shape, environment)
            mirror.keep_note(mirror.open_study(record), note_text(selection, environment))


class _DashboardStorage(RDBStorage):
    """Optuna's storage, with constraints also where the dashboard looks for them."""

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        trials = super().get_all_trials(study_id, deepcopy, states)
        for trial in trials:
            if trial.constraints and _OLD_CONSTRAINTS not in trial.system_attrs:
                trial.system_attrs[_OLD_CONSTRAINTS] = list(trial.constraints.values())
        return trials


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # Ctrl-C does not wait for pages that are being sent


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002, ANN401 - as its base has it
        """Print nothing: a line for every request would hide the dashboard's address."""


def _server(host: str, port: int) -> WSGIServer:
    try:
        return make_server(host, port, _not_ready, _Server, _QuietHandler)
    except socket.gaierror:
        raise InputError(
            f"--host: no such address: got {host!r}; give one like 127.0.0.1"
        ) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"--port: {port} is in use; give another, or 0 for any") from None
        raise InputError(
            f"cannot listen on {host}, port {port}: {error.strerror}; give another --host or --port"
        ) from None


def _not_ready(_environ: object, _start_response: object) -> list[bytes]:
    return []


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
