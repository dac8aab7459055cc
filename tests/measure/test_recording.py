from __future__ import annotations

import contextlib
import gzip
import json
import math
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
from tests.mutated import mutated
from tests.recordings import ENVIRONMENT, EXPAND, SHRINK, lines, write_recording

ENV = Environment.from_mapping(ENVIRONMENT)
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


@given(st.lists(measurements(), min_size=1, max_size=8, unique_by=lambda m: (m.shape, m.config)))
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
    measurement = next(iter(measurements_of(write_recording(tmp_path / "any.jsonl.gz"))))
    for name, ceilings in (("with", Ceilings(3e12, 7e14)), ("without", None)):
        path = tmp_path / f"{name}.jsonl.gz"
        with RecordingWriter(path, ENV, ceilings) as writer:
            writer.write(measurement, is_default=True)
        assert read_recording(path).ceilings == ceilings


def measurements_of(path: Path) -> list[Measurement]:
    return [one for those in read_recording(path).shapes.values() for one in those.values()]


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
        (
            lambda path: path.write_bytes(gzip.compress(b"[1]\n")),
            "line 1: the whole must be an object",
        ),
        (lambda path: path.write_bytes(gzip.compress(b"{nonsense\n")), "line 1: not JSON"),
        (lambda path: rewrite(path, lines=1), "holds no measurement"),
        (lambda path: rewrite(path, b'{"shape":' + b"[" * 10_000), "line 164: not JSON"),
        (lambda path: rewrite(path, b" " * 2**21), "line of more than 1048576 bytes"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_a_broken_recording_is_refused_in_one_line(tmp_path, change, message):
    path = write_recording(tmp_path / "r.jsonl.gz", SHRINK)
    change(path)
    with pytest.raises(RecordingError, match=message) as caught:
        read_recording(path)
    assert "\n" not in str(caught.value)


#: What a field may not hold, with the end of the message.
WRONG = [
    ("outcome", "fine", "outcome must be 'ok',.*: got 'fine'"),
    ("config", {"block_m": 16}, "block_n must be 1 to 4096: got None"),
    ("config", [16], "config must be an object: got \\[16\\]"),
    ("shape", {"op": "shrink"}, "num_tokens must be a whole number: got nothing"),
    ("samples_us", "fast", "samples_us must be .*: got 'fast'"),
    ("samples_us", [], "samples_us must hold at least one figure where the outcome is ok"),
    ("samples_us", [1.0, math.nan], r"samples_us\[1\] must be a finite number: got nan"),
    ("samples_us", [math.inf], r"samples_us\[0\] must be a finite number: got inf"),
    ("samples_us", [0.0], r"samples_us\[0\] must be above 0.0: got 0.0"),
    ("samples_us", [-1.0], r"samples_us\[0\] must be above 0.0: got -1.0"),
    ("samples_us", [10**400], r"samples_us\[0\] must be .*: got a whole number of 1329 bits"),
    ("samples_us", [True], r"samples_us\[0\] must be a number: got True"),
    ("relative_error", "x", "relative_error must be a number: got 'x'"),
    ("relative_error", -1.0, "relative_error must be 0 or more: got -1.0"),
    ("registers", "many", "registers must be a whole number: got 'many'"),
    ("registers", 10**30, "registers must be below 2147483648: got 1000"),
    ("spills", -5, "spills must be at least 0: got -5"),
    ("is_default", 1, "is_default must be true or false: got 1"),
    ("reason", ["\x1b"], r"reason must be a text: got \['\\x1b'\]"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_the_message_names_file_line_field_and_value(tmp_path: Path, key, value, message):
    path = write_recording(tmp_path / "r.jsonl.gz", SHRINK)
    rewrite(path, json.dumps(lines(SHRINK)[0] | {key: value}).encode())
    with pytest.raises(RecordingError, match=f"r.jsonl.gz line 164: {message}") as caught:
        read_recording(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ceilings", {"copy_bytes_per_s": 1}, "ceilings.matmul_flops_per_s is missing"),
        ("ceilings", 5, "ceilings must be .*: got 5"),
        ("environment", [1], r"environment must be an object: got \[1\]"),
        ("environment", ENVIRONMENT | {"gpu": ""}, "gpu must be 1 to 200 printable characters"),
        ("environment", ENVIRONMENT | {"gpu": "\x1b[2J"}, "gpu must be 1 to 200 printable"),
    ],
)
def test_a_wrong_first_line_is_named(tmp_path: Path, key, value, message):
    path = tmp_path / "r.jsonl.gz"
    header = {"schema": "autotune-recording/1", "environment": ENVIRONMENT} | {key: value}
    path.write_bytes(gzip.compress(json.dumps(header).encode() + b"\n"))
    with pytest.raises(RecordingError, match=f"line 1: .*{message}"):
        read_recording(path)


def rewrite(path: Path, *more: bytes, lines: int | None = None) -> None:
    """Keep the first lines of a recording, all where no number is given, and add more."""
    kept = gzip.decompress(path.read_bytes()).splitlines()[:lines]
    path.write_bytes(gzip.compress(b"\n".join([*kept, *more]) + b"\n"))


@given(table=st.sampled_from(lines(SHRINK)[:4]), data=st.data())
def test_whatever_stands_in_a_line_it_is_read_or_refused(tmp_path_factory, table, data):
    path = tmp_path_factory.mktemp("recording") / "r.jsonl.gz"
    header = {"schema": "autotune-recording/1", "environment": ENVIRONMENT}
    texts = [json.dumps(data.draw(mutated(each))) for each in (header, table)]
    path.write_bytes(gzip.compress("\n".join(texts).encode()))
    with contextlib.suppress(RecordingError):
        read_recording(path)
