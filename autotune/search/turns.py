"""The shapes that wait to be searched, handed to the runners of a run one after another.

Knows nothing of how a shape is searched.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from autotune.launch.moe_layer import MoeLayer
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import matmul_sizes
from autotune.search.crew import Member
from autotune.search.rounds import Turn
from autotune.search.samplers.transfer import nearest_before
from autotune.search.session import POLL_S, Session
from autotune.search.tuner import ShapeTuner
from autotune.store import Taken


@dataclass(slots=True)
class _Held:
    """A shape that a runner has: it is made ready, or searched."""

    by: Member
    tuner: ShapeTuner | None = None


class TurnQueue:
    """Hands shapes to the runners that ask for them, and takes back those of a lost one.

    Safe to use from several threads. A shape that was searched on a GPU goes on there, and so do
    the ops of its MoE layer, whose latencies are added up.
    """

    def __init__(self, session: Session) -> None:
        """Hold no turn yet.

        Args:
            session: Takes the shapes in the database, so that no other run searches them.
        """
        self._session, self._crew = session, session.crew
        self._changed = threading.Condition()
        self._waiting: dict[KernelShape, Turn] = {}
        self._held: dict[KernelShape, _Held] = {}
        self._homes: dict[Hashable, Member] = {}
        self._grown: set[KernelShape] = set()
        self._looked_s = -math.inf

    def fill(self, turns: Sequence[Turn]) -> None:
        """Let turns wait, those that nobody must wait for first."""
        self._waiting = {turn.space.shape: turn for turn in turns}
        self._near = nearest_before(list(self._waiting))

    @property
    def is_over(self) -> bool:
        """Whether no shape is left, also none that a lost runner may give back."""
        return not self._waiting and not self._held

    def expected(self, member: Member) -> int:
        """About how many of the shapes that wait a runner will get next to those that it has."""
        with self._changed:
            present = self._crew.present
            if len(present) == 1:
                return len(self._waiting)
            return max(0, min(len(self._waiting), self._room(member, len(present))))

    def may_take(self, member: Member) -> bool:
        """Whether a runner may ask for a shape, and it is not too soon to ask other runs again."""
        if not self._waiting or time.monotonic() < self._looked_s + POLL_S:
            return False
        return len(self._crew.present) == 1 or bool(self.wanted(member))

    def wanted(self, member: Member) -> list[Turn]:
        """The turns that a runner may have, in the order in which it should have them.

        Those that learn from no unfinished shape come first. With several runners the longest come
        first among them, and no runner has more than its share.
        """
        with self._changed:
            unfinished = self._held.keys() | self._waiting.keys()

            def waits(turn: Turn) -> bool:
                return self._near[turn.space.shape] in unfinished

            present = self._crew.present
            if len(present) == 1:
                return sorted(self._waiting.values(), key=waits)
            homes = [(turn, self._home(turn, present)) for turn in self._waiting.values()]
            at_home = [turn for turn, home in homes if home is member]
            if at_home:
                return sorted(at_home, key=waits)
            if self._room(member, len(present)) <= 0:
                return []
            free = [turn for turn, home in homes if home is None]
            return sorted(free, key=lambda turn: (waits(turn), *self._shortness(turn)))

    def take(self, wanted: Sequence[Turn], member: Member) -> tuple[Turn, Taken] | None:
        """Give a runner one of the turns that it wants.

        Returns:
            The turn, and how the shape was taken in the database; None where other runners or
            other runs have all of them.
        """
        with self._changed:
            present = self._crew.present
            turns = {
                turn.space.shape: turn
                for turn in wanted
                if turn.space.shape in self._waiting and self._home(turn, present) in (None, member)
            }
            if not turns:
                return None
            taken = self._session.take(list(turns), is_idle=not self._held)
            if taken is None:
                self._looked_s = time.monotonic()
                return None
            turn = self._waiting.pop(taken.shape)
            self._held[taken.shape] = _Held(member)
            self._homes[_together(taken.shape)] = member
            return turn, taken

    def open(self, tuner: ShapeTuner) -> None:
        """Note the tuner of a shape that was taken: others learn from it."""
        self._held[tuner.shape].tuner = tuner

    def beside(self) -> list[ShapeTuner]:
        """The tuners of all shapes that are searched now."""
        with self._changed:
            return [each.tuner for each in self._held.values() if each.tuner is not None]

    def put_back(self, turn: Turn, *, has_grown: bool = False) -> None:
        """Let a turn wait again.

        Args:
            turn: One that was taken.
            has_grown: Whether something was measured.
        """
        shape = turn.space.shape
        with self._changed:
            self._waiting[shape] = turn
            self._held.pop(shape, None)
            self._grown |= {shape} if has_grown else set()
            self._changed.notify_all()

    def has_grown(self, shape: KernelShape) -> bool:
        """Whether something was measured of a shape before its turn was put back."""
        return shape in self._grown

    def finish(self, shape: KernelShape) -> None:
        """Note that a shape is searched: those that learn from it may begin."""
        with self._changed:
            del self._held[shape]
            self._grown.discard(shape)
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until something has changed, or other runs may be asked again."""
        with self._changed:
            left_s = max(0.0, self._looked_s + POLL_S - time.monotonic())
            if len(self._crew.present) > 1:
                left_s = left_s or POLL_S
            self._changed.wait(left_s)

    def _home(self, turn: Turn, present: Sequence[Member]) -> Member | None:
        """The runner that must search a shape; None where any may."""
        home = self._homes.get(_together(turn.space.shape))
        return home if home in present else None

    def _room(self, member: Member, runners: int) -> int:
        """How many more shapes a runner may have before too few are left for the others."""
        mine = sum(each.by is member for each in self._held.values())
        return math.ceil((len(self._waiting) + len(self._held)) / runners) - mine

    def _shortness(self, turn: Turn) -> tuple[float, float]:
        """The less there is to compile and to time, the larger."""
        return -self._session.trials(turn.space), -math.prod(matmul_sizes(turn.space.shape))


def _together(shape: KernelShape) -> Hashable:
    """What must be measured on one GPU: a shape, or all ops of a MoE layer at a batch size."""
    return MoeLayer.of(shape) if shape.op.is_moe else shape
