"""Searches several shapes side by side, so that nothing waits for the end of a shape's search.

While a configuration of one shape is timed, the next ones of this shape and the first ones of other
shapes are compiled. With a runner that compiles nothing, such as a replay, shapes come one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from autotune.choose.selection import Selection
from autotune.launch.shape import KernelShape
from autotune.search.budget import Budget
from autotune.search.events import Closed
from autotune.search.rounds import Searched, Turn
from autotune.search.samplers.transfer import nearest_before
from autotune.search.session import Session
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
    """A shape that is being searched."""

    turn: Turn
    tuner: ShapeTuner
    budget: Budget
    is_first: bool = False


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
        self._waiting: deque[Turn] = deque()
        self._next: Future[_Open] | None = None

    def run(self, turns: Sequence[Turn]) -> None:
        """Search shapes, each until its budget is spent.

        Args:
            turns: The shapes. One that learns from another is begun after that one is over, where
                there are others to go on with meanwhile.
        """
        self._waiting = deque(turns)
        self._near = nearest_before([turn.space.shape for turn in turns])
        with ThreadPoolExecutor(1, thread_name_prefix="next-shape") as self._thread:
            while self._open or self._waiting or self._next:
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
            self._open[self._runner.first_ready(pending)].tuner.measure()

    def _fill(self) -> None:
        """Choose configurations until as many are under way as the runner wants."""
        self._begin_first()
        room = self._runner.lookahead
        for each in self._open.values():
            room -= self._ask(each, room)
        most_open = min(_MOST_OPEN, self._runner.lookahead)
        while room > 0 and (self._waiting or self._next) and len(self._open) < most_open:
            each = self._open_next()
            each.tuner.begin(each.budget)
            self._begin_first()
            room -= self._ask(each, room)

    def _open_next(self) -> _Open:
        """Open the next shape, and begin to make ready another where something is compiled."""
        each = (self._next or self._ready_next()).result()
        self._open[each.tuner.shape] = each
        is_ahead = self._runner.lookahead > 1 and self._waiting
        self._next = self._ready_next() if is_ahead else None
        return each

    def _ready_next(self) -> Future[_Open]:
        """Make the next shape ready in a thread: that takes as long as measuring some trials."""
        turn = self._next_turn()
        beside = [each.tuner for each in self._open.values()]
        return self._thread.submit(
            lambda: _Open(turn, self._session.tuner(turn.space, beside), turn.early)
        )

    def _begin_first(self) -> None:
        """Begin the turn of the shape that was opened first, unless it has begun."""
        first = next(iter(self._open.values()), None)
        if first is not None and not first.is_first:
            first.is_first = True
            first.budget = first.turn.begin() or Budget(trials=0)

    def _ask(self, each: _Open, room: int) -> int:
        """Choose configurations of a shape, one at least; returns how many are under way."""
        shapes = min(_SIDE_BY_SIDE, len(self._open) + len(self._waiting) + (self._next is not None))
        share = -(-self._runner.lookahead // shapes)
        each.tuner.ask(each.budget, at_most=max(1, min(share, room)))
        return len(each.tuner.pending)

    def _next_turn(self) -> Turn:
        """The next shape, if possible one that learns from no shape that is unfinished."""
        unfinished = {*self._open, *(turn.space.shape for turn in self._waiting)}
        for turn in self._waiting:
            if self._near[turn.space.shape] not in unfinished:
                break
        else:
            turn = self._waiting[0]
        self._waiting.remove(turn)
        return turn

    def _finish(self, each: _Open) -> None:
        selection = each.tuner.choose()
        self._session.tell(Closed(shape=each.tuner.shape))
        del self._open[each.tuner.shape]
        self._runner.leave(each.tuner.shape)
        each.turn.end(self._done(each.tuner, selection))
