"""studies/fleet.py, as far as it goes without a GPU."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from autotune.errors import StudyFileError
from autotune.launch.op import LoraOp
from autotune.plan.study import StudyPlan
from autotune.search.session import Session
from autotune.search.tune import tune
from tests.recordings import write_recording
from tests.search.test_confirming import MeasuringRunner
from tests.studies.scripts import STUDIES, loaded


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("fleet")


def fleet_file(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(f'storage = "sqlite:///{folder}/fleet.db"\n{text}')
    return path


def models(*names: str) -> str:
    return "".join(f'[[models]]\nconfig = "{STUDIES}/models/{name}.json"\n' for name in names)


@pytest.mark.slow
def test_the_list_has_twenty_models_dense_and_mixtures_and_all_of_them_have_shapes(script):
    fleet = script.Fleet.read(STUDIES / "fleet.toml")
    names = {job.name.partition("_")[0] for job in fleet.jobs}
    assert len(names) >= 20
    mixtures = {
        job.name.partition("_")[0]
        for job in fleet.jobs
        if any(shape.op.is_moe for shape in job.plan.shapes)
    }
    assert 3 <= len(mixtures) < len(names) - 10


def test_a_dry_run_counts_a_shape_of_two_models_once(script, tmp_path, capsys):
    path = fleet_file(tmp_path, models("mistral-7b-v0.3", "llama-3.1-8b"))
    assert script.main([str(path), "--dry-run"]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    fleet = script.Fleet.read(path)
    every = {shape for job in fleet.jobs for shape in job.plan.shapes}
    assert f"2 jobs, {len(every)} shapes" in last
    assert f"{len(fleet.jobs[0].plan.shapes)} shapes to tune,    0 tuned before it" in first
    shared = len(fleet.jobs[0].plan.shapes) + len(fleet.jobs[1].plan.shapes) - len(every)
    assert f"{shared} tuned before it" in second
    assert not (tmp_path / "fleet.db").exists()


def test_what_is_finished_is_skipped_and_what_was_begun_goes_on(script, tmp_path, capsys):
    path = fleet_file(tmp_path, models("llama-3.1-8b", "phi-4"))
    fleet = script.Fleet.read(path)
    # All of the first job's shapes but one have a selection.
    shapes = fleet.jobs[0].plan.shapes[-3:]
    runner = MeasuringRunner(
        write_recording(tmp_path / "r.jsonl.gz", *(shape.as_dict() for shape in shapes[1:]))
    )
    plan = StudyPlan.of_shapes(runner.shapes).override(
        trials=3, sampler="random", storage=fleet.storage
    )
    with Session(plan, runner) as session:
        tune(session)
    finished = script.Finished.read(fleet.storage, runner.environment)
    assert finished.tuned == set(shapes[1:])
    assert not finished.has(fleet.jobs[0])
    whole = frozenset(fleet.jobs[0].plan.shapes)
    between = frozenset(fleet.jobs[0].plan.between)
    assert between, "the batch sizes between belong to a job"
    some = frozenset([min(between, key=lambda shape: shape.num_tokens)])  # another model has it
    for looked_at in (frozenset(), some):
        assert not script.Finished(whole, looked_at).has(fleet.jobs[0])
    assert script.Finished(whole, between).has(fleet.jobs[0])
    script.main([str(path), "--dry-run"])
    assert f"{len(fleet.jobs[0].plan.shapes) - 2} shapes to tune" in capsys.readouterr().out


def test_without_time_nothing_is_begun_and_the_place_is_said(script, tmp_path):
    fleet = script.Fleet.read(fleet_file(tmp_path, models("llama-3.1-8b")))
    runner = MeasuringRunner(write_recording(tmp_path / "r.jsonl.gz"))
    late = script.Fleet(fleet.jobs, fleet.storage, 0.0)
    (line,) = script.tune(late, runner, [])
    assert line == "[1/1] llama-3.1-8b_tp1_r16_ml8: no time is left; the same command goes on here"


def test_packs_of_nothing_are_said_to_be_none(script, tmp_path, capsys):
    path = fleet_file(tmp_path, models("llama-3.1-8b"))
    assert script.main([str(path), "--packs", str(tmp_path / "packs")]) == 0
    assert capsys.readouterr().out == "nothing is finished: tune first\n"


def test_ctrl_c_is_one_line(script, tmp_path, capsys, monkeypatch):
    path = fleet_file(tmp_path, models("llama-3.1-8b"))
    runner = MeasuringRunner(write_recording(tmp_path / "r.jsonl.gz"))

    def interrupted(*_given: object, **_more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "gpu_runner", lambda *_given: nullcontext(runner))
    monkeypatch.setattr(script, "run_job", interrupted)
    assert script.main([str(path)]) == 130
    assert capsys.readouterr().err == "fleet: interrupted; the same command goes on\n"


def test_a_model_that_cannot_be_tuned_is_said_and_the_next_one_is_tuned(script, tmp_path):
    fleet = script.Fleet.read(fleet_file(tmp_path, models("llama-3.1-8b")))
    (job,) = fleet.jobs
    shape = next(each for each in job.plan.shapes if each.op is LoraOp.SHRINK)
    runner = MeasuringRunner(write_recording(tmp_path / "r.jsonl.gz", shape.as_dict()))
    plan = StudyPlan.of_shapes([shape]).override(trials=3, sampler="random", storage=fleet.storage)
    nothing = replace(plan, axes={**plan.axes, LoraOp.SHRINK: {"block_m": (256,)}})
    small = replace(job, name="small", plan=plan)
    broken = replace(job, name="broken", plan=nothing)
    failed: list[object] = []
    jobs = script.Fleet([broken, small, small], fleet.storage, 3600.0)
    first, second, third = script.tune(jobs, runner, failed)
    assert first.startswith("[1/3] broken: ")
    assert failed == [broken]
    assert second.startswith("[2/3] small: 1 rows in ")
    assert third == "[3/3] small: finished before"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "fleet.toml"),
        ("", "has no"),
        ("colour = 1", "unknown key 'colour'"),
        ("models = 3", "models must be a list"),
        ("models = [3]", r"no. 1 needs config"),
        ('[[models]]\nconfig = "x"\ncolour = 1', "no. 1: unknown key 'colour'"),
        ("ranks = 16\n" + models("phi-4"), "ranks must be a list"),
        ('ranks = ["x"]\n' + models("phi-4"), "rank"),
        ('time_budget = "long"\n' + models("phi-4"), "duration"),
        ('effort = "great"\n' + models("phi-4"), "effort"),
        (models("phi-4") + '\nvllm = "dev"', "must be a release of vLLM"),
    ],
)
def test_a_list_that_makes_no_sense_ends_in_one_line(script, tmp_path, capsys, text, message):
    path = fleet_file(tmp_path, text)
    with pytest.raises(StudyFileError, match=message):
        script.Fleet.read(path)
    assert script.main([str(path), "--dry-run"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
