"""studies/results.py: the page of results, and that it is what the raw files say."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from tests.studies.scripts import loaded
from tests.vllm.releases import ROOT

SCRIPT = ROOT / "studies" / "results.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("results")


def test_the_page_is_what_the_script_writes(script):
    written = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert written == script.page(), "run python studies/results.py"


def test_the_page_has_every_raw_file(script):
    page = script.page()
    served = sorted((ROOT / "studies" / "served").glob("*.json"))
    assert served
    assert all(f"studies/served/{path.name}" in page for path in served)
    tuned = [each.path.relative_to(ROOT) for each in script.tuned_in(ROOT / "studies")]
    assert tuned
    assert all(f"`{path}/`" in page for path in tuned)


def test_what_is_served_is_shown_with_the_gain_over_both_defaults(script, tmp_path):
    folder = tmp_path / "studies"
    (folder / "served").mkdir(parents=True)
    steps = {"default": 12.0, "default_again": 11.0, "folder": 10.0, "no_lora": None}
    row = {name: value and {"step_ms": value} for name, value in steps.items()}
    told = {"model": "M", "rank": 8, "max_loras": 2, "vllm": "0.33.0", "gpu": "G", "date": "today"}
    told["config"] = "config.json"
    told["rows"] = [{"requests": 4, "predicted_ms": 1.25, **row}]
    (folder / "served" / "m.json").write_text(json.dumps(told))
    expected = "| 4 | – | 12.00, 11.00 | 10.00 | +10 to +20 % | 1.50 | 1.25 |"
    assert expected in script.page(folder)


def test_every_file_that_the_page_names_is_there(script):
    for line in script.page().splitlines():
        if line.startswith("Again: the command is in `"):
            assert (ROOT / line.split("`")[1]).is_file(), line
