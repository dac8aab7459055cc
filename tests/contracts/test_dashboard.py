"""What Optuna Dashboard reads from a run's database, asked of SQLite and of PostgreSQL."""

from __future__ import annotations

import json
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

from autotune.search.dashboard.serve import dashboard_app
from tests.contracts.examples import HERE, SHAPE, selection, trials


@pytest.fixture
def ask(url, store, mirror):
    """What the dashboard's API answers on a study of one trial of every kind."""
    study = store.study_of(SHAPE, HERE)
    mirror.add(mirror.open_study(study), trials())
    store.keep_selection(study, selection())
    with dashboard_app(url) as app:

        def answer(path: str) -> Any:
            environ: dict[str, Any] = {"PATH_INFO": path, "QUERY_STRING": "after=0"}
            setup_testing_defaults(environ)
            status: list[str] = []

            def start(line: str, *_: object) -> Any:
                status.append(line)

            body = b"".join(app(environ, start))
            assert status == ["200 OK"], body
            return json.loads(body)

        yield answer


def test_a_study_is_listed_by_its_name(ask):
    (summary,) = ask("/api/studies")["study_summaries"]
    assert summary["study_name"] == "NVIDIA Test-GPU/builtin/shrink/" + SHAPE.label


def test_a_study_is_shown_with_all_that_it_holds(ask):
    study = ask("/api/studies/1")
    assert study["objective_names"] == ["latency_us"]
    assert [trial["state"] for trial in study["trials"]] == [
        # The second was cut short, and counts with the median that it had.
        *("Complete", "Complete", "Pruned", "Complete", "Pruned"),
    ]
    assert [trial["constraints"] for trial in study["trials"]] == [[0], [0], [1], [0], [1]]
    assert study["trials"][3]["values"] == [4.5]
    assert study["trials"][1]["intermediate_values"] == [{"step": 5, "value": 80.0}]
    reasons = {each["key"]: each["value"] for each in study["trials"][2]["user_attrs"]}
    assert reasons == {"outcome": "launch_failed", "reason": "OutOfResources"}
    assert "**2.00x** as fast as vLLM's default" in study["note"]["body"]
