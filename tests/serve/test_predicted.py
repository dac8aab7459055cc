"""What a folder's own times say that a server saves."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from autotune.export import VllmExporter
from autotune.export.collection import collected
from autotune.plan.study import StudyPlan
from autotune.serve.predicted import predicted_in
from tests.export.examples import H100, selection
from tests.serve.double import write_model


@pytest.fixture
def plan(tmp_path) -> StudyPlan:
    """The small model at two batch sizes."""
    model = write_model(tmp_path / "model")
    table = {"vllm": "0.33.0", "target_modules": ("o_proj",)}
    plan = StudyPlan.of_model(str(model)).with_model(table, {})
    return plan.override(max_loras=2, rank=16, tokens=[1, 16])


def test_the_saving_is_that_of_all_launches_of_a_forward_pass(plan, tmp_path):
    chosen = [selection(shape) for shape in plan.shapes]
    VllmExporter().export(chosen, H100, tmp_path / "tuned", merge=False)
    saved = sum((one.default_latency_us or 0.0) - one.latency_us for one in chosen[::2])
    found = predicted_in(tmp_path / "tuned", H100.gpu, plan)
    assert set(found) == {1, 16}
    runs = set(plan.runs.values())
    assert runs == {2}
    assert found[1].saved_ms == pytest.approx(2 * saved / 1e3, rel=1e-3)
    taken = sum(one.default_latency_us or 0.0 for one in chosen[::2])
    assert found[1].kernels_ms == pytest.approx(2 * taken / 1e3, rel=1e-3)


def test_what_kernels_add_is_not_known_where_they_run_beside_others(plan, tmp_path):
    beside = plan.with_model({"dual_stream": True}, {})
    chosen = [selection(shape) for shape in beside.shapes]
    VllmExporter().export(chosen, H100, tmp_path / "tuned", merge=False)
    found = predicted_in(tmp_path / "tuned", H100.gpu, beside)
    assert found[1].kernels_ms is None
    assert found[1].saved_ms > 0


def test_nothing_is_predicted_where_a_kernel_was_not_tuned(plan, tmp_path):
    chosen = [selection(shape) for shape in plan.shapes if shape.op.value == "shrink"]
    VllmExporter().export(chosen, H100, tmp_path / "tuned", merge=False)
    assert predicted_in(tmp_path / "tuned", H100.gpu, plan) == {}


def test_nothing_is_predicted_from_a_folder_without_times(plan, tmp_path):
    assert predicted_in(tmp_path, H100.gpu, plan) == {}
    assert predicted_in(tmp_path, "", plan) == {}


@pytest.mark.parametrize("entry", [{}, {"shape": 4}, {"latency_us": "fast"}, {"latency_us": None}])
def test_entries_without_times_are_passed_over(plan, tmp_path, entry):
    VllmExporter().export([selection(s) for s in plan.shapes], H100, tmp_path / "t", merge=False)
    (path,) = (tmp_path / "t").glob("*_provenance.json")
    content = json.loads(path.read_text())
    for of_file in content["entries"].values():
        for key in of_file:
            of_file[key] = {**of_file[key], **entry} if entry else {}
    path.write_text(json.dumps(content))
    assert predicted_in(tmp_path / "t", H100.gpu, plan) == {}


def test_a_folder_whose_provenance_is_compressed_predicts_the_same(plan, tmp_path):
    chosen = [selection(shape) for shape in plan.shapes]
    folder = tmp_path / "tuned"
    VllmExporter().export(chosen, H100, folder, merge=False)
    expected = predicted_in(folder, H100.gpu, plan)
    (plain,) = folder.glob("*_provenance.json")
    plain.with_name(f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert predicted_in(folder, H100.gpu, plan) == expected != {}


def test_what_comes_with_autotune_predicts_a_model_of_the_collection():
    config = Path(__file__).parents[2] / "studies" / "models" / "llama-3.1-8b.json"
    plan = StudyPlan.of_model(str(config)).override(max_loras=8, rank=16, tokens=[16])
    (here,) = (each for each in collected() if each.gpu == "NVIDIA H200")
    assert 2 < predicted_in(here.folder, here.gpu, plan)[16].saved_ms < 3
