"""studies/outside.py, as far as it goes without a GPU."""

from __future__ import annotations

from typing import Any

from tests.studies.scripts import loaded


def kernel(script: Any, **fields: Any) -> Any:
    usual = {"shape": {}, "key": [], "is_exact": False, "runs": 2, "is_slower": False}
    return script.Kernel(**usual | {"default_us": 12.0, "nearest": 1.5, "own": 2.0} | fields)


def test_a_row_has_the_gains_and_the_forward_passes_of_what_runs_everywhere():
    script = loaded("outside")
    kernels = [
        kernel(script, is_exact=True),
        kernel(script, nearest=0.75, is_slower=True, runs=1),
        kernel(script, nearest=None, is_slower=True),
    ]
    found = script.Outside(model="phi-4", kernels=kernels, took_s=6.4)
    gains = ["0.75x", "2", "2.00x", "2.00x"]
    passes = "0.04, 0.03, 0.02"
    assert found.cells() == ["phi-4", "3", "1", "1.12x", *gains, "6", passes]


def test_a_model_of_which_nothing_runs_has_no_gains():
    script = loaded("outside")
    kernels = [kernel(script, default_us=None, nearest=None, own=None)]
    cells = script.Outside(model="x", kernels=kernels, took_s=1.0).cells()
    assert cells[3:5] == cells[6:8] == ["–", "–"]
    assert len(cells) == len(script.HEAD)
