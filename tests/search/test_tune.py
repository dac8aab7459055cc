"""The main job over several shapes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from autotune.choose.couple import couple
from autotune.errors import ReplayMiss, WorkerDied
from autotune.launch.op import MOE_OPS, LoraOp
from autotune.measure.measurement import Ceilings
from autotune.measure.replay import ReplayRunner
from autotune.measure.sweep import record
from autotune.plan.notes import notes
from autotune.plan.study import StudyPlan
from autotune.search.budget import FEWEST_TRIALS
from autotune.search.events import Choosing, Closed, Event, Opened, Planned, ShapeDone, Tried, Tuned
from autotune.search.session import Session
from autotune.search.tune import look_between
from autotune.search.tune import tune as tune_session
from autotune.store import Store, facts
from autotune.store.chosen import chosen_together, stored_selections
from tests.moe import moe_config, moe_lines, moe_shape
from tests.recordings import BEST, EXPAND, SHRINK, lines, write_recording
from tests.search.cases import CountingRunner, broken_lines, tune, write_lines


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runner(tmp_path) -> CountingRunner:
    return CountingRunner(write_recording(tmp_path / "r.jsonl.gz"))


class Told:
    """A Watch that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def done(self) -> list[ShapeDone]:
        """The shapes that were done."""
        return [event for event in self.events if isinstance(event, ShapeDone)]


def plan_of(runner: ReplayRunner, **options: object) -> StudyPlan:
    """A plan for every shape of a recording, with exactly these trials where they are given."""
    exact = {"effort": None} if "trials" in options else {}
    return replace(StudyPlan.of_shapes(runner.shapes), **(exact | options))  # type: ignore[arg-type]


@pytest.mark.slow
def test_every_shape_ends_with_its_selection_in_the_database(runner):
    plan = plan_of(runner, trials=162)  # whole spaces: the best one's like are asked for last
    told = Told()
    tuned = tune(plan, runner, told)

    assert [result.shape for result in tuned] == list(runner.shapes)
    assert told.done == [
        ShapeDone(tuned=result, number=number, count=2)
        for number, result in enumerate(tuned, start=1)
    ]
    for result in tuned:
        assert result.trials == result.outcomes.total() == 162
        assert result.selection is not None
        assert BEST.items() <= result.selection.config.as_dict().items()
    ((environment, selections),) = stored_selections(plan.storage)
    assert environment == runner.environment
    assert {s.shape: s for s in selections} == {r.shape: r.selection for r in tuned}


@pytest.mark.slow
def test_a_watch_gets_the_plan_every_trial_and_every_shape(runner):
    told = Told()
    tune(plan_of(runner, trials=7), runner, told)
    one_shape = [Opened, *[Tried] * 7, Choosing, Closed, ShapeDone]
    assert [type(event) for event in told.events] == [Planned, *one_shape, *one_shape]
    planned = told.events[0]
    assert isinstance(planned, Planned)
    assert list(planned.trials.items()) == [(shape, 7) for shape in planned.defaults]
    trials = [event for event in told.events if isinstance(event, Tried)]
    assert [event.tried for event in trials] == [*range(1, 8), *range(1, 8)]
    first, *later = trials[:7]
    assert first.measurement.config == planned.defaults[first.measurement.shape]
    assert first.best_us == first.default_us == first.measurement.latency_us
    for before, after in pairwise([first, *later]):
        assert after.default_us == first.default_us
        assert after.best_us is not None
        assert before.best_us is not None
        assert after.best_us <= before.best_us


@pytest.mark.slow
def test_a_watch_of_a_run_that_goes_on_gets_what_was_measured_before(runner):
    tune(plan_of(runner, trials=7), runner)
    told = Told()
    tune(plan_of(runner, trials=9), runner, told)
    opened = [event for event in told.events if isinstance(event, Opened)]
    assert [(event.tried, event.most) for event in opened] == [(7, 9), (7, 9)]
    assert all(event.best_us and event.default_us for event in opened)


def test_a_shape_where_nothing_works_is_told_and_the_run_goes_on(tmp_path):
    path = write_lines(tmp_path / "r.jsonl.gz", [*broken_lines(SHRINK), *lines(EXPAND)])
    runner = CountingRunner(path)
    plan = plan_of(runner, trials=20)
    told = Told()
    broken, good = tune(plan, runner, told)

    assert broken.selection is None
    assert broken.outcomes == {"compile_failed": 12}
    assert good.selection is not None
    assert [event.tuned for event in told.done] == [broken, good]
    ((_, selections),) = stored_selections(plan.storage)
    assert selections == [good.selection]


