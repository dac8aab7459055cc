"""The main job: every shape of a plan tuned."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from autotune.choose.between import Refined, refine
from autotune.choose.selection import Selection
from autotune.errors import InputError, WorkerDied
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Runner
from autotune.measure.recording import RecordingRunner, RecordingWriter
from autotune.plan.study import StudyPlan
from autotune.search import (
    ADAPTIVE,
    Budget,
    Neighbour,
    ShapeTuner,
    TrialMirror,
    in_order,
    study_name,
)
from autotune.search.events import Planned, ShapeDone, Tuned, Watch, unwatched, watched_by
from autotune.search.rounds import Searched, search_in_rounds
from autotune.search.samplers.known import experience, finished_earlier
from autotune.store import RunLog, Store, facts
from autotune.store.chosen import _coupled

#: A row between tuned ones that neither neighbour's winner fills: a study of this many at most.
SHORT_TRIALS = 40


def tune(
    plan: StudyPlan, runner: Runner, watch: Watch = unwatched, *, record: Path | None = None
) -> Sequence[Tuned]:
    """Tune every shape of a plan; each ends with its selection in the plan's database.

    The ops of a MoE layer are chosen for together at the end, with those of the layer's ops that
    earlier runs left in the database. There they keep their own choices, and the evidence.

    What is measured is kept at once: after an interruption the same call goes on where it stopped.

    Args:
        plan: What to tune, and where to keep it.
        runner: Measures.
        watch: Told of every trial and every shape.
        record: A recording to write of everything measured, earlier runs included.

    Raises:
        AutotuneError: Something cannot be used as it is; what was measured is kept.
    """
    if record is not None:
        with RecordingWriter(record, runner.environment, runner.ceilings()) as writer:
            return tune(plan, RecordingRunner(runner, writer), watch)
    transfers = plan.sampler == ADAPTIVE
    shapes = plan.shapes
    earlier = _earlier(plan, runner)
    known = [each.shape for each in earlier]
    order = in_order(shapes, known) if transfers else shapes
    spaces = [runner.space(shape, plan.axes[shape.op]) for shape in order]
    finished: dict[KernelShape, Neighbour] = {}
    tuned: dict[KernelShape, Tuned] = {}
    store = Store(plan.storage)
    mirror = TrialMirror(plan.storage)
    log = RunLog(store, runner.environment, partial(study_name, runner))
    tell = watched_by(log.watch, watch)

    def search(space: SearchSpace, budget: Budget) -> Searched:
        others = [each for shape, each in finished.items() if shape != space.shape]
        tuner = ShapeTuner(
            runner,
            space,
            store=store,
            mirror=mirror,
            sampler=plan.sampler,
            seed=plan.seed,
            finished=[*earlier, *others],
            watch=tell,
        )
        before = tuned.get(space.shape)
        selection = tuner.run(budget)
        if transfers:
            finished[space.shape] = tuner.as_neighbour
        outcomes = tuner.outcomes
        result = Tuned(
            shape=space.shape,
            selection=selection,
            trials=outcomes.total(),
            outcomes=outcomes,
        )
        tuned[space.shape] = result
        if before is None or before.trials != result.trials:
            tell(ShapeDone(tuned=result, number=spaces.index(space) + 1, count=len(spaces)))
        return Searched(
            trials=result.trials,
            gain=tuner.expected_gain,
            default_us=None if selection is None else selection.default_latency_us,
        )

    try:
        _keep_facts(plan, runner, store)
        with log:
            tell(_planned(plan, spaces))
            search_in_rounds(plan, spaces, search)
            return _coupled([tuned[shape] for shape in shapes], store, runner.environment)
    finally:
        mirror.close()
        store.close()


def _keep_facts(plan: StudyPlan, runner: Runner, store: Store) -> None:
    """Keep what only a run knows: the names of the layers, and what the device reaches at best."""
    runs = plan.runs
    uses = {
        shape: facts.LayerUse(names=names, runs=runs[shape]) for shape, names in plan.layers.items()
    }
    facts.keep_layers(store, runner.environment, uses)
    if runner.environment in facts.ceilings(store):
        return
    with contextlib.suppress(WorkerDied):  # a report can do without; the search needs no roofline
        ceilings = runner.ceilings()
        if ceilings is not None:
            facts.keep_ceilings(store, runner.environment, ceilings)


def look_between(
    plan: StudyPlan,
    tuned: Sequence[Tuned],
    runner: Runner,
    watch: Watch = unwatched,
    *,
    rows_max: int | None = None,
) -> tuple[Sequence[Tuned], Refined]:
    """Look at the batch sizes between a plan's, add rows where they are missed, merge some.

    What is added is kept in the plan's database, beside the rows that were tuned.

    Args:
        plan: What was tuned, at the batch sizes of ``AUTO``.
        tuned: What came of it.
        runner: Measures.
        watch: Told of every batch size.
        rows_max: How many rows a layer may have; None for any number.

    Returns:
        What there is now, the plan's shapes first, and what was done.
    """
    store, mirror = Store(plan.storage), TrialMirror(plan.storage)
    log = RunLog(store, runner.environment, partial(study_name, runner))
    tell = watched_by(log.watch, watch)

    @cache
    def known() -> Sequence[Neighbour]:
        """The tuned rows, to learn from."""
        return finished_earlier(plan.storage, runner.environment)

    def study(shape: KernelShape) -> Selection | None:
        tuner = ShapeTuner(
            runner,
            runner.space(shape, plan.axes[shape.op]),
            store=store,
            mirror=mirror,
            sampler=plan.sampler,
            seed=plan.seed,
            finished=known() if plan.sampler == ADAPTIVE else (),
            watch=tell,
        )
        return tuner.run(Budget(trials=min(plan.trials, SHORT_TRIALS)))

    try:
        log.resume()
        with log:
            refined = refine(
                [result.selection for result in tuned if result.selection],
                runner,
                captured=plan.captured,
                study=study,
                rows_max=rows_max,
                watch=tell,
            )
            added = [one for one in refined.selections if one.shape in set(refined.added)]
            facts.keep_between(store, runner.environment, refined.between)
            for one in added:
                record = store.study(study_name(runner, one.shape), one.shape, runner.environment)
                store.keep_selection(record, one)
    finally:
        mirror.close()
        store.close()
    kept = [result for result in tuned if result.shape not in set(refined.merged)]
    new = [
        Tuned(shape=one.shape, selection=one, trials=one.trials, outcomes=Counter(one.outcomes))
        for one in added
    ]
    return [*kept, *new], refined


def _planned(plan: StudyPlan, spaces: Sequence[SearchSpace]) -> Planned:
    return Planned(
        trials={space.shape: min(plan.trials, len(space.configs)) for space in spaces},
        defaults={space.shape: space.default for space in spaces},
    )


def _earlier(plan: StudyPlan, runner: Runner) -> list[Neighbour]:
    """What there is to learn from: what comes with autotune, and what ``--warm-start`` gives."""
    if plan.sampler == ADAPTIVE:
        older = finished_earlier(plan.warm_start, runner.environment) if plan.warm_start else []
        return [*older, *experience(runner)]
    if plan.warm_start is not None:
        raise InputError(
            f"--warm-start is for the sampler {ADAPTIVE}: got {plan.sampler}, which learns from no "
            "other search; leave one of them out"
        )
    return []
