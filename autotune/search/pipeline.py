"""Searches several shapes side by side, so that nothing waits for the end of a shape's search.

While a configuration of one shape is timed, the next ones of this shape and the first ones of other
shapes are compiled. With a runner that compiles nothing, such as a replay, shapes come one by one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from autotune.choose.selection import Selection
from autotune.errors import ClaimLost
from autotune.launch.shape import KernelShape
from autotune.search.budget import Budget
from autotune.search.events import Closed
from autotune.search.rounds import Searched, Turn
from autotune.search.samplers.transfer import nearest_before
from autotune.search.session import POLL_S, Session
from autotune.search.tuner import ShapeTuner

#: Shapes that share the configurations under way. Each then has a few at a time: with all of them
#: one shape would choose most of its trials before it knows how the first ones ended.
_SIDE_BY_SIDE = 5

#: The most shapes that are searched side by side; never more than the runner wants configurations.
_MOST_OPEN = 8

#: Called with a shape whose search is over, and what was chosen.
Done = Callable[[ShapeTuner, Selection | None], Searched]


@dataclass(slots=True)
class _Open:
    """A shape that is being searched.

    Attributes:
        turn: The shape's turn.
        tuner: The shape's tuner.
        budget: When the search ends.
        has_begun: Whether the turn has begun, or never does: another run has done it.
    """

    turn: Turn
    tuner: ShapeTuner
    budget: Budget
    has_begun: bool = False


class Pipeline:
    """Searches the shapes of a session."""

    def __init__(self, session: Session, done: Done) -> None:
        """Search nothing yet.

        Args:
            session: The run.
            done: Called with each shape whose search is over.
        """
        self._session, self._runner, self._done = session, session.runner, done
        self._open: dict[KernelShape, _Open] = {}
        self._waiting: list[Turn] = []
        self._next: Future[_Open | None] | None = None
        self._looked_s = -math.inf

    def run(self, turns: Sequence[Turn]) -> None:
        """Search shapes, each until its budget is spent.

        Args:
            turns: The shapes. One that learns from another is begun after that one is over, where
                there are others to go on with meanwhile.
        """
        self._waiting = list(turns)
        self._near = nearest_before([turn.space.shape for turn in turns])
        with ThreadPoolExecutor(1, thread_name_prefix="next-shape") as self._thread:
            while self._open or self._waiting:
                self._step()

    def _step(self) -> None:
        """Measure one configuration, and finish the shapes whose search is over."""
        self._fill()
        for each in [each for each in self._open.values() if not each.tuner.pending]:
            self._finish(each)
        pending = {
            shape: each.tuner.pending for shape, each in self._open.items() if each.tuner.pending
        }
        if pending:
            self._measure(self._open[self._runner.first_ready(pending)])
        elif not self._open and self._waiting:
            time.sleep(max(0.0, self._looked_s + POLL_S - time.monotonic()))

    def _measure(self, each: _Open) -> None:
        try:
            each.tuner.measure()
        except ClaimLost:
            self._lose(each)

    def _fill(self) -> None:
        """Choose configurations until as many are under way as the runner wants."""
        self._begin_first()
        room = self._runner.lookahead
        for each in self._open.values():
            room -= self._ask(each, room)
        most_open = min(_MOST_OPEN, self._runner.lookahead)
        while room > 0 and self._may_open() and len(self._open) < most_open:
            opened = self._open_next()
            if opened is None:
                break
            opened.tuner.begin(opened.turn.early)
            self._begin_first()
            room -= self._ask(opened, room)

    def _may_open(self) -> bool:
        """Whether a shape is left, and it is not too soon to ask again for those of other runs."""
        is_soon = time.monotonic() < self._looked_s + POLL_S
        return bool(self._next or (self._waiting and not is_soon))

    def _open_next(self) -> _Open | None:
        """Open the next shape, and begin to make ready another where something is compiled.

        Returns:
            The shape; None where other runs have all that are left.
        """
        each = (self._next or self._ready_next()).result()
        self._next = None
        if each is None:
            self._looked_s = time.monotonic()
            return None
        self._waiting.remove(each.turn)
        self._open[each.tuner.shape] = each
        if self._runner.lookahead > 1 and self._waiting:
            self._next = self._ready_next()
        return each

    def _ready_next(self) -> Future[_Open | None]:
        """Make the next shape ready in a thread: that takes as long as measuring some trials."""
        turns = {turn.space.shape: turn for turn in self._turns()}
        beside, is_idle = [each.tuner for each in self._open.values()], not self._open

        def make_ready() -> _Open | None:
            taken = self._session.take(list(turns), is_idle=is_idle)
            if taken is None:
                return None
            turn = turns[taken.shape]
            try:
                tuner = self._session.tuner(turn.space, beside)
            except ClaimLost:
                self._session.claims.forget(taken.shape)
                return None
            budget = Budget(trials=0) if taken.is_done else turn.early
            return _Open(turn, tuner, budget, has_begun=taken.is_done)

        return self._thread.submit(make_ready)

    def _begin_first(self) -> None:
        """Begin the turn of the shape that was opened first, unless it has begun."""
        first = next(iter(self._open.values()), None)
        if first is not None and not first.has_begun:
            first.has_begun = True
            first.budget = first.turn.begin() or Budget(trials=0)

    def _ask(self, each: _Open, room: int) -> int:
        """Choose configurations of a shape, one at least; returns how many are under way."""
        shapes = min(_SIDE_BY_SIDE, len(self._open) + len(self._waiting))
        share = -(-self._runner.lookahead // shapes)
        each.tuner.ask(each.budget, at_most=max(1, min(share, room)))
        return len(each.tuner.pending)

    def _turns(self) -> Sequence[Turn]:
        """The turns that wait, first those that learn from no shape that is unfinished."""
        unfinished = {*self._open, *(turn.space.shape for turn in self._waiting)}
        return sorted(self._waiting, key=lambda turn: self._near[turn.space.shape] in unfinished)

    def _finish(self, each: _Open) -> None:
        try:
            selection = each.tuner.choose()
        except ClaimLost:
            self._lose(each)
            return
        self._close(each)
        self._session.claims.give_back(each.tuner.shape, has_grown=each.tuner.has_grown)
        each.turn.end(self._done(each.tuner, selection))

    def _lose(self, each: _Open) -> None:
        """Leave a shape to the run that has taken it over, and look at it again after that."""
        self._close(each)
        self._session.claims.forget(each.tuner.shape)
        self._waiting.append(each.turn)

    def _close(self, each: _Open) -> None:
        self._session.tell(Closed(shape=each.tuner.shape))
        del self._open[each.tuner.shape]
        self._runner.leave(each.tuner.shape)