class CeilingsRunner(CountingRunner):
    """A runner that knows its device's limits, or raises an error when it is asked for them."""

    answer: Ceilings | WorkerDied = Ceilings(3e12, 7e14)
    asked = 0

    def ceilings(self):
        self.asked += 1
        if isinstance(self.answer, WorkerDied):
            raise self.answer
        return self.answer


def facts_of(url: str) -> tuple[dict[str, int], list[Ceilings]]:
    """The layers and the limits of devices in a database."""
    with closing(Store(url)) as store:
        uses = [(use.names, use.runs) for use in facts.layers(store).values()]
        return dict(uses), list(facts.ceilings(store).values())


@pytest.mark.slow
def test_a_run_keeps_the_names_of_the_layers_and_what_the_device_reaches(tmp_path):
    runner = CeilingsRunner(write_recording(tmp_path / "r.jsonl.gz"))
    named = [
        shape.as_dict() | {"layer": f"layer {number}"} for number, shape in enumerate(runner.shapes)
    ]
    plan = replace(plan_of(runner, trials=5), shape_tables=dict(enumerate(named, start=1)))
    for _ in range(2):
        tune(plan, runner, Told())
    assert facts_of(plan.storage) == ({"layer 0": 0, "layer 1": 0}, [Ceilings(3e12, 7e14)])
    assert runner.asked == 1


@pytest.mark.slow
def test_a_device_whose_limits_cannot_be_measured_is_tuned_all_the_same(tmp_path):
    runner = CeilingsRunner(write_recording(tmp_path / "r.jsonl.gz"))
    runner.answer = WorkerDied("CUDA out of memory")
    plan = plan_of(runner, trials=5)
    assert all(result.selection for result in tune(plan, runner, Told()))
    assert facts_of(plan.storage)[1] == []


@pytest.mark.slow
def test_a_recording_of_a_run_holds_the_limits_of_its_device(tmp_path):
    runner = CeilingsRunner(write_recording(tmp_path / "r.jsonl.gz"))
    tune(plan_of(runner, trials=5), runner, Told(), record=tmp_path / "own.jsonl.gz")
    assert ReplayRunner([tmp_path / "own.jsonl.gz"]).ceilings() == Ceilings(3e12, 7e14)
    assert ReplayRunner([tmp_path / "r.jsonl.gz"]).ceilings() is None


@pytest.mark.slow
def test_a_spent_time_budget_still_chooses_for_every_shape(runner):
    told = Told()
    tuned = tune(plan_of(runner, time_budget_s=0), runner, told)
    assert [result.trials for result in tuned] == [FEWEST_TRIALS] * 2
    assert all(result.selection for result in tuned)
    assert len(told.done) == 2


@pytest.mark.slow
def test_what_a_shape_takes_beyond_its_time_is_not_taken_from_the_last(tmp_path, monkeypatch):
    now = [1000.0]

    class SlowRunner(CountingRunner):
        def measure(self, shape, pending, stop):
            now[0] += 0.5
            return super().measure(shape, pending, stop)

        def compare(self, shape, configs, *rule):
            now[0] += 4.0
            return super().compare(shape, configs, *rule)  # type: ignore[no-untyped-call]

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    names = [{**SHRINK, "num_tokens": tokens} for tokens in (1, 2, 3, 4)]
    path = write_lines(tmp_path / "r.jsonl.gz", [line for name in names for line in lines(name)])
    told = Told()
    tune(plan_of(SlowRunner(path), time_budget_s=48), SlowRunner(path), told)
    # The first cannot know yet; the others leave time for their finalists.
    _, *others = (event.tuned.trials for event in told.done)
    assert max(others) - min(others) <= 1
    assert now[0] <= 1048.0


@pytest.mark.slow
def test_the_time_budget_is_shared_among_the_shapes(tmp_path, monkeypatch):
    now = [1000.0]

    class SlowRunner(CountingRunner):
        def measure(self, shape, pending, stop):
            now[0] += 1.0  # each takes a second
            return super().measure(shape, pending, stop)

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    runner = SlowRunner(write_recording(tmp_path / "r.jsonl.gz"))
    first, second = tune(plan_of(runner, time_budget_s=20), runner)
    assert (first.trials, second.trials) == (10, 10)


@pytest.mark.slow
def test_time_that_a_shape_does_not_need_goes_to_those_after_it(tmp_path, monkeypatch):
    now = [1000.0]

    class SlowRunner(CountingRunner):
        def measure(self, shape, pending, stop):
            now[0] += 1.0
            return super().measure(shape, pending, stop)

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    path = write_lines(tmp_path / "r.jsonl.gz", [*broken_lines(SHRINK, 4), *lines(EXPAND)])
    runner = SlowRunner(path)
    first, second = tune(plan_of(runner, time_budget_s=20), runner)
    assert (first.trials, second.trials) == (4, 16)


