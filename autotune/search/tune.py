"""Tuning every shape of a plan, and the batch sizes between them."""

from __future__ import annotations

import math
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from autotune.choose.between import Refined, joined, refine
from autotune.choose.keep_warm import keep_warm
from autotune.choose.losses import Timings, by_layer_of_rows
from autotune.choose.selection import Selection
from autotune.errors import ClaimLost, DeviceLost
from autotune.launch.config import KernelConfig
from autotune.launch.release import release_of
from autotune.launch.shape import KernelShape
from autotune.measure import Outcome
from autotune.search.budget import Budget
from autotune.search.crew import Member
from autotune.search.events import Looked, Planned, ShapeDone, Tuned
from autotune.search.pipeline import Pipeline
from autotune.search.rounds import Searched, search_in_rounds
from autotune.search.session import Session
from autotune.search.tuner import ShapeTuner
from autotune.store import facts
from autotune.store.chosen import chosen_together

#: How measuring ends where a configuration never runs; it may have been the GPU's fault else.
_NEVER = {
    *(Outcome.INVALID, Outcome.COMPILE_FAILED),
    *(Outcome.LAUNCH_FAILED, Outcome.WRONG_RESULT),
}

#: The most trials of a short search, for a row where no neighbour's winner beats the default.
SHORT_TRIALS = 40


def tune(session: Session) -> Sequence[Tuned]:
    """Tune every shape of a session's plan, and keep every selection in the database.

    The ops of a MoE layer get one ``block_m`` at the end. Ops that the plan lacks are taken from
    the database, if an earlier run kept them. The database keeps each op's own choice and samples.

    Every measurement is kept at once: after an interruption the same call goes on where it stopped.

    Returns:
        The results, in the order of the plan's shapes.

    Raises:
        AutotuneError: A shape cannot be measured, the database cannot be used, or no ``block_m``
            works for all ops of a MoE layer. What was measured before is kept.
    """
    spaces = session.spaces
    numbers = {space.shape: number for number, space in enumerate(spaces, start=1)}
    tuned: dict[KernelShape, Tuned] = {}

    def done(tuner: ShapeTuner, selection: Selection | None) -> Searched:
        before = tuned.get(tuner.shape)
        session.learn(tuner)
        result = Tuned(shape=tuner.shape, selection=selection, outcomes=tuner.outcomes)
        tuned[tuner.shape] = result
        if before is None or before.trials != result.trials:
            number = numbers[tuner.shape]
            session.tell(ShapeDone(tuned=result, number=number, count=len(spaces)))
        return Searched(
            trials=result.trials,
            gain=tuner.expected_gain,
            default_us=None if selection is None else selection.default_latency_us,
        )

    session.tell(_planned(session))
    pipeline = Pipeline(session, done)
    search_in_rounds(session.plan, spaces, pipeline.run, lanes=lambda: pipeline.lanes)
    chosen = chosen_together(session.latest(tuned), session.store, session.runner.environment)
    by_shape = {one.shape: one for one in chosen}
    return [replace(tuned[each], selection=by_shape.get(each)) for each in session.plan.shapes]


class Between(NamedTuple):
    """The rows after the batch sizes between the tuned ones were timed.

    Attributes:
        tuned: The results of all remaining rows that were chosen by what was timed there, the
            plan's shapes first.
        rows: The selections of all rows: also of batch sizes that take a neighbour's configuration.
        refined: What was done.
    """

    tuned: Sequence[Tuned]
    rows: Sequence[Selection]
    refined: Refined


