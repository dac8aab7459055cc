"""Optuna Dashboard on the database of a run: what it answers, and what a browser shows of it."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import InputError
from autotune.measure.replay import shipped_recording
from autotune.search.dashboard.guard import Guarded
from autotune.search.dashboard.serve import serve_dashboard
from autotune.search.importance import importances as report_of
from autotune.store.results import of_store
from autotune.store.store import Store
from tests.cli.command import Command
from tests.forks import Forked
from tests.patience import PATIENCE_S
from tests.store.old import write_old_database

pytestmark = pytest.mark.slow

#: The quick-start's first shapes, on its own recording.
RUN = (
    *("run", "-q", "--replay", shipped_recording()),
    *("--op", "shrink", "--tokens", 16, "--trials", 40),
)
QUICKSTART = Path(__file__).parents[2] / "studies" / "quickstart.toml"
NAME = "NVIDIA H100 80GB HBM3/builtin/shrink/m=16,k=4096,n=16,slices={},max_loras=8"


@dataclass(frozen=True, slots=True)
class Served:
    """A dashboard that is being served."""

    url: str
    command: Command
    process: Forked

    def ask(self, path: str) -> Any:
        """The answer of its API."""
        url = self.url.replace("/dashboard", path)
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310 - our server
            return json.load(answer)


@contextmanager
def served(command: Command, *flags: object) -> Iterator[Served]:
    """A dashboard on a free port, ended with Ctrl-C."""
    process = command.start("dashboard", "--port", 0, *flags)
    assert process.stderr is not None
    line = process.stderr.readline()
    try:
        assert " is shown at http://127.0.0.1:" in line, line + process.stderr.read()
        yield Served(line.split()[4], command, process)
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> Iterator[Served]:
    """A dashboard on a run of the quick-start's recording."""
    command = Command(tmp_path_factory.mktemp("quickstart"))
    ended = command(*RUN)
    assert ended.code == 0, ended.err
    with served(command) as dashboard:
        yield dashboard


def test_every_study_has_its_name_metric_attributes_constraints_and_note(quickstart):
    summaries = quickstart.ask("/api/studies")["study_summaries"]
    assert NAME.format(2) in [summary["study_name"] for summary in summaries]
    study = quickstart.ask("/api/studies/2?after=0")
    assert study["objective_names"] == ["latency_us"]
    assert {attribute["key"] for attribute in study["user_attrs"]} == {"shape", "environment"}
    assert "as fast as vLLM's default" in study["note"]["body"]
    assert "| vLLM's default | 12.73 | block_m 32," in study["note"]["body"]
    assert study["has_intermediate_values"]
    assert len(study["trials"]) == 40
    assert all(trial["constraints"] == [0.0] for trial in study["trials"])


def test_what_a_run_adds_is_seen_while_the_dashboard_is_open(quickstart):
    before = len(quickstart.ask("/api/studies")["study_summaries"])
    more = [flag if flag != 16 else 1 for flag in RUN]
    assert quickstart.command(*more).code == 0
    assert len(quickstart.ask("/api/studies")["study_summaries"]) > before


def test_trials_that_were_cut_short_count_in_the_importances(quickstart):
    study = quickstart.ask("/api/studies/1?after=0")
    assert sum(trial["state"] == "Complete" for trial in study["trials"]) > 30
    (answer,) = quickstart.ask("/api/studies/1/param_importances")["param_importances"]
    importances = {each["name"]: each["importance"] for each in answer}
    tried = [
        {each["name"]: each["param_external_value"] for each in trial["params"]}
        for trial in study["trials"]
    ]
    changed = {name for name in tried[0] if len({one[name] for one in tried}) > 1}
    assert {name for name, share in importances.items() if share > 0} <= changed
    with closing(Store(f"sqlite:///{quickstart.command.folder / 'autotune.db'}")) as store:
        measured = of_store(store)[0].measurements
    assert max(importances, key=importances.__getitem__) == next(iter(report_of(measured)))


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8080"},
        {"Host": "10.1.2.3"},
        {"Host": ""},
        {"Host": "[::1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_requests_of_another_site_are_refused(quickstart, headers):
    url = quickstart.url.replace("/dashboard", "/api/studies")
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - our server
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=PATIENCE_S)  # noqa: S310 - our server


def test_no_other_page_may_frame_it_and_localhost_is_its_own(quickstart):
    url = quickstart.url.replace("127.0.0.1", "localhost")
    request = urllib.request.Request(url, headers={"Origin": url.removesuffix("/dashboard")})  # noqa: S310 - our server
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310 - our server
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Content-Security-Policy"].endswith(";frame-ancestors 'none'")


