"""Several runners in one run: what they share, and what becomes of a GPU that is lost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import DeviceLost, InputError, StorageError
from autotune.export import VllmExporter
from autotune.export.check import check_exported
from autotune.launch.config import KernelConfig
from autotune.launch.moe_layer import by_layer
from autotune.launch.op import MOE_OPS
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Runner, StopRule
from autotune.measure.replay import ReplayRunner
from autotune.measure.runners import replay_workers
from autotune.plan.study import StudyPlan
from autotune.search.crew import Crew
from autotune.search.events import Closed, Event, GpuLost, Opened, ShapeDone, Tuned, unwatched
from autotune.search.run import run_job
from autotune.search.session import Session
from autotune.search.tune import look_between, tune
from autotune.store import Store
from autotune.testing import Landscape, LossyRunner
from autotune.testing.landscape import shrink
from tests.choose.test_between import crossing
from tests.choose.test_between import write as write_crossing
from tests.moe import moe_lines, moe_table
from tests.patience import PATIENCE_S
from tests.recordings import EXPAND, SHRINK, write_recording
from tests.search.cases import write_lines
from tests.together import problems_in

SHAPES = [shrink(num_tokens=1 << power) for power in range(9)]
TRIALS = 8


@dataclass
class Noting(Landscape):
    """Notes what it measures, and in which threads."""

    stride: int = 61
    lost_after: int | None = None
    measured: list[tuple[KernelShape, KernelConfig]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        found = super().measure(shape, pending, stop)
        self.measured.append((shape, found.config))
        self.threads.add(threading.get_ident())
        return found


def crew(count: int = 4, *, lookahead: int = 1, **losses: int) -> list[Noting]:
    """Runners, of which some are lost: ``gpu1=5`` after five measurements."""
    return [
        Noting(device=f"GPU {n}", lookahead=lookahead, lost_after=losses.get(f"gpu{n}"))
        for n in range(count)
    ]


class Run:
    """A run to its end, and all that it told."""

    def __init__(
        self,
        folder: Path,
        runners: Sequence[Runner],
        shapes: Sequence[KernelShape] = SHAPES,
        **options: object,
    ) -> None:
        self.url = f"sqlite:///{folder}/autotune.db"
        plan = StudyPlan.of_shapes(shapes).override(storage=self.url, sampler="random")
        self.plan = plan.override(**({"trials": TRIALS} | options))  # type: ignore[arg-type]
        self.runners = runners
        self.said: list[str] = []
        self.events: list[Event] = []

    def __call__(self) -> Sequence[Tuned]:
        runners = [
            LossyRunner(one, after=one.lost_after)
            if isinstance(one, Noting) and one.lost_after is not None
            else one
            for one in self.runners
        ]
        with Session(self.plan, runners, self.events.append, say=self.said.append) as session:
            return tune(session)

    @property
    def measured(self) -> Counter[tuple[KernelShape, KernelConfig]]:
        return Counter(each for one in self.runners for each in one.measured)  # type: ignore[attr-defined]

    @property
    def devices(self) -> dict[KernelShape, list[str]]:
        """The GPUs that each shape was searched on, in this order."""
        found: dict[KernelShape, list[str]] = {}
        for event in self.events:
            if isinstance(event, Opened):
                found.setdefault(event.shape, []).append(event.device)
        return found


def kept(url: str) -> Counter[tuple[KernelShape, KernelConfig]]:
    with closing(Store(url)) as store:
        return Counter(
            (study.shape, one.measurement.config)
            for study in store.studies()
            for one in store.finished(study)
        )


@pytest.mark.slow
@pytest.mark.parametrize("lookahead", [1, 6])
def test_all_runners_search_each_in_a_thread_of_its_own_and_measure_nothing_twice(
    tmp_path, lookahead
):
    runners = crew(lookahead=lookahead)
    run = Run(tmp_path, runners)
    tuned = run()
    assert [one.shape for one in tuned] == SHAPES
    assert [one.trials for one in tuned] == [TRIALS] * len(SHAPES)
    assert set(run.measured.values()) == {1}
    assert kept(run.url) == run.measured
    assert problems_in(run.url) == []
    assert all(len(each.threads) == 1 for each in runners)
    assert len({each for one in runners for each in one.threads}) == 4
    assert {len(devices) for devices in run.devices.values()} == {1}
    done = [event.number for event in run.events if isinstance(event, ShapeDone)]
    assert sorted(done) == list(range(1, len(SHAPES) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("lookahead", [1, 6])
def test_a_gpu_that_is_lost_costs_what_was_under_way_and_the_others_take_over(tmp_path, lookahead):
    run = Run(tmp_path, crew(lookahead=lookahead, gpu1=5, gpu2=TRIALS))
    tuned = run()
    assert [one.trials for one in tuned] == [TRIALS] * len(SHAPES)
    assert all(one.selection for one in tuned)
    assert set(run.measured.values()) == {1}
    assert kept(run.url) == run.measured
    assert problems_in(run.url) == []
    again = "is lost: it was made up. What was under way there is tried again:"
    said = sorted(line.replace("1 is", "2 is") for line in run.said)
    assert said == [f"GPU 2 {again} the other {left} GPUs go on." for left in (2, 3)]
    opened = Counter(event.shape for event in run.events if isinstance(event, Opened))
    closed = Counter(event.shape for event in run.events if isinstance(event, Closed))
    assert opened == closed
    lost = [event.device for event in run.events if isinstance(event, GpuLost)]
    assert sorted(lost) == ["GPU 1", "GPU 2"]


@pytest.mark.slow
@given(
    losses=st.lists(st.none() | st.integers(0, 12), min_size=2, max_size=4),
    lookahead=st.sampled_from([1, 3, 6]),
)
def test_however_many_are_lost_whenever_nothing_is_kept_twice(losses, lookahead):
    runners = crew(len(losses), lookahead=lookahead)
    for runner, after in zip(runners, losses, strict=True):
        runner.lost_after = after
    with TemporaryDirectory() as folder:
        run = Run(Path(folder), runners, SHAPES[:4], trials=4)
        if None in losses:
            assert [one.trials for one in run()] == [4] * 4
        else:
            with suppress(DeviceLost):
                run()
            Run(Path(folder), crew(1), SHAPES[:4], trials=4)()
        assert set(run.measured.values()) <= {1}
        assert run.measured <= kept(run.url)
        assert problems_in(run.url) == []


@pytest.mark.slow
def test_replays_of_which_one_is_lost_write_a_folder_that_a_check_accepts(tmp_path):
    tables = [kind | {"num_tokens": 8 << n} for kind in (SHRINK, EXPAND) for n in range(3)]
    first, *others = replay_workers(
        ReplayRunner([write_recording(tmp_path / "r.jsonl.gz", *tables)]), 4
    )
    plan = StudyPlan.of_shapes(first.shapes).override(
        storage=f"sqlite:///{tmp_path}/autotune.db", trials=20
    )
    said: list[str] = []
    runners = [LossyRunner(first, after=13), *others]
    done = run_job(plan, runners, unwatched, say=said.append)
    assert [line for line in said if line.startswith("replay 0 is lost: it was made up. ")]
    assert problems_in(plan.storage) == []
    assert set(kept(plan.storage).values()) == {1}
    VllmExporter().export(done.selections, done.environment, tmp_path / "tuned", merge=False)
    report = check_exported(tmp_path / "tuned", {done.environment.gpu: list(first.shapes)})
    assert not report.has_errors


@pytest.mark.slow
@pytest.mark.parametrize("lookahead", [1, 6])
def test_when_the_last_gpu_is_lost_the_run_ends_and_the_next_goes_on(tmp_path, lookahead):
    run = Run(tmp_path, crew(3, lookahead=lookahead, gpu0=4, gpu1=5, gpu2=6))
    with pytest.raises(DeviceLost, match=r"^GPU \d is lost: it was made up$"):
        run()
    assert kept(run.url) == run.measured
    assert run.measured.total() == 15
    again = Run(tmp_path, crew(2, lookahead=lookahead))
    assert [one.trials for one in again()] == [TRIALS] * len(SHAPES)
    assert set((run.measured + again.measured).values()) == {1}
    assert problems_in(run.url) == []


def test_a_lone_gpu_that_is_lost_ends_the_run(tmp_path):
    run = Run(tmp_path, crew(1, gpu0=3))
    with pytest.raises(DeviceLost, match="GPU 0 is lost"):
        run()
    assert kept(run.url).total() == 3
    assert run.said == []


@pytest.mark.slow
def test_a_shape_that_is_searched_again_goes_on_where_it_was(tmp_path):
    run = Run(tmp_path, crew(3), effort="quick", trials=None)
    run()
    assert max(map(len, run.devices.values())) > 1
    assert {len(set(devices)) for devices in run.devices.values()} == {1}


@pytest.mark.slow
def test_the_ops_of_a_moe_layer_are_searched_on_one_gpu(tmp_path):
    tables = [moe_table(op, num_tokens=count) for count in (8, 16, 64) for op in MOE_OPS]
    lines = [line for table in tables for line in moe_lines(table)]
    runners = replay_workers(ReplayRunner([write_lines(tmp_path / "moe.jsonl.gz", lines)]), 3)
    run = Run(tmp_path, runners, runners[0].shapes)
    run()
    layers = by_layer(runners[0].shapes, lambda shape: shape).values()
    used = [{each for shape in those for each in run.devices[shape]} for those in layers]
    assert [len(each) for each in used] == [1, 1, 1]
    assert len(set.union(*used)) == 3


@pytest.mark.slow
def test_batch_sizes_between_the_rows_are_timed_by_all_and_again_if_one_is_lost(tmp_path):
    kinds = [SHRINK | {"rank": rank} for rank in (16, 32, 64)]
    counts = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
    tables = [kind | {"num_tokens": count} for kind in kinds for count in counts]
    runner = ReplayRunner([write_crossing(tmp_path / "r.jsonl.gz", tables, crossing)])
    found = []
    for number, after in enumerate((None, 10**6, 60)):
        runners: list[Runner] = list(replay_workers(runner, 1 if after is None else 3))
        if after is not None:
            runners[1] = LossyRunner(runners[1], after=after)
        plan = StudyPlan.of_shapes(runner.shapes).override(
            storage=f"sqlite:///{tmp_path}/{number}.db", trials=9, sampler="exhaustive"
        )
        few = {n: one for n, one in plan.shape_tables.items() if one["num_tokens"] in (1, 64)}
        plan = replace(plan, shape_tables=few, limits={"max_num_seqs": 32})
        with Session(plan, runners) as session:
            tuned = tune(session)
            if after == 60:
                runners[1]._left = 0  # type: ignore[attr-defined]  # now, and not before
            found.append(look_between(session, tuned).refined)
    assert found[0].without_row > 5
    assert found[0] == found[1] == found[2]


def test_gpus_that_differ_are_refused(tmp_path):
    runners = crew(2)
    runners[1].environment = replace(runners[1].environment, gpu="NVIDIA Other")
    with pytest.raises(InputError, match=r"^GPU 0 and GPU 1 differ \(gpu NVIDIA Test-GPU, here"):
        Run(tmp_path, runners)()


@pytest.mark.slow
def test_an_error_of_one_thread_ends_the_run(tmp_path):
    class Broken(Noting):
        def measure(self, *args):
            if len(self.measured) == 3:
                raise StorageError("no more")
            return super().measure(*args)

    run = Run(tmp_path, [*crew(2), Broken(device="GPU 2")])
    with pytest.raises(StorageError, match="no more"):
        run()
    assert kept(run.url) <= run.measured
    Run(tmp_path, crew(2))()
    assert problems_in(run.url) == []


@pytest.mark.slow
def test_a_stopped_run_does_not_wait_for_a_gpu_that_is_at_work(tmp_path):
    """Nor does it keep what that GPU says afterwards."""
    late, free = threading.Event(), threading.Event()

    class Hanging(Noting):
        def measure(self, *args):
            late.set()
            free.wait(PATIENCE_S)
            return super().measure(*args)

    class Interrupted(Noting):
        def measure(self, *args):
            if len(self.measured) == 3:
                late.wait(PATIENCE_S)
                raise KeyboardInterrupt
            return super().measure(*args)

    hanging = Hanging(device="GPU 1")
    run = Run(tmp_path, [Interrupted(device="GPU 0"), hanging])
    with pytest.raises(KeyboardInterrupt):
        run()
    before, threads = kept(run.url), threading.enumerate()
    free.set()
    for thread in threads:
        if thread.name == "GPU 1":
            thread.join(PATIENCE_S)
    assert kept(run.url) == before
    assert len(hanging.measured) == 1
    Run(tmp_path, crew(2))()
    assert problems_in(run.url) == []


@pytest.mark.parametrize("method", ["space", "ceilings"])
def test_what_any_runner_may_do_another_does_if_a_gpu_is_lost(method):
    class Fragile(Noting):
        def kernel_space(self, *args):
            if self.device == "GPU 0":
                raise DeviceLost("GPU 0 is lost: gone")
            return super().kernel_space(*args)

        def ceilings(self):
            if self.device == "GPU 0":
                raise DeviceLost("GPU 0 is lost: gone")

    said: list[str] = []
    told: list[GpuLost] = []
    runners = [Fragile(device=f"GPU {n}") for n in range(2)]
    together = Crew(runners, say=said.append, tell=told.append)
    calls: dict[str, Callable[[], object]] = {
        "space": lambda: together.runner.space(shrink(), {}),
        "ceilings": together.runner.ceilings,
    }
    calls[method]()
    assert [each.device for each in together.present] == ["GPU 1"]
    assert together.runner.device == "GPU 1"
    assert said == [
        "GPU 0 is lost: gone. What was under way there is tried again: the other GPU goes on."
    ]
    assert told == [GpuLost(device="GPU 0")]
