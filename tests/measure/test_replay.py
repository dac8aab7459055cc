from __future__ import annotations

import gzip
import json

import pytest

from autotune.errors import RecordingError, ReplayMiss
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import never_stop
from autotune.measure.replay import ReplayRunner
from tests.recordings import ENVIRONMENT, EXPAND, SHRINK, write_recording

SHAPE = KernelShape.from_mapping(SHRINK)


@pytest.fixture
def replay(tmp_path):
    return ReplayRunner([write_recording(tmp_path / "r.jsonl.gz", SHRINK)])


def test_the_space_of_a_replay_is_what_was_recorded(replay):
    assert len(replay.space(SHAPE, {}).configs) == 162


def test_axes_narrow_the_recorded_space(replay):
    space = replay.space(SHAPE, {"block_m": (16,)})
    assert {config.block_m for config in space.configs if config != space.default} == {16}


def test_a_configuration_that_was_not_recorded_is_never_guessed(replay):
    odd = KernelConfig.from_mapping(
        SHAPE.op,
        {"block_m": 256, "block_n": 16, "block_k": 64, "split_k": 8, "num_warps": 4}
        | {"num_stages": 2},
    )
    with pytest.raises(ReplayMiss, match="'block_m': 256"):
        replay.measure(SHAPE, [odd], never_stop)


def test_a_shape_that_was_not_recorded_is_a_miss(replay):
    with pytest.raises(ReplayMiss, match="no expand m=64"):
        replay.space(KernelShape.from_mapping(EXPAND), {})


def test_recordings_of_two_environments_are_refused_together(tmp_path):
    paths = [
        write_recording(tmp_path / "a.jsonl.gz", SHRINK),
        write_recording(tmp_path / "b.jsonl.gz", EXPAND, driver="590"),
    ]
    with pytest.raises(RecordingError, match=r"driver 590, here 580"):
        ReplayRunner(paths)


def test_a_shape_in_two_recordings_is_refused(tmp_path):
    paths = [write_recording(tmp_path / f"{n}.jsonl.gz", SHRINK) for n in "ab"]
    with pytest.raises(RecordingError, match="repeats shrink"):
        ReplayRunner(paths)


def test_a_recording_without_a_default_says_what_is_missing(tmp_path):
    line = {"shape": SHRINK, "outcome": "ok", "samples_us": [1.0]} | {
        "config": {"block_m": 16, "block_n": 16, "block_k": 32, "split_k": 1}
        | {"num_warps": 4, "num_stages": 2}
    }
    header = {"schema": "autotune-recording/1", "environment": ENVIRONMENT}
    path = tmp_path / "r.jsonl.gz"
    path.write_bytes(gzip.compress(f"{json.dumps(header)}\n{json.dumps(line)}\n".encode()))
    with pytest.raises(RecordingError, match="is_default"):
        ReplayRunner([path]).space(SHAPE, {})
