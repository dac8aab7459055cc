"""Searches several shapes side by side, so that nothing waits for the end of a shape's search.

While a configuration of one shape is timed, the next ones are chosen; those of this shape and the
first ones of other shapes are compiled. With a runner that compiles nothing, such as a replay,
shapes come one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass

from autotune.choose.selection import Selection
from autotune.errors import ClaimLost, DeviceLost
from autotune.launch.shape import KernelShape
from autotune.search.budget import Budget
from autotune.search.crew import Member
from autotune.search.events import Closed
from autotune.search.hand import Hand
from autotune.search.rounds import Searched, Turn
from autotune.search.session import Session
from autotune.search.tuner import ShapeTuner
from autotune.search.turns import TurnQueue

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
        is_over: Whether nothing is left to choose, by what was known when it was last asked.
        is_told: Whether it was told that the shape is open.
    """

    turn: Turn
    tuner: ShapeTuner
    budget: Budget
    has_begun: bool = False
    is_over: bool = False
    is_told: bool = False


class Pipeline:
    """Searches the shapes of a session with all its runners."""

    def __init__(self, session: Session, done: Done) -> None:
        """Search nothing yet.

        Args:
            session: The run.
            done: Called with each shape whose search is over, in the thread of its runner.
        """
        self._session, self._done, self._queue = session, done, TurnQueue(session)

    @property
    def lanes(self) -> int:
        """How many runners search at a time."""
        return len(self._session.crew.present)

    def run(self, turns: Sequence[Turn]) -> None:
        """Search shapes, each until its budget is spent.

        Args:
            turns: The shapes. One that learns from another is begun after that one is over, where
                there are others to go on with meanwhile.
        """
        self._queue.fill(turns)
        self._session.crew.work(
            lambda member: _Lane(self._session, member, self._queue, self._done).run()
        )


class _Lane:
    """Searches the shapes that one runner gets; called in one thread."""

    def __init__(self, session: Session, member: Member, queue: TurnQueue, done: Done) -> None:
        self._session, self._runner, self._queue, self._done = session, member, queue, done
        self._open: dict[KernelShape, _Open] = {}
        self._next: Future[_Open | None] | None = None
        self._hand = Hand(member)

    def run(self) -> None:
        """Search until no shape is left; where the GPU is lost, leave the rest to the others."""
        with (
            ThreadPoolExecutor(1, thread_name_prefix="next-shape") as self._thread,
            closing(self._hand),
        ):
            try:
                while self._open or not self._queue.is_over:
                    self._step()
            except DeviceLost as error:
                with suppress(DeviceLost):  # something may have been measured before
                    self._learn()
                self._hand_over()
                self._session.crew.lose(self._runner, error)

    def _step(self) -> None:
        """Choose configurations while one is measured; then finish shapes and measure the next."""
        self._session.crew.check()
        self._fill()
        self._learn()
        for each in [each for each in self._open.values() if not each.tuner.pending]:
            if each.is_over or not self._ask(each, 1):
                self._finish(each)
        attempts = [each.tuner.attempt() for each in self._open.values() if each.tuner.pending]
        if attempts:
            self._hand.begin(attempts)
        elif not self._open and not self._queue.may_take(self._runner):
            self._queue.wait()

    def _learn(self) -> None:
        """Learn what was measured meanwhile, if anything was."""
        made = self._hand.end()
        if made is None:
            return
        each = self._open[made.attempt.shape]
        try:
            each.tuner.finish(made)
        except ClaimLost:
            self._lose(each)

    def _fill(self) -> None:
        """Choose configurations until as many are under way as the runner wants."""
        self._begin_first()
        room = self._runner.lookahead
        for each in self._open.values():
            room -= self._ask(each, room)
        most_open = min(_MOST_OPEN, self._runner.lookahead)
        while room > 0 and len(self._open) < most_open and self._may_open():
            opened = self._open_next()
            if opened is None:
                break
            opened.tuner.begin(opened.turn.early)
            opened.is_told = True
            self._begin_first()
            room -= self._ask(opened, room)
        self._hand.expect({shape: each.tuner.pending for shape, each in self._open.items()})

    def _may_open(self) -> bool:
        return self._next is not None or self._queue.may_take(self._runner)

    def _open_next(self) -> _Open | None:
        """Open the next shape, and begin to make ready another where something is compiled.

        Returns:
            The shape; None where other runs and other runners have all that are left.
        """
        each = (self._next or self._ready_next()).result()
        self._next = None
        if each is None:
            return None
        self._open[each.tuner.shape] = each
        if self._runner.lookahead > 1 and self._queue.may_take(self._runner):
            self._next = self._ready_next()
        return each

    def _ready_next(self) -> Future[_Open | None]:
        """Make the next shape ready in a thread: that takes as long as measuring some trials."""
        wanted, beside = self._queue.wanted(self._runner), self._queue.beside()

        def make_ready() -> _Open | None:
            got = self._queue.take(wanted, self._runner)
            if got is None:
                return None
            turn, taken = got
            try:
                tuner = self._session.tuner(turn.space, beside, self._runner)
            except ClaimLost:
                self._session.claims.forget(taken.shape)
                self._queue.put_back(turn)
                return None
            self._queue.open(tuner)
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
        shapes = min(_SIDE_BY_SIDE, len(self._open) + self._queue.expected(self._runner))
        share = -(-self._runner.lookahead // shapes)
        each.is_over = not each.tuner.ask(each.budget, at_most=max(1, min(share, room)))
        return len(each.tuner.pending)

    def _finish(self, each: _Open) -> None:
        shape = each.tuner.shape
        try:
            selection = each.tuner.choose()
        except ClaimLost:
            self._lose(each)
            return
        has_grown = each.tuner.has_grown or self._queue.has_grown(shape)
        self._close(each)
        self._session.claims.give_back(shape, has_grown=has_grown)
        each.turn.end(self._done(each.tuner, selection))
        self._queue.finish(shape)
        self._runner.leave(shape)

    def _lose(self, each: _Open) -> None:
        """Leave a shape to the run that has taken it over, and look at it again after that."""
        self._close(each)
        self._session.claims.forget(each.tuner.shape)
        self._queue.put_back(each.turn)
        self._runner.leave(each.tuner.shape)

    def _close(self, each: _Open) -> None:
        self._tell_closed(each)
        del self._open[each.tuner.shape]

    def _tell_closed(self, each: _Open) -> None:
        if each.is_told:
            self._session.tell(Closed(shape=each.tuner.shape))

    def _hand_over(self) -> None:
        """Let the other runners have the shapes of this one, with all that was measured."""
        ready = None if self._next is None else self._next.result()
        for each in [*self._open.values(), *([] if ready is None else [ready])]:
            shape, has_grown = each.tuner.shape, each.tuner.has_grown
            try:
                each.tuner.flush()
                self._session.claims.give_back(shape, has_grown=False)
            except ClaimLost:
                self._session.claims.forget(shape)
            self._tell_closed(each)
            self._queue.put_back(each.turn, has_grown=has_grown)
        self._open.clear()
