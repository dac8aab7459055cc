"""The Python interface, used as a script uses it."""

from __future__ import annotations

import importlib.resources
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import autotune
from autotune.api import Results
from autotune.cli.commands import app
from autotune.errors import ExportError, GpuMissing, InputError, RecordingError, StorageError
from autotune.launch.op import MOE_OPS
from autotune.measure.cuda.gpu import has_gpu
from autotune.plan.study import StudyPlan
from autotune.search.events import Tuned
from autotune.store import Store
from tests.moe import moe_lines, moe_shape
from tests.patience import PATIENCE_S
from tests.recordings import EXPAND, SHRINK, write_recording
from tests.search.cases import write_lines

STUDY = """
[lora]
max_loras = 8
rank = 16

[tokens]
counts = [16]

[search]
trials = 20

[[shapes]]
op = "shrink"
layer = "qkv"
hidden_size = 4096
num_slices = 3
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recording(tmp_path) -> Path:
    return write_recording(tmp_path / "r.jsonl.gz")


@pytest.fixture
def study(tmp_path) -> Path:
    path: Path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, in the folder of the test."""
    return subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def names_in(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def plan_of(recording: Path) -> StudyPlan:
    """The study of a recording, with few trials."""
    shapes = [one.shape for one in autotune.load_recording(recording).shapes]
    return StudyPlan.of_shapes(shapes).override(trials=12)


# ------------------------------------------------------------------ the package


@pytest.mark.slow
def test_importing_autotune_imports_nothing_heavy_before_it_is_used():
    code = (
        "import sys, autotune; before = set(sys.modules);"
        "assert 'tune' in dir(autotune) and 'tune' not in vars(autotune);"
        "heavy = ['numpy', 'optuna', 'pandas', 'plotly', 'rich', 'sqlalchemy', 'torch', 'triton'];"
        "assert not before & set(heavy), before;"
        "autotune.load_recording;"
        "print([name for name in heavy if name in sys.modules])"
    )
    ended = python(code)
    assert ended.returncode == 0, ended.stderr
    assert not {"torch", "triton", "pandas", "plotly"} & set(re.findall(r"\w+", ended.stdout))


def test_every_name_that_the_package_says_it_has_can_be_imported():
    for name in autotune.__all__:
        assert getattr(autotune, name) is not None
    assert set(autotune.__all__) <= set(dir(autotune))
    with pytest.raises(AttributeError, match="no attribute 'tuen'"):
        autotune.tuen  # type: ignore[attr-defined]  # noqa: B018 - it is the test


def test_the_package_is_marked_as_typed():
    assert (importlib.resources.files("autotune") / "py.typed").is_file()


def example(page: str) -> str:
    """The one example in Python that a page has."""
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return str(code)


@pytest.mark.slow
def test_the_readmes_example_runs_as_a_script_without_any_extra(tmp_path):
    (tmp_path / "script.py").write_text(example("README.md"))
    without_pandas = "import runpy, sys; sys.modules['pandas'] = None; "
    ended = python(without_pandas + "runpy.run_path('script.py', run_name='__main__')")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[0].split()[0] == "shrink"
    assert names_in("tuned") == {
        "NVIDIA_H100_80GB_HBM3_EXPAND_TRUE.json",
        "NVIDIA_H100_80GB_HBM3_SHRINK.json",
        "NVIDIA_H100_80GB_HBM3_provenance.json",
    }


@pytest.mark.slow
def test_the_example_with_dataframes_runs_as_a_script(tmp_path):
    (tmp_path / "script.py").write_text(example("docs/python.md"))
    ended = python("import runpy; runpy.run_path('script.py', run_name='__main__')")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[0].split() == [
        *("layer", "op", "num_tokens", "default_us", "tuned_us", "ratio")
    ]


# ------------------------------------------------------------------ tuning


@pytest.mark.slow
def test_tuning_writes_the_files_that_the_command_writes(recording, study):
    flags = ["run", str(study), "--replay", str(recording), "--storage", "sqlite:///command.db"]
    ran = CliRunner().invoke(app, [*flags, "--output", "command"])
    assert ran.exit_code == 0, ran.output

    results = autotune.tune(study, replay=recording)
    results.export("python")
    assert names_in("python") == names_in("command")
    for path in Path("python").glob("*SHRINK.json"):
        assert path.read_bytes() == Path("command", path.name).read_bytes()


@pytest.mark.slow
def test_a_study_file_or_a_plan_is_tuned_on_what_was_recorded(recording, study):
    results = autotune.tune(str(study), replay=str(recording))
    (one,) = results.shapes
    assert one.layer == "qkv"
    assert len(one.measurements) == 20
    plan = StudyPlan.read(study).override(trials=25)
    (more,) = autotune.tune(plan, replay=[recording]).shapes
    assert more.measurements[:20] == one.measurements
    assert len(more.measurements) == 25


@pytest.mark.slow
def test_without_a_plan_all_that_was_recorded_is_tuned(recording):
    results = autotune.tune(replay=recording)
    assert [one.shape.op.value for one in results.shapes] == ["shrink", "expand"]
    assert [one.shape for one in results.selections] == [one.shape for one in results.shapes]
    assert repr(results) == (
        f"<autotune.Results: 2 shapes, {len(results.trials_frame())} trials, NVIDIA Test-GPU>"
    )


@pytest.mark.slow
def test_progress_is_called_for_every_shape(recording):
    told: list[tuple[Tuned, int, int]] = []
    plan = plan_of(recording)
    results = autotune.tune(plan, replay=recording, progress=lambda *done: told.append(done))
    assert [(number, count) for _, number, count in told] == [(1, 2), (2, 2)]
    assert [one.selection for one, _, _ in told] == list(results.selections)


@pytest.mark.slow
def test_what_is_tuned_can_be_recorded_and_loaded_again(recording, study, tmp_path):
    results = autotune.tune(study, replay=recording, record="again.jsonl.gz")
    (again,) = autotune.load_recording(tmp_path / "again.jsonl.gz").shapes
    (one,) = results.shapes
    assert set(again.measurements) == set(one.measurements)
    assert again.selection is not None
    assert one.selection is not None
    assert again.selection.config == one.selection.config


@pytest.mark.slow
def test_of_a_database_with_other_shapes_only_the_plans_come_back(recording, study):
    autotune.tune(plan_of(recording), replay=recording)
    assert len(autotune.tune(study, replay=recording).shapes) == 1
    assert len(autotune.load().shapes) == 2


@pytest.mark.slow
def test_a_moe_layer_is_coupled_and_its_other_ops_come_back_from_earlier_runs(tmp_path):
    shapes = [moe_shape(op).as_dict() for op in MOE_OPS]
    path = write_lines(tmp_path / "r.jsonl.gz", [line for one in shapes for line in moe_lines(one)])
    plan = StudyPlan.of_shapes([moe_shape(op) for op in MOE_OPS]).override(trials=60, sampler="tpe")
    first, *others = MOE_OPS
    assert len(autotune.tune(plan.override(ops=others), replay=path).shapes) == 3

    results = autotune.tune(plan.override(ops=[first]), replay=path)
    assert results.shapes[0].shape.op is first
    assert {one.shape.op for one in results.shapes} == set(MOE_OPS)
    assert len({one.config.block_m for one in results.selections}) == 1
    assert any("MoE" in note for note in results.notes)


@pytest.mark.skipif(has_gpu(), reason="there is a GPU here")
def test_without_a_gpu_or_a_recording_nothing_is_tuned(study):
    with pytest.raises(GpuMissing, match=r"replay=autotune\.shipped_recording\(\)"):
        autotune.tune(study)


def test_bad_input_is_refused_before_anything_is_measured(recording, study):
    with pytest.raises(InputError, match=r"--rows-max is for --tokens auto.*got 3"):
        autotune.tune(study, replay=recording, rows_max=3)
    with pytest.raises(InputError, match=r"asks for vllm kernels.*recording is of builtin"):
        autotune.tune(plan_of(recording).override(kernels="vllm"), replay=recording)
    with pytest.raises(RecordingError, match=r"cannot read the recording nowhere\.gz"):
        autotune.tune(study, replay="nowhere.gz")
    with pytest.raises(InputError, match=r"cannot read the study file nowhere\.toml"):
        autotune.tune("nowhere.toml", replay=recording)
    assert not Path("autotune.db").exists()


# ------------------------------------------------------------------ loading, exporting, checking


@pytest.mark.slow
def test_a_database_is_loaded_as_it_was_tuned(recording):
    results = autotune.tune(plan_of(recording), replay=recording)
    loaded = autotune.load("sqlite:///autotune.db")
    assert loaded.shapes == results.shapes
    assert loaded.selections_frame().equals(results.selections_frame())


def test_a_database_that_is_not_there_or_empty_is_told_in_one_line():
    with pytest.raises(StorageError, match=r"there is no database nowhere\.db"):
        autotune.load("sqlite:///nowhere.db")
    Store("sqlite:///empty.db").close()
    with pytest.raises(StorageError, match=r"empty\.db holds no study; tune one with autotune run"):
        autotune.load("sqlite:///empty.db")


def test_recordings_of_several_gpus_are_loaded_and_exported_together(recording, tmp_path):
    other = write_recording(tmp_path / "other.jsonl.gz", SHRINK, gpu="NVIDIA Other-GPU")
    results = autotune.load_recording(recording, other)
    assert results.trials_frame()["gpu"].nunique() == 2
    written = results.export("tuned")
    assert {path.name.split("_")[1] for path in written} == {"Test", "Other"}
    report = results.check("tuned")
    assert len(report.lookups) == 3
    assert not report.has_errors


@pytest.mark.slow
def test_the_recording_that_comes_with_autotune_is_loaded_where_none_is_named():
    results = autotune.load_recording()
    assert {one.environment.gpu for one in results.shapes} == {"NVIDIA H100 80GB HBM3"}
    assert {one.shape for one in results.shapes} == set(StudyPlan.quickstart().shapes)


def test_a_file_that_autotune_did_not_write_is_only_added_to_when_asked(recording):
    results = autotune.load_recording(recording)
    (written,) = [path for path in results.export("tuned") if path.name.endswith("SHRINK.json")]
    for path in Path("tuned").glob("*provenance.json"):
        path.unlink()
    with pytest.raises(ExportError, match="did not write"):
        results.export("tuned")
    assert written in results.export(Path("tuned"), merge=True)


def test_results_without_a_selection_write_nothing(recording):
    some = autotune.load_recording(recording)
    nothing = Results(tuple(replace(one, selection=None) for one in some.shapes))
    assert nothing.export("tuned") == ()
    assert not Path("tuned").exists()
    assert repr(Results(())) == "<autotune.Results: 0 shapes, 0 trials, no GPU>"


def test_two_recordings_of_one_shape_are_refused(recording, tmp_path):
    again = write_recording(tmp_path / "again.jsonl.gz", EXPAND)
    with pytest.raises(RecordingError, match="repeats expand"):
        autotune.load_recording(recording, again)
