"""Optuna Dashboard on the database of a run."""

from __future__ import annotations

import abc
import errno
import socket
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import closing, contextmanager
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState

from autotune.errors import InputError, install_hint
from autotune.search.dashboard.guard import Guarded, is_loopback
from autotune.search.dashboard.mirror import TrialMirror
from autotune.search.dashboard.note import note_text
from autotune.store import Store, facts, shown
from autotune.store.engine import engine_options
from autotune.store.store import study_name

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from optuna.study._frozen import FrozenStudy
    from optuna.trial import FrozenTrial

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
        server.set_app(Guarded(app, host))
        where = f"http://{_bracketed(host)}:{server.server_port}/dashboard"
        say(f"{shown(url)} is shown at {where} until Ctrl-C")
        if not is_loopback(host):
            say(
                f"warning: whoever reaches {host} can change and delete these studies; "
                "--host 127.0.0.1 shows them to this machine alone"
            )
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
    storage = RDBStorage(url, engine_kwargs=engine_options(url))
    try:
        shown_storage = _DashboardStorage(storage, _layers(url))  # type: ignore[abstract] # set below
        yield wsgi(shown_storage)
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


def _layers(url: str) -> dict[str, str]:
    """The names of the layers that launch each study's shape, by the study's name."""
    with closing(Store(url)) as store:
        return {
            study_name(environment, shape): use.names
            for (environment, shape), use in facts.layers(store).items()
        }


class _Forwarding(BaseStorage):
    """A storage that hands everything on to another."""

    def __init__(self, inner: BaseStorage) -> None:
        self._inner = inner


def _handed_on(name: str) -> Callable[..., Any]:
    def call(self: _Forwarding, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - any method
        return getattr(self._inner, name)(*arguments, **named)

    return call


for _name in BaseStorage.__abstractmethods__:
    setattr(_Forwarding, _name, _handed_on(_name))
abc.update_abstractmethods(_Forwarding)  # type: ignore[type-abstract] # which it ends being


class _DashboardStorage(_Forwarding):
    """Optuna's storage as its dashboard shows it best.

    - Studies bear the names of their layers.
    - A trial that was cut short counts with the median that it had. Without this, most trials of a
      search would be missing in the history and in the importances.
    - A parameter is one of the values that were tried: PED-ANOVA, of which the dashboard's
      importances are, takes it for a number between 1 and 4,096 otherwise, and finds a parameter
      that never changes important.
    - Constraints are also where the dashboard looks for them.
    """

    def __init__(self, inner: BaseStorage, layers: Mapping[str, str]) -> None:
        super().__init__(inner)
        self._layers = layers

    def get_all_studies(self) -> list[FrozenStudy]:
        studies = self._inner.get_all_studies()
        for study in studies:
            study.study_name = self._named(study.study_name)
        return studies

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._named(self._inner.get_study_name_from_id(study_id))

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        trials = self._inner.get_all_trials(study_id, deepcopy)
        tried: dict[str, set[int]] = {}
        for trial in trials:
            _complete(trial)
            for name, value in trial.params.items():
                tried.setdefault(name, set()).add(value)
        axes = {name: CategoricalDistribution(sorted(values)) for name, values in tried.items()}
        for trial in trials:
            trial.distributions = {name: axes[name] for name in trial.params}
        return [each for each in trials if states is None or each.state in states]

    def _named(self, name: str) -> str:
        return f"{name} ({self._layers[name]})" if self._layers.get(name) else name


def _complete(trial: FrozenTrial) -> None:
    """Add what the dashboard needs to a trial."""
    if trial.constraints and _OLD_CONSTRAINTS not in trial.system_attrs:
        trial.system_attrs[_OLD_CONSTRAINTS] = list(trial.constraints.values())
    if trial.state is TrialState.PRUNED and trial.intermediate_values:
        trial.state = TrialState.COMPLETE
        trial.value = trial.intermediate_values[max(trial.intermediate_values)]


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