@pytest.mark.slow
def test_an_interruption_keeps_the_shapes_that_are_done_and_the_next_run_finishes(runner, tmp_path):
    plan = plan_of(runner, trials=20)
    runner.interrupted_after = 30
    told = Told()
    with pytest.raises(KeyboardInterrupt):
        tune(plan, runner, told)
    assert len(told.done) == 1
    ((_, selections),) = stored_selections(plan.storage)
    assert len(selections) == 1

    again = CountingRunner(tmp_path / "r.jsonl.gz")
    tuned = tune(plan, again)
    assert len(again.measured) == 10
    assert [result.trials for result in tuned] == [20, 20]


def test_a_shape_that_cannot_be_measured_is_an_error_before_anything_is(runner):
    plan = plan_of(runner).override(tokens=[16, 17])
    with pytest.raises(ReplayMiss, match="the recording has no"):
        tune(plan, runner)
    assert runner.measured == []


def test_an_empty_database_has_no_selections():
    Store("sqlite:///autotune.db").close()
    assert stored_selections("sqlite:///autotune.db") == []


# ------------------------------------------------------------------ MoE layers


def moe_recording(path: Path, *ops: LoraOp, **changes: object) -> Path:
    tables = [moe_shape(op, **changes).as_dict() for op in ops or MOE_OPS]
    return write_lines(path, [line for table in tables for line in moe_lines(table)])


def block_ms(tuned: Sequence[Tuned]) -> list[int]:
    return [result.selection.config.block_m for result in tuned if result.selection]


@pytest.mark.slow
def test_a_moe_layer_ends_with_the_block_m_of_its_smallest_sum(tmp_path):
    runner = CountingRunner(moe_recording(tmp_path / "r.jsonl.gz"))
    plan, told = plan_of(runner, trials=100), Told()
    tuned = tune(plan, runner, told)

    own = {event.tuned.shape: event.tuned for event in told.done}
    assert block_ms([own[shape] for shape in runner.shapes]) == [16, 32, 64, 16]
    assert block_ms(tuned) == [32] * 4
    for result in tuned:
        assert result.selection is not None
        assert result.selection.layer is not None
        assert result.selection.layer.ops == MOE_OPS
        config = result.selection.config
        assert (config.block_n, config.num_warps, config.num_stages) == (32, 8, 3)
    again = tune(plan, runner)
    assert again == tuned
    assert len(runner.compared) == 4


@pytest.mark.slow
def test_ops_tuned_one_by_one_are_chosen_for_together_from_the_database(tmp_path):
    runner = CountingRunner(moe_recording(tmp_path / "r.jsonl.gz"))
    # A sampler that learns nothing from the layer's other ops: they are there in one run only.
    plan = plan_of(runner, trials=60, sampler="tpe")
    whole = tune(replace(plan, storage="sqlite:///whole.db"), runner)
    for number, op in enumerate(MOE_OPS, start=1):
        (result,) = tune(plan.override(ops=[op]), runner)
        assert result.selection is not None
        with closing(Store(plan.storage)) as store:
            exported = chosen_together([result.selection], store, runner.environment)
        assert [
            one.shape.op for one in sorted(exported, key=lambda s: MOE_OPS.index(s.shape.op))
        ] == [*MOE_OPS[:number]]
        assert {one.config.block_m for one in exported} == {32 if number == 4 else 64}
    assert {s.shape: s for s in exported} == {r.shape: r.selection for r in whole}


@pytest.mark.slow
def test_what_the_database_keeps_is_each_ops_own_choice_and_its_evidence(tmp_path):
    runner = CountingRunner(moe_recording(tmp_path / "r.jsonl.gz"))
    plan = plan_of(runner, trials=60)
    tuned = tune(plan, runner)

    ((_, stored),) = stored_selections(plan.storage)
    assert sorted(one.config.block_m for one in stored) == [16, 16, 32, 64]
    assert {one.shape: one for one in couple(stored)} == {r.shape: r.selection for r in tuned}


def test_only_block_m_is_tuned_where_vllm_reads_nothing_else(tmp_path):
    runner = CountingRunner(moe_recording(tmp_path / "r.jsonl.gz", rank=16, num_tokens=64))
    tuned = tune(plan_of(runner, trials=100), runner)

    assert [result.trials for result in tuned] == [4] * 4
    assert {replace(config, block_m=64) for config in runner.measured} == {moe_config()}
    assert len(set(block_ms(tuned))) == 1


