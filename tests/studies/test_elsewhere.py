"""studies/elsewhere.py: what an entry does where it was not tuned."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from autotune.measure.replay import ReplayRunner
from tests.studies.scripts import loaded

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("elsewhere")


@pytest.fixture(scope="module")
def apart(script):
    return script.timed(ReplayRunner([script.RECORDINGS / "apart_h100.jsonl.gz"]))


def test_an_entry_loses_nothing_at_home(script, apart):
    for those in apart.values():
        found = script.served(those, those)
        assert found.loss == pytest.approx(0)
        assert found.own == found.gain >= 1


def test_what_an_entry_does_elsewhere_is_reckoned_from_the_figures_there(script):
    here, there = ({"a": 2.0, "b": 4.0, "default": 8.0}, "default"), ({"b": 1.0, "a": 9.0}, "a")
    found = script.served(there, here)
    assert (found.own, found.gain, found.loss) == (4.0, 2.0, 1.0)


def test_every_recorded_shape_serves_one_other_and_is_served_by_it(script, apart):
    older = script.timed(ReplayRunner([script.RECORDINGS / "apart_0.28.0_h100.jsonl.gz"]))
    found = script.rows(apart, older)
    usual = sum(not script.server(shape)[0] for shape in apart)
    others = len(apart) - usual + usual // 2 + len(older)
    assert sum(map(len, found.values())) == 2 * others
    assert {names[::-1] for names in found} == set(found)


def test_the_pages_table_is_what_the_script_prints(script):
    page = (ROOT / "docs/configs.md").read_text(encoding="utf-8")
    assert script.table() in page, "put in what python studies/elsewhere.py prints"
