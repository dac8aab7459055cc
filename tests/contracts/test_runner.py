"""What every Runner promises, asked of each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from autotune.launch.shape import KernelShape
from autotune.measure import Outcome, Runner, RunnerStatus, never_stop
from autotune.measure.cuda.runner import CudaRunner
from autotune.measure.racing import ROUND_SAMPLES
from autotune.measure.recording import RecordingRunner, RecordingWriter, read_recording
from autotune.measure.replay import ReplayRunner
from tests.measure.cuda.handlers import FakeDevice
from tests.recordings import SHRINK, write_recording

SHAPE = KernelShape.from_mapping(SHRINK)
AXES = {
    "block_m": (16, 32),
    "block_n": (16,),
    "block_k": (32, 64, 128),
    "split_k": (8,),
    "num_warps": (4,),
    "num_stages": (2, 3),
}


@pytest.fixture(params=["replay", "recording", "cuda"])
def runner(request, tmp_path, monkeypatch) -> Iterator[Runner]:
    replay = ReplayRunner([write_recording(tmp_path / "r.jsonl.gz")])
    if request.param == "replay":
        yield replay
    elif request.param == "recording":
        with RecordingWriter(tmp_path / "again.jsonl.gz", replay.environment) as writer:
            yield RecordingRunner(replay, writer)
    else:  # the real compilers, a fake device
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
        with CudaRunner("builtin", compile_workers=2, device_server=FakeDevice) as cuda:
            yield cuda


def test_a_runner_measures_every_configuration_of_its_space_once(runner):
    space = runner.space(SHAPE, AXES)
    pending = dict.fromkeys(space.configs)
    while pending:
        measurement = runner.measure(SHAPE, list(pending)[: runner.lookahead], never_stop)
        del pending[measurement.config]
        assert measurement.shape == SHAPE
        assert bool(measurement.samples_us) is (measurement.outcome is Outcome.OK)
        assert bool(measurement.reason) is (measurement.outcome is not Outcome.OK)
    assert space.default in space.configs


def test_a_configuration_that_is_stopped_is_too_slow_and_keeps_its_samples(runner):
    config = runner.space(SHAPE, AXES).configs[1]
    asked = []

    def stop(asked_for, samples):
        asked.append((asked_for, len(samples)))
        return True

    measurement = runner.measure(SHAPE, [config], stop)
    assert measurement.outcome is Outcome.TOO_SLOW
    assert len(measurement.samples_us) == ROUND_SAMPLES
    assert asked == [(config, ROUND_SAMPLES)]


def test_compared_configurations_have_equally_many_samples(runner):
    configs = [c for c in runner.space(SHAPE, AXES).configs if c.block_k > 32][
        :3
    ]  # all of them run
    compared = runner.compare(SHAPE, configs, lambda samples: True).samples_us
    assert set(compared) == set(configs)
    assert len({len(samples) for samples in compared.values()}) == 1


def test_a_runner_that_compiles_says_how_much_it_has_to_do_and_a_replay_says_nothing(runner):
    space = runner.space(SHAPE, AXES)
    before = runner.status
    assert before in (None, RunnerStatus(compiling=0, waiting=0))
    runner.measure(SHAPE, space.configs, never_stop)
    after = runner.status
    assert (after is None) is (before is None)
    if after is not None:
        # One of them is measured; two workers have at most one each.
        assert 0 < after.compiling + after.waiting < len(space.configs)
        assert after.compiling <= 2


def test_a_recorded_run_replays_as_itself(tmp_path):
    replay = ReplayRunner([write_recording(tmp_path / "r.jsonl.gz")])
    space = replay.space(SHAPE, {})
    with RecordingWriter(tmp_path / "again.jsonl.gz", replay.environment) as writer:
        recorder = RecordingRunner(replay, writer)
        recorder.space(SHAPE, {})
        measured = [recorder.measure(SHAPE, [config], never_stop) for config in space.configs]
    again = read_recording(tmp_path / "again.jsonl.gz")
    assert again.shapes[SHAPE] == {m.config: m for m in measured}
    assert again.defaults == {SHAPE: space.default}