def test_where_vllm_reads_nothing_the_default_is_all_that_is_timed(tmp_path):
    runner = CountingRunner(moe_recording(tmp_path / "r.jsonl.gz", rank=16, num_tokens=16))
    tuned = tune(plan_of(runner, trials=100), runner)

    assert runner.measured == [moe_config()] * 4
    assert {result.selection.config for result in tuned if result.selection} == {moe_config()}
    (line,) = notes(runner.shapes, runner.environment)
    assert line.endswith("For 4 of them, of small batches, it reads not even block_m.")


def test_what_is_recorded_is_what_a_run_would_search(tmp_path):
    runner = CountingRunner(moe_recording(tmp_path / "r.jsonl.gz", rank=16, num_tokens=64))
    plan = plan_of(runner)
    record(
        runner,
        tmp_path / "again.jsonl.gz",
        shapes=plan.shapes,
        axes=plan.axes,
        sample=None,
        seed=plan.seed,
        progress=lambda *_: None,
    )

    assert len(runner.measured) == 4 * 4
    assert {replace(config, block_m=64) for config in runner.measured} == {moe_config()}


@pytest.mark.parametrize(
    ("changes", "release", "alone"),
    [
        ({"rank": 16}, "0.33.0", True),
        ({"rank": 16}, "0.15.1", False),
        ({"rank": 16, "fully_sharded": True}, "0.33.0", False),
        ({"rank": 256}, "0.33.0", False),
    ],
)
def test_the_release_whose_kernels_are_launched_decides_what_is_tuned(
    tmp_path, changes, release, alone
):
    changes |= {"num_tokens": 64}
    runner = CountingRunner(moe_recording(tmp_path / "r.jsonl.gz", LoraOp.W2_SHRINK, **changes))
    runner.environment = replace(runner.environment, provider="vllm", provider_version=release)
    (result,) = tune(plan_of(runner, trials=30), runner)
    assert (result.trials == 4) is alone

    told = [line for line in notes(runner.shapes, runner.environment) if "reads only" in line]
    assert (len(told) == 1) is alone
    if alone:
        (line,) = told
        assert line.startswith("vLLM 0.33.0 reads only block_m of MoE entries of rank 16 where")
        assert "for 1 of 1 shapes nothing else is tuned" in line
        assert line.endswith("vLLM has one kernel for their shrink and expand: both get its time.")


def test_the_ops_that_a_layer_lacks_are_told_before_it_is_tuned(tmp_path):
    runner = CountingRunner(
        moe_recording(tmp_path / "r.jsonl.gz", LoraOp.W13_SHRINK, LoraOp.W2_SHRINK)
    )
    (line,) = notes(runner.shapes, runner.environment)
    assert line.startswith("Not among the shapes: w13_expand, w2_expand of a MoE layer")


def test_dense_shapes_need_no_remarks(runner):
    assert notes(runner.shapes, runner.environment) == []


@pytest.mark.slow
def test_a_row_that_neither_neighbour_fills_gets_a_short_search_which_is_kept(tmp_path):
    def samples_us(num_tokens: int, num_warps: int) -> list[float]:
        # Two warps are best on both sides, and eight between them; vLLM's default are four.
        best = 8 if num_tokens == 24 else 2
        us = 10.0 if num_warps == best else (14.0 if num_warps == 4 else 20.0)
        return [us + 0.01 * (i % 3) for i in range(9)]

    config = {"block_m": 16, "block_n": 16, "block_k": 64, "split_k": 1, "num_stages": 2}
    path = write_lines(
        tmp_path / "r.jsonl.gz",
        [
            {
                "shape": SHRINK | {"num_tokens": num_tokens},
                "config": config | {"num_warps": num_warps},
                "outcome": "ok",
                "samples_us": samples_us(num_tokens, num_warps),
                "is_default": num_warps == 4,
            }
            for num_tokens in (16, 24, 32)
            for num_warps in (1, 2, 4, 8)
        ],
    )
    runner = CountingRunner(path)
    plan = plan_of(runner).override(tokens="auto").answered_by(runner.shapes)

    with Session(plan, runner) as session:
        tuned = tune_session(session)
        between, _, refined = look_between(session, tuned)

    assert [result.shape.num_tokens for result in tuned] == [16, 32]
    (added,) = (result for result in between if result.shape in refined.added)
    assert added.shape.num_tokens == 24
    assert added.selection is not None
    assert added.selection.config.as_dict()["num_warps"] == 8
    ((_, kept),) = stored_selections(plan.storage)
    assert {one.shape.num_tokens for one in kept} == {16, 24, 32}