def look_between(
    session: Session, tuned: Sequence[Tuned], *, rows_max: int | None = None
) -> Between:
    """Time the batch sizes between a plan's, add rows where needed, and merge rows.

    Then rows take configurations that the server launches at its start. Added and changed rows are
    kept in the database, beside the rows that were tuned.

    Args:
        session: A session whose plan has the batch sizes of ``AUTO``.
        tuned: The results of ``tune``.
        rows_max: How many rows a layer may have; None for any number.

    Returns:
        What was found.
    """
    environment = session.runner.environment
    chosen = [result.selection for result in tuned if result.selection]
    timings = Timings(
        session.runner,
        lambda shape: session.tell(Looked(shape=shape)),
        searched=_searched_in(session, {one.shape for one in chosen}),
    )
    timings.know(chosen)
    refined = _refined(session, chosen, timings, rows_max)
    warm = keep_warm(
        refined.selections,
        timings,
        sizes=session.plan.warmed,
        release=release_of(environment),
        add_rows=rows_max is None,
    )
    facts.keep_between(session.store, environment, refined.between)
    rows = list(_kept_rows(session, warm.selections, {*refined.added, *warm.added}))
    merged, by_shape = set(refined.merged), {one.shape: one for one in rows}
    kept = [
        replace(result, selection=by_shape.get(result.shape))
        for result in tuned
        if result.shape not in merged
    ]
    new = [
        Tuned(shape=shape, selection=one, outcomes=Counter(one.outcomes))
        for shape in refined.added
        if (one := by_shape.get(shape)) is not None
    ]
    return Between([*kept, *new], rows, refined)


def _searched_in(
    session: Session, shapes: Set[KernelShape]
) -> Callable[[KernelShape], Mapping[KernelConfig, float]]:
    """What the searches of some shapes measured, as ``Timings`` takes it."""

    @cache
    def searched(shape: KernelShape) -> Mapping[KernelConfig, float]:
        if shape not in shapes:
            return {}
        record = session.store.study_of(shape, session.runner.environment)
        found = [item.measurement for item in session.store.finished(record)]
        ran = {one.config: statistics.median(one.samples_us) for one in found if one.samples_us}
        return {one.config: math.inf for one in found if one.outcome in _NEVER} | ran

    return searched


def _refined(
    session: Session, rows: Sequence[Selection], timings: Timings, rows_max: int | None
) -> Refined:
    """Refine the rows: the layers one by one, side by side where there are several runners."""
    layers = by_layer_of_rows(rows)
    left, lock = list(enumerate(layers)), threading.Lock()
    done: dict[int, Refined] = {}

    def work(member: Member) -> None:
        while True:
            with lock:
                if not left:
                    return
                number, those = left.pop(0)
            try:
                done[number] = refine(
                    those,
                    timings.by(member),
                    captured=session.plan.captured,
                    search=lambda shape: _searched_briefly(session, shape, member),
                    rows_max=rows_max,
                )
            except DeviceLost as error:
                with lock:
                    left.append((number, those))
                session.crew.lose(member, error)
                return

    while len(done) < len(layers):  # a runner that was lost may have left one to nobody
        session.crew.work(work)
    return joined(done[number] for number in range(len(layers)))


def _searched_briefly(session: Session, shape: KernelShape, member: Member) -> Selection | None:
    """The choice of a short search."""
    session.wait_for(shape)
    try:
        tuner = session.tuner(member.space(shape, session.plan.axes[shape.op]), runner=member)
        try:
            selection = tuner.run(Budget(trials=min(session.plan.trials, SHORT_TRIALS)))
        except DeviceLost:
            tuner.flush()
            session.claims.give_back(shape, has_grown=False)
            raise
    except ClaimLost:
        session.claims.forget(shape)
        return _searched_briefly(session, shape, member)
    session.claims.give_back(shape, has_grown=tuner.has_grown)
    return selection


def _kept_rows(
    session: Session, selections: Iterable[Selection], added: Set[KernelShape]
) -> Iterator[Selection]:
    """All rows; those that were added or changed are kept in the database."""
    store, environment = session.store, session.runner.environment
    replayed = session.runner.replayed
    if replayed is not None:
        facts.keep_replayed(store, environment, added, replayed)
    for one in selections:
        row = replace(one, replayed=replayed) if one.shape in added else one
        if one.shape in added or one.exchanged is not None:
            store.keep_selection(store.study_of(one.shape, environment), row)
        yield row


def _planned(session: Session) -> Planned:
    return Planned(
        trials={space.shape: session.trials(space) for space in session.spaces},
        defaults={space.shape: space.default for space in session.spaces},
    )
