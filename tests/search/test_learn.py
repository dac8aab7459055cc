"""Experience: measurements thinned into a file that later searches learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autotune.errors import InputError, RecordingError, StorageError
from autotune.measure.recording import RecordingWriter, read_recording
from autotune.measure.replay import ReplayRunner
from autotune.plan.study import StudyPlan
from autotune.search.learn import learn
from autotune.search.samplers.known import finished_earlier
from autotune.testing.landscape import ENVIRONMENT
from tests.recordings import EXPAND, SHRINK, write_recording
from tests.search.cases import CountingRunner, tune


def test_the_fastest_configurations_of_every_shape_are_kept(tmp_path):
    source = write_recording(tmp_path / "r.jsonl.gz", SHRINK, EXPAND)
    kept = learn([str(source)], tmp_path / "learned.jsonl.gz")

    learned, whole = (
        read_recording(each).shapes for each in (tmp_path / "learned.jsonl.gz", source)
    )
    assert {shape: len(configs) for shape, configs in learned.items()} == kept
    assert list(learned) == list(whole)
    for shape, configs in learned.items():
        fastest = min(
            (one for one in whole[shape].values() if one.samples_us), key=lambda one: one.latency_us
        )
        assert min(configs.values(), key=lambda one: one.latency_us).config == fastest.config


@pytest.mark.slow
def test_a_database_teaches_what_its_recording_would(tmp_path):
    source = write_recording(tmp_path / "r.jsonl.gz", SHRINK)
    runner = CountingRunner(source)
    plan = replace(
        StudyPlan.of_shapes(runner.shapes),
        storage=f"sqlite:///{tmp_path}/own.db",
        trials=200,
        effort=None,
    )
    tune(plan, runner)
    of_database, of_recording = (
        learn([each], tmp_path / "learned.jsonl.gz")
        for each in (str(tmp_path / "own.db"), str(source))
    )
    assert of_database == of_recording
    (found,) = finished_earlier(str(tmp_path / "learned.jsonl.gz"), runner.environment)
    assert found.shape == runner.shapes[0]


def test_sources_of_different_gpus_are_refused_by_name(tmp_path):
    here = write_recording(tmp_path / "here.jsonl.gz", SHRINK)
    other = replace(ENVIRONMENT, gpu="NVIDIA Other-GPU")
    elsewhere = tmp_path / "elsewhere.jsonl.gz"
    with RecordingWriter(elsewhere, other) as writer:
        for one in ReplayRunner([here]).recorded(ReplayRunner([here]).shapes[0]):
            writer.write(one, is_default=False)
    with pytest.raises(InputError, match=r"elsewhere.*Other-GPU.*here"):
        learn([str(here), str(elsewhere)], tmp_path / "learned.jsonl.gz")
    assert not (tmp_path / "learned.jsonl.gz").exists()


@pytest.mark.parametrize(
    ("source", "error"),
    [("nothing.jsonl.gz", RecordingError), ("nothing.db", StorageError)],
)
def test_a_source_that_is_not_there_is_an_error(tmp_path: Path, source, error):
    with pytest.raises(error, match="nothing"):
        learn([str(tmp_path / source)], tmp_path / "learned.jsonl.gz")
