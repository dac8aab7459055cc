"""How far a database's studies are, asked while a run writes it and afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3

import pytest
import sqlalchemy as sa

from autotune.store import Claims, RunLog, Store, schema, study_name
from tests.cli.command import Command
from tests.contracts.examples import HERE, SHAPE, config, finished
from tests.patience import PATIENCE_S
from tests.store.old import write_old_database


@pytest.fixture
def running(autotune):
    """A run under way in this process: one shape, of which two configurations are measured."""
    store = Store(f"sqlite:///{autotune.folder / 'autotune.db'}")
    with RunLog(store, HERE) as log:
        log.plan({SHAPE: 20}, {SHAPE: config(split_k=1)})
        log.begin(SHAPE)
        study = store.study(study_name(HERE, SHAPE), SHAPE, HERE)
        store.add(study, [finished(0, samples_us=(12.0,)), finished(1, samples_us=(5.0,))])
        yield log
    store.close()


@pytest.mark.slow
@pytest.mark.usefixtures("running")
def test_a_run_under_way_is_told_from_another_process(autotune):
    ended = autotune.in_a_process("status")
    assert (ended.code, ended.err) == (0, "")
    run, studies, ratios, _, environment, header, row = ended.out.splitlines()
    assert re.match(r"A run is under way for \d+:\d\d", run)
    assert studies.startswith("1 studies: 1 running, 0 done, 0 to do; 2 trials, the last one ")
    assert ratios == "Against vLLM's defaults: 2.40x in the median of 1, 2.40x at best"
    assert environment.strip() == "NVIDIA Test-GPU, builtin"
    assert header.split()[:3] == ["op", "layer", "sizes"]
    assert row.split() == [
        "shrink",
        "4096>16",
        "x3",
        "16",
        "running",
        "2/20",
        "12.00",
        "5.00",
        "2.40x",
    ]


def test_where_runs_share_a_database_it_says_whose_each_study_is(autotune, running):
    store = Store(f"sqlite:///{autotune.folder / 'autotune.db'}")
    study = store.study_of(SHAPE, HERE)
    claims = Claims(store, running, budget="")
    claims.take([SHAPE])
    with RunLog(store, HERE) as other:
        other.plan({SHAPE: 20}, {SHAPE: config(split_k=1)})
        with store.engine.begin() as connection:
            there = schema.runs.c.id == other.run_id
            values = {"host": "node7", "process": 4711, "birth": None}
            connection.execute(sa.update(schema.runs).where(there).values(values))
        store.add(study, [finished(2)], claim=claims.of(study))
        row = autotune("status").out.splitlines()[-1]
        assert re.search(rf" {os.uname().nodename} {os.getpid()} for \d+:\d\d$", row.rstrip())
        claims.give_back(SHAPE, has_grown=True)
        assert Claims(store, other, budget="").take([SHAPE]) is not None
        assert " node7 4711 for " in autotune("status").out.splitlines()[-1]
        (told,) = json.loads(autotune("status", "--json").out)["studies"]
    assert [(run["host"], run["trials"]) for run in told["runs"]] == [
        (os.uname().nodename, 1),
        ("node7", 0),
    ]
    assert told["runs"][1]["has_it_since"] is not None
    store.close()


def test_a_database_of_an_earlier_autotune_is_read_and_gone_on_with(autotune, recording):
    url = write_old_database(autotune.folder / "old.db")
    ended = autotune("status", "--storage", url)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("2 studies: 0 running, 2 done, 0 to do; 10 trials")
    assert autotune("run", "--replay", recording, "--trials", 8, "--storage", url).code == 0
    ended = autotune("status", "--storage", url, "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["counts"] == {"running": 0, "done": 2, "to do": 0}
    assert told["trials"] == 16
    assert [run["state"] for run in told["runs"]] == ["done"]
    for study in told["studies"]:
        assert (study["state"], study["trials"], study["most"]) == ("done", 8, 8)
        assert study["default_us"] / study["best_us"] == pytest.approx(study["ratio"], rel=0.01)
        assert study["interval"][0] <= study["ratio"] <= study["interval"][1]


def stopped(autotune: Command, *flags: str) -> tuple[int, list[str]]:
    """Exit code and lines of ``status --watch``, stopped with Ctrl-C after its first line."""
    process = autotune.start("status", "--watch", *flags)
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert err == ""
    return process.wait(PATIENCE_S), [first, *out.splitlines()]


@pytest.mark.usefixtures("running")
def test_watching_ends_with_exit_code_0_on_ctrl_c(autotune):
    code, lines = stopped(autotune)
    assert code == 0
    assert lines[0].startswith("A run is under way")


def test_watching_as_json_is_a_usage_error(autotune):
    ended = autotune("status", "--watch", "--json")
    assert "--watch contradicts --json" in ended.has_refused_its_usage()


# ------------------------------------------------------------------ databases without an answer


@pytest.mark.parametrize("command", [("status",), ("status", "--watch"), ("dashboard",)])
def test_a_database_that_is_not_there_is_named_and_not_made(autotune, command):
    line = autotune(*command, "--storage", "sqlite:///new.db").has_failed_in_one_line()
    assert "there is no database new.db; give the --storage of a run" in line
    assert not (autotune.folder / "new.db").exists()


@pytest.mark.parametrize("command", ["status", "dashboard"])
def test_a_database_without_studies_says_how_to_make_some(autotune, command):
    Store(f"sqlite:///{autotune.folder / 'new.db'}").close()
    line = autotune(command, "--storage", "sqlite:///new.db").has_failed_in_one_line()
    assert "holds no study; tune one with autotune run" in line


@pytest.mark.parametrize("command", ["status", "dashboard"])
def test_a_database_of_a_newer_autotune_is_refused(autotune, command):
    path = autotune.folder / "newer.db"
    Store(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE autotune_version SET version = 99")
    connection.close()
    line = autotune(command, "--storage", "sqlite:///newer.db").has_failed_in_one_line()
    assert "newer.db was written by a newer autotune" in line
