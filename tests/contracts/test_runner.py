"""What every Runner promises, asked of each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from autotune.launch.shape import KernelShape
from autotune.measure import Runner, never_stop
from autotune.measure.cuda.runner import CudaRunner, Processes
from autotune.measure.recording import RecordingRunner, RecordingWriter, read_recording
from autotune.measure.replay import ReplayRunner
from autotune.testing import Landscape, RunnerSuite
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


@pytest.fixture(
    params=["replay", "recording", pytest.param("cuda", marks=pytest.mark.slow), "landscape"]
)
def runner(request, tmp_path, monkeypatch) -> Iterator[Runner]:
    replay = ReplayRunner([write_recording(tmp_path / "r.jsonl.gz")])
    if request.param == "replay":
        yield replay
    elif request.param == "recording":
        with RecordingWriter(tmp_path / "again.jsonl.gz", replay.environment) as writer:
            yield RecordingRunner(replay, writer)
    elif request.param == "landscape":
        yield Landscape(stride=179)
    else:  # the real compilers, a fake device
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
        with CudaRunner(Processes("builtin", compile_workers=2, device_server=FakeDevice)) as cuda:
            yield cuda


class TestRunner(RunnerSuite):
    """Every runner passes the suite that is shipped."""

    @pytest.fixture
    def runner(self, runner):
        return runner

    def space(self, runner):
        return runner.space(SHAPE, AXES)


def test_a_runner_that_compiles_says_how_much_it_has_to_do_and_a_replay_says_nothing(runner):
    space = runner.space(SHAPE, AXES)
    before = runner.status
    assert before is None or (before.compiling, before.waiting) == (0, 0)
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
