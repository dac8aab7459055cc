from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import RecordingError
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Outcome
from autotune.measure.measurement import Ceilings
from autotune.measure.recording import RecordingWriter, read_recording
from tests.recordings import ENVIRONMENT, EXPAND, SHRINK, lines, write_recording

ENV = Environment(**ENVIRONMENT)
powers = st.sampled_from([16, 32, 64])


@st.composite
def measurements(draw) -> Measurement:
    shape = KernelShape.from_mapping(draw(st.sampled_from([SHRINK, EXPAND])))
    config = KernelConfig.from_mapping(
        shape.op, {name: draw(powers) for name in shape.op.parameters}
    )
    outcome = draw(st.sampled_from(Outcome))
    works = outcome in (Outcome.OK, Outcome.TOO_SLOW)
    figures = st.lists(st.integers(1, 10**6).map(lambda ns: ns / 1000), min_size=1, max_size=5)
    return Measurement(
        shape=shape,
        config=config,
        outcome=outcome,
        reason="" if outcome is Outcome.OK else draw(st.text('aµ"\n ', min_size=1)),
        samples_us=tuple(draw(figures)) if works else (),
        relative_error=draw(st.sampled_from([None, 1e-6, 0.5])),
        registers=draw(st.sampled_from([None, 40])),
    )


@given(st.lists(measurements(), max_size=8, unique_by=lambda m: (m.shape, m.config)))
def test_what_is_written_is_read_back(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("recording") / "r.jsonl.gz"
    with RecordingWriter(path, ENV) as writer:
        for number, measurement in enumerate(written):
            writer.write(measurement, is_default=number == 0)
    recording = read_recording(path)
    assert recording.environment == ENV
    assert [m for by_config in recording.shapes.values() for m in by_config.values()] == sorted(
        written, key=lambda m: list(recording.shapes).index(m.shape)
    )
    assert recording.defaults == {m.shape: m.config for m in written[:1]}


def test_ceilings_are_read_back_if_they_were_written(tmp_path):
    for name, ceilings in (("with", Ceilings(3e12, 7e14)), ("without", None)):
        path = tmp_path / f"{name}.jsonl.gz"
        with RecordingWriter(path, ENV, ceilings):
            pass
        assert read_recording(path).ceilings == ceilings


@pytest.mark.parametrize("ceilings", [5, {"copy_bytes_per_s": 1}, {"copy_bytes_per_s": "fast"}])
def test_ceilings_without_their_numbers_are_refused(tmp_path, ceilings):
    path = tmp_path / "r.jsonl.gz"
    header = {"schema": "autotune-recording/1", "environment": ENVIRONMENT, "ceilings": ceilings}
    path.write_bytes(gzip.compress(json.dumps(header).encode() + b"\n"))
    with pytest.raises(RecordingError, match="line 1 has no usable ceilings: got"):
        read_recording(path)


def test_an_interrupted_recording_keeps_what_was_written(tmp_path):
    path = tmp_path / "r.jsonl.gz"
    shape = KernelShape.from_mapping(SHRINK)
    config = KernelConfig.from_mapping(shape.op, lines(SHRINK)[0]["config"])
    with pytest.raises(KeyboardInterrupt), RecordingWriter(path, ENV) as writer:
        writer.write(
            Measurement(shape=shape, config=config, outcome=Outcome.OK, samples_us=(1.0,)),
            is_default=True,
        )
        raise KeyboardInterrupt
    assert config in read_recording(path).shapes[shape]
    assert list(tmp_path.iterdir()) == [path]


def test_a_configuration_recorded_twice_keeps_all_samples(tmp_path):
    path = write_recording(tmp_path / "r.jsonl.gz", SHRINK)
    again = dict(lines(SHRINK)[0], samples_us=[99.0])
    text = gzip.decompress(path.read_bytes()) + json.dumps(again).encode() + b"\n"
    path.write_bytes(gzip.compress(text))
    shape = KernelShape.from_mapping(SHRINK)
    config = KernelConfig.from_mapping(shape.op, again["config"])
    samples = read_recording(path).shapes[shape][config].samples_us
    assert (len(samples), samples[-1]) == (16, 99.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "is cut off"),
        (lambda path: path.write_bytes(b"no gzip"), "cannot read the recording"),
        (lambda path: path.write_bytes(gzip.compress(b"")), "is no recording"),
        (lambda path: path.write_bytes(gzip.compress(b'{"schema": "x/1"}\n')), "is no recording"),
        (lambda path: path.write_bytes(gzip.compress(b"[1]\n")), "line 1 is no JSON object"),
        (lambda path: path.write_bytes(gzip.compress(b"{nonsense\n")), "cannot read the recording"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_a_broken_recording_is_refused_in_one_line(tmp_path, change, message):
    path = write_recording(tmp_path / "r.jsonl.gz", SHRINK)
    change(path)
    with pytest.raises(RecordingError, match=message) as caught:
        read_recording(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("outcome", "fine", "line 2.*'fine'"),
        ("config", {"block_m": 16}, "line 2.*block_n"),
        ("shape", {"op": "shrink"}, "line 2.*num_tokens"),
        ("samples_us", "fast", "line 2"),
    ],
)
def test_the_number_of_a_wrong_line_is_in_the_message(tmp_path: Path, key, value, message):
    path = tmp_path / "r.jsonl.gz"
    header = {"schema": "autotune-recording/1", "environment": ENVIRONMENT}
    bad = lines(SHRINK)[0] | {key: value}
    path.write_bytes(gzip.compress(f"{json.dumps(header)}\n{json.dumps(bad)}\n".encode()))
    with pytest.raises(RecordingError, match=message):
        read_recording(path)
