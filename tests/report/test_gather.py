"""The contents of a report, from databases and recordings."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from autotune.errors import RecordingError, StorageError
from autotune.measure.measurement import Ceilings
from autotune.measure.recording import RecordingWriter, read_recording
from autotune.measure.roofline import floor_us
from autotune.measure.runners import replay_runner
from autotune.report.gather import of_database, of_recordings
from autotune.search.session import Session
from autotune.search.tune import look_between
from autotune.search.tune import tune as tune_session
from autotune.store import Store
from tests.choose.test_between import crossing, write
from tests.recordings import BEST, write_recording
from tests.report.examples import HERE, add_study, shape
from tests.search.cases import tune
from tests.search.test_tune import Told, plan_of


@pytest.mark.slow
def test_a_run_s_database_gives_every_shape_with_its_choice(tmp_path):
    runner = replay_runner([write_recording(tmp_path / "r.jsonl.gz")])
    plan = plan_of(runner, trials=40, storage=f"sqlite:///{tmp_path}/own.db")
    tuned = tune(plan, runner, Told())
    found = of_database(plan.storage)
    (device,) = found.devices
    assert (found.is_recording, device.environment) == (False, runner.environment)
    chosen = {one.shape: one.selection for one in device.shapes}
    assert chosen == {result.shape: result.selection for result in tuned}
    assert [len(one.result.measurements) for one in device.shapes] == [40, 40]
    assert all(sum(one.importances.values()) == pytest.approx(1) for one in device.shapes)
    assert device.ceilings is None
    assert device.between == ()
    # A replay's times are not those of measuring.
    assert device.period is None
    assert device.replays == {runner.replayed: 2}


@pytest.mark.slow
def test_losses_between_rows_are_in_the_report(tmp_path):
    table = {"op": "shrink", "hidden_size": 4096, "rank": 16, "num_slices": 3, "max_loras": 8}
    counts = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
    shapes = [table | {"num_tokens": count} for count in counts]
    runner = replay_runner([write(tmp_path / "r.jsonl.gz", shapes, crossing)])
    storage = f"sqlite:///{tmp_path}/own.db"
    plan = plan_of(runner, trials=9, storage=storage)
    tables = {n: shape for n, shape in plan.shape_tables.items() if shape["num_tokens"] in (1, 64)}
    plan = replace(plan, shape_tables=tables, limits={"max_num_seqs": 32})
    with Session(plan, runner) as session:
        refined = look_between(session, tune_session(session)).refined
    (device,) = of_database(storage).devices
    assert device.between == refined.between
    assert len(refined.between) > 5
    assert {one.shape for one in device.shapes} >= set(refined.added)


def test_a_recording_gives_the_fastest_recorded_configuration_of_each_shape(tmp_path):
    path = write_recording(tmp_path / "r.jsonl.gz")
    found = of_recordings([path])
    (device,) = found.devices
    assert (found.is_recording, found.source) == (True, str(path))
    assert device.period is None
    for one in device.shapes:
        assert one.selection is not None
        assert BEST.items() <= one.selection.config.as_dict().items()
        assert one.floor_us is None
        assert len(one.result.measurements) == 162


def test_a_recording_that_knows_the_ceilings_gives_shares_of_the_roofline(tmp_path):
    path, ceilings = tmp_path / "known.jsonl.gz", Ceilings(3e12, 7e14)
    recording = read_recording(write_recording(tmp_path / "r.jsonl.gz"))
    with RecordingWriter(path, recording.environment, ceilings) as writer:
        for of, by_config in recording.shapes.items():
            for config, one in by_config.items():
                writer.write(one, is_default=config == recording.defaults[of])
    (device,) = of_recordings([path]).devices
    assert device.ceilings == ceilings
    assert [one.floor_us for one in device.shapes] == [
        floor_us(one.shape, ceilings) for one in device.shapes
    ]


def test_recordings_of_two_devices_are_two_devices(tmp_path):
    paths = [
        write_recording(tmp_path / "a.jsonl.gz"),
        write_recording(tmp_path / "b.jsonl.gz", gpu="NVIDIA Other-GPU"),
    ]
    gpus = [device.environment.gpu for device in of_recordings(paths).devices]
    assert gpus == ["NVIDIA Test-GPU", "NVIDIA Other-GPU"]


def test_a_database_is_read_while_it_is_written(tmp_path):
    url = f"sqlite:///{tmp_path}/own.db"
    with closing(Store(url)) as store:
        add_study(store, shape(), is_chosen=False)
        with store.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            connection.exec_driver_sql("DELETE FROM autotune_measurements")
            (device,) = of_database(url).devices
    (one,) = device.shapes
    assert (one.verdict, len(one.result.measurements)) == ("not finished", 30)
    assert device.environment == HERE


# ------------------------------------------------------------------ bad input


def test_a_database_with_no_study_says_so(tmp_path):
    url = f"sqlite:///{tmp_path}/own.db"
    Store(url).close()
    with pytest.raises(StorageError, match=r"own\.db holds no study; tune one with autotune run"):
        of_database(url)


def test_a_database_that_is_not_there_is_named_and_not_made(tmp_path):
    with pytest.raises(StorageError, match=r"there is no database .*own\.db"):
        of_database(f"sqlite:///{tmp_path}/own.db")
    assert list(tmp_path.iterdir()) == []


def test_a_recording_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RecordingError, match=r"cannot read the recording .*r\.jsonl\.gz: No such"):
        of_recordings([tmp_path / "r.jsonl.gz"])
