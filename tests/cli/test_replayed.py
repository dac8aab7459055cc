"""A replay is never taken for a measurement: what shows one says which recording answered."""

from __future__ import annotations

import gzip
import json
from contextlib import closing
from pathlib import Path

import pytest

from autotune.errors import RecordingError
from autotune.launch.environment import Environment
from autotune.measure.recording import RecordingWriter, read_recording
from autotune.search import TrialMirror
from autotune.store import Store, facts
from tests.recordings import ENVIRONMENT, write_recording

DATABASE = "sqlite:///autotune.db"
TOLD = "r.jsonl.gz, measured 2026-11-24"


@pytest.fixture
def dated(recording: Path) -> Path:
    """The recording, with the day on which it was measured."""
    return with_day(recording, "2026-11-24")


def with_day(recording: Path, day: object) -> Path:
    header, _, rest = gzip.decompress(recording.read_bytes()).partition(b"\n")
    table = json.loads(header) | {"measured_at": day}
    recording.write_bytes(gzip.compress(json.dumps(table).encode() + b"\n" + rest))
    return recording


@pytest.mark.slow
def test_whatever_shows_a_replay_says_which_recording_and_when_it_was_measured(autotune, dated):
    ended = autotune("run", "--replay", dated, "--trials", 5, "--record", "again.jsonl.gz")
    assert ended.code == 0, ended.err
    assert f"Replayed, not measured here: from {TOLD}." in ended.out

    provenance = json.loads(autotune.files()["NVIDIA_Test_GPU_provenance.json"])
    entries = [one for of_file in provenance["entries"].values() for one in of_file.values()]
    source = {"recordings": ["r.jsonl.gz"], "measured_at": "2026-11-24"}
    assert [one["replayed"] for one in entries] == [source] * 2

    assert f"Replayed, not measured here: 2 studies, from {TOLD}" in autotune("status").out
    studies = json.loads(autotune("status", "--json").out)["studies"]
    assert [one["replayed"] for one in studies] == [source] * 2

    assert autotune("report").code == 0
    page = (autotune.folder / "report.html").read_text()
    assert f"Replayed, not measured here: 2 shapes, from {TOLD}." in page
    assert ">Measured<" not in page
    assert "A recording does not say how long anything took." in page
    assert 'data-figure="time"' not in page

    again = read_recording(autotune.folder / "again.jsonl.gz")
    assert again.measured_at == "2026-11-24"

    with closing(TrialMirror(f"sqlite:///{autotune.folder / 'autotune.db'}")) as mirror:
        storage = mirror._storage
        notes = [
            json.dumps(storage.get_study_system_attrs(storage.get_study_id_from_name(name)))
            for name in mirror.study_names
        ]
    assert len(notes) == 2
    assert all(f"replayed, not measured here**: {TOLD}" in note for note in notes)


@pytest.mark.slow
def test_a_recording_that_does_not_say_when_is_still_named(autotune, recording):
    ended = autotune("run", "--replay", recording, "--trials", 3)
    assert "from r.jsonl.gz, measured at a time that it does not say." in ended.out


def test_the_database_knows_every_shape_that_was_replayed(autotune, recording):
    autotune("run", "--replay", recording, "--trials", 3)
    with closing(Store(f"sqlite:///{autotune.folder / 'autotune.db'}")) as store:
        assert len(facts.replayed(store)) == 2


def test_what_a_gpu_measures_is_recorded_with_the_day(tmp_path):
    path = tmp_path / "new.jsonl.gz"
    known = read_recording(write_recording(tmp_path / "old.jsonl.gz"))
    shape, default = next(iter(known.defaults.items()))
    with RecordingWriter(path, Environment.from_mapping(ENVIRONMENT)) as writer:
        writer.write(known.shapes[shape][default], is_default=True)
    assert len(read_recording(path).measured_at) == len("2026-11-24")


@pytest.mark.parametrize("day", [1, None, ["2026-11-24"], "yesterday", "2026-11-24\x1b[2J"])
def test_a_day_that_is_none_is_refused(recording, day):
    with pytest.raises(RecordingError, match=r"line 1: measured_at must be a day such as"):
        read_recording(with_day(recording, day))