@pytest.mark.parametrize(
    ("host", "own", "other"),
    [
        ("127.0.0.1", ["127.0.0.1:80", "localhost:80", "[::1]:80"], ["a.b", "192.0.2.1"]),
        ("0.0.0.0", ["192.0.2.1:80", "localhost", socket.gethostname()], ["a.b", ""]),  # noqa: S104 - nothing listens
        ("192.0.2.1", ["192.0.2.1:80"], ["192.0.2.2", "localhost", "a.b"]),
        ("gpu.example", ["gpu.example:80", "192.0.2.1"], ["a.b", "gpu.example.evil.com"]),
    ],
)
def test_only_its_own_addresses_are_answered(host, own, other):
    def app(_environ, start):
        start("200 OK", [])
        return []

    def status(name: str) -> str:
        said: list[str] = []
        list(Guarded(app, host)({"HTTP_HOST": name}, lambda line, *_: said.append(line)))  # type: ignore[arg-type]
        return said[0]

    assert {status(name) for name in own} == {"200 OK"}
    assert {status(name) for name in other} == {"403 Forbidden"}


def test_an_address_that_others_reach_is_warned_of(autotune):
    url = write_old_database(autotune.folder / "old.db")
    process = autotune.start("dashboard", "--port", 0, "--host", "0.0.0.0", "--storage", url)  # noqa: S104 - that is what is warned of
    assert process.stderr is not None
    lines = [process.stderr.readline(), process.stderr.readline()]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert lines[1].startswith("warning: whoever reaches 0.0.0.0 can change and delete")


def test_a_model_s_layers_are_in_the_names_of_the_studies(autotune):
    study = autotune.folder / "study.toml"
    study.write_text(QUICKSTART.read_text())
    ended = autotune(*RUN, study)
    assert ended.code == 0, ended.err
    with served(autotune) as dashboard:
        names = {each["study_name"] for each in dashboard.ask("/api/studies")["study_summaries"]}
    assert any(name.endswith(" (qkv)") for name in names), names


@pytest.mark.browser
def test_a_browser_lists_the_studies_and_opens_one_with_its_history(quickstart, browser):
    page = browser.open(quickstart.url)
    page.wait_for(f"document.body.innerText.includes({NAME.format(1)!r})")
    assert NAME.format(2) in page.text
    page.evaluate(
        "[...document.querySelectorAll('a')].find(a => a.href.endsWith('/studies/2')).click()"
    )
    points = "document.querySelectorAll('#plot-history .scatterlayer .point').length"
    assert page.wait_for(points) > 5
    assert "latency_us" in page.text
    assert NAME.format(2) in page.text
    assert page.errors == []
    assert all(url.startswith(quickstart.url.rpartition("/")[0]) for url in page.requested)
    page.close()


@pytest.mark.browser
def test_a_browser_shows_the_note_with_the_default_and_the_best(quickstart, browser):
    page = browser.open(f"{quickstart.url}/studies/2/note")
    page.wait_for("!!document.querySelector('table')")
    assert "as fast as vLLM's default, timed side by side" in page.text
    assert "vLLM's default\t12.73\tblock_m 32" in page.text
    page.close()


def test_finished_shapes_of_an_earlier_autotune_get_their_notes(autotune):
    url = write_old_database(autotune.folder / "old.db")
    with served(autotune, "--storage", url) as dashboard:
        for number in (1, 2):
            study = dashboard.ask(f"/api/studies/{number}?after=0")
            assert "as fast as vLLM's default" in study["note"]["body"]


# ------------------------------------------------------------------ what cannot be served


@pytest.fixture
def old(autotune) -> str:
    """The URL of a database with studies."""
    return write_old_database(autotune.folder / "old.db")


def test_a_port_in_use_is_named(old):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port: {port} is in use; give another, or 0"):
            serve_dashboard(old, host="127.0.0.1", port=port, say=print)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("no.such.host.invalid", r"--host: no such address: got 'no\.such\.host\.invalid'"),
        ("192.0.2.1", r"cannot listen on 192\.0\.2\.1, port 0: Cannot assign requested address"),
    ],
)
def test_an_address_that_is_not_of_this_machine_is_named(old, host, message):
    with pytest.raises(InputError, match=message):
        serve_dashboard(old, host=host, port=0, say=print)


@pytest.mark.parametrize("port", ["http", "-1", "65536"])
def test_a_port_that_is_no_number_up_to_65535_is_a_usage_error(autotune, port):
    said = autotune("dashboard", "--port", port).has_refused_its_usage()
    assert f"must be a port, a whole number up to 65535: got '{port}'" in said


def test_a_database_of_a_newer_optuna_is_refused(autotune, old):
    with sqlite3.connect(autotune.folder / "old.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    connection.close()
    line = autotune("dashboard", "--storage", old).has_failed_in_one_line()
    assert "Optuna cannot use the database" in line


def test_without_the_dashboard_it_is_said_how_to_install_it(old, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(InputError, match=r"install it with: pip install '.*\[dashboard\]'"):
        serve_dashboard(old, host="127.0.0.1", port=0, say=print)
    assert Path(old.removeprefix("sqlite:///")).exists()
