from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autotune.measure.recording import read_recording
from autotune.measure.replay import ReplayRunner, shipped_recording
from autotune.search.learn import learn
from autotune.search.samplers.known import experience
from autotune.search.samplers.transfer import Neighbour, nearest
from autotune.testing.landscape import Landscape, shrink

STUDIES = Path(__file__).parents[3] / "studies"
LEARNED = shipped_recording().with_name("vllm_h100.jsonl.gz")
SHIPPED = ReplayRunner([shipped_recording()])


def test_every_shape_of_the_shipped_recordings_is_there_to_learn_from():
    known = experience(Landscape())
    assert [each.shape for each in known[: len(SHIPPED.shapes)]] == list(SHIPPED.shapes)
    assert {each.shape for each in known} == {*SHIPPED.shapes, *read_recording(LEARNED).shapes}
    assert all(each.timed for each in known)
    fastest = next(iter(known[0].timed))
    space = SHIPPED.space(known[0].shape, {})
    assert fastest in space.configs


def test_a_replay_is_not_told_of_the_shapes_that_it_answers_for():
    told = {each.shape for each in experience(SHIPPED)}
    assert told
    assert not told & set(SHIPPED.shapes)


def test_measurements_of_the_same_gpu_and_kernels_are_not_from_elsewhere():
    measured_in = read_recording(LEARNED).environment
    runner = Landscape(environment=replace(measured_in, driver="another"))
    near = {each.is_elsewhere for each in experience(runner)}
    assert near == {True, False}
    assert all(each.is_elsewhere for each in experience(Landscape()))


def test_a_shape_measured_here_comes_before_the_same_shape_from_elsewhere():
    (own, *_) = experience(Landscape())
    here = Neighbour(own.shape, own.measurements)
    near = replace(own, shape=shrink(num_tokens=512, rank=16))
    asked = shrink(num_tokens=256, rank=16)
    assert nearest(asked, [near, replace(near, is_elsewhere=False)])[0].is_elsewhere is False
    assert nearest(own.shape, [own, here])[0] is here


@pytest.mark.slow
@pytest.mark.skipif(not STUDIES.exists(), reason="the recordings are in the repository alone")
def test_what_is_shipped_is_what_the_recordings_of_the_repository_say(tmp_path):
    paths = [
        STUDIES / "recordings" / f"{name}_h100.jsonl.gz" for name in ("narrowed", "whole", "model")
    ]
    learn([str(path) for path in paths], tmp_path / LEARNED.name)
    again, shipped = (read_recording(path).shapes for path in (tmp_path / LEARNED.name, LEARNED))
    assert again == shipped


def test_the_recording_for_judging_is_not_among_what_is_known():
    held_out = set(ReplayRunner([STUDIES / "recordings" / "held_out_h100.jsonl.gz"]).shapes)
    assert held_out
    assert not held_out & {each.shape for each in experience(Landscape())}
