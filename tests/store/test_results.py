"""Results of shapes, read from a database and from a recording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

from autotune.errors import RecordingError
from autotune.launch.op import MOE_OPS, LoraOp
from autotune.measure.replay import ReplayRunner
from autotune.plan.study import StudyPlan
from autotune.store import Store
from autotune.store.results import ShapeResult, of_replay, of_store
from tests.moe import moe_lines, moe_shape
from tests.recordings import BEST, EXPAND, SHRINK, lines, write_recording
from tests.search.cases import CountingRunner, broken_lines, tune, write_lines


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan_of(runner: ReplayRunner, **options: object) -> StudyPlan:
    plan = replace(StudyPlan.of_shapes(runner.shapes), effort=None, trials=20)
    return replace(plan, **options)  # type: ignore[arg-type]


def stored(url: str = "sqlite:///autotune.db") -> list[ShapeResult]:
    with closing(Store(url)) as store:
        return of_store(store)


@pytest.mark.slow
def test_a_database_gives_every_trial_in_its_order_and_what_was_chosen(tmp_path):
    runner = CountingRunner(write_recording(tmp_path / "r.jsonl.gz"))
    plan = plan_of(runner)
    tuned = {result.shape: result for result in tune(plan, runner)}

    results = stored()
    assert {result.shape for result in results} == set(runner.shapes)
    assert [m.config for result in results for m in result.measurements] == runner.measured
    for result in results:
        assert result.environment == runner.environment
        assert result.study.startswith("NVIDIA Test-GPU/builtin/")
        assert result.selection == tuned[result.shape].selection
        assert result.default == result.measurements[0].config
        assert len(result.times) == 20
        assert all(started <= finished for started, finished in result.times)


def test_a_search_under_way_has_trials_and_no_choice_yet(tmp_path):
    runner = CountingRunner(write_recording(tmp_path / "r.jsonl.gz", SHRINK), interrupted_after=7)
    with pytest.raises(KeyboardInterrupt):
        tune(plan_of(runner), runner)
    (result,) = stored()
    assert len(result.measurements) == 7
    assert result.selection is None
    assert result.default is None


@pytest.mark.slow
def test_the_layers_of_shapes_are_those_that_the_run_named(tmp_path):
    runner = CountingRunner(write_recording(tmp_path / "r.jsonl.gz"))
    tables = [{**SHRINK, "layer": "qkv"}, {**EXPAND, "layer": "o"}, {**EXPAND, "layer": "down"}]
    plan = plan_of(runner, shape_tables=dict(enumerate(tables, start=1)))
    tune(plan, runner)
    assert {(one.shape.op, one.layer) for one in stored()} == {
        (LoraOp.SHRINK, "qkv"),
        (LoraOp.EXPAND, "o, down"),
    }


def test_a_recording_gives_what_a_search_of_all_of_it_chooses(tmp_path):
    runner = CountingRunner(write_recording(tmp_path / "r.jsonl.gz"))
    exhaustive = tune(plan_of(runner, sampler="exhaustive", trials=162), runner)

    results = of_replay(runner)
    assert [result.shape for result in results] == list(runner.shapes)
    for result, searched in zip(results, exhaustive, strict=True):
        assert len(result.measurements) == 162
        assert result.times == ()
        assert searched.selection is not None
        assert result.selection is not None
        assert result.selection.config == searched.selection.config
        assert result.selection.ratio == searched.selection.ratio
        assert result.selection.outcomes == {"ok": 161, "launch_failed": 1}
        assert BEST.items() <= result.selection.config.as_dict().items()


def test_a_recorded_shape_of_which_nothing_works_has_no_choice(tmp_path):
    path = write_lines(tmp_path / "r.jsonl.gz", [*broken_lines(SHRINK), *lines(EXPAND)])
    broken, good = of_replay(ReplayRunner([path]))
    assert broken.selection is None
    assert len(broken.measurements) == 12
    assert good.selection is not None


def test_a_recording_without_a_default_is_refused(tmp_path):
    those = [line | {"is_default": False} for line in lines(SHRINK)]
    path = write_lines(tmp_path / "r.jsonl.gz", those)
    with pytest.raises(RecordingError, match="no default"):
        of_replay(ReplayRunner([path]))


# ------------------------------------------------------------------ MoE layers


@contextmanager
def moe_runner(tmp_path, *ops: LoraOp) -> Iterator[CountingRunner]:
    shapes = [moe_shape(op).as_dict() for op in ops]
    path = write_lines(tmp_path / "r.jsonl.gz", [line for one in shapes for line in moe_lines(one)])
    with CountingRunner(path) as runner:
        yield runner


@pytest.mark.slow
def test_the_ops_of_a_moe_layer_have_the_block_m_that_is_exported(tmp_path):
    with moe_runner(tmp_path, *MOE_OPS) as runner:
        tuned = tune(plan_of(runner, trials=108), runner)
        expected = {result.shape: result.selection for result in tuned}
        assert {one.shape: one.selection for one in stored()} == expected
        recorded = [one.selection for one in of_replay(runner)]
    assert {one.config.block_m for one in recorded if one} == {32}


def test_moe_ops_that_fit_no_common_block_m_keep_their_own_choices(tmp_path):
    # One op alone gets vLLM's block_m of 64 for the others, which was not measured here.
    shape = moe_shape(LoraOp.W2_SHRINK).as_dict()
    small = [line for line in moe_lines(shape) if line["config"]["block_m"] != 64]
    small[0]["is_default"] = True
    path = write_lines(tmp_path / "r.jsonl.gz", small)
    (result,) = of_replay(ReplayRunner([path]))
    assert result.selection is not None
    assert result.selection.layer is None
