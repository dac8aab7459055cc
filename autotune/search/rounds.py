"""Every shape is searched once; the budget that is left goes to shapes that still gain.

Knows nothing of trials and samplers: the caller gives the function that searches shapes.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.plan.effort import EFFORTS
from autotune.plan.study import StudyPlan
from autotune.search.budget import Budget, TimeShares, extra_trials

#: A shape that still gains gets up to this many times its trials, if others leave budget.
_MOST_FOLD = 2

#: Without ``--effort``, time that is left goes to shapes with at least this expected gain.
_LEAST_GAIN = EFFORTS["normal"].least_gain

#: The most that an expected gain counts. It is infinite where nothing works yet.
_ALL = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """How far the search of a shape is.

    Attributes:
        trials: How many configurations are measured so far.
        gain: The share of its latency that the shape is expected to gain if the search goes on; 0
            where nothing is left to try.
        default_us: The default's latency, microseconds; None where it does not run.
    """

    trials: int
    gain: float
    default_us: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A shape's turn to be searched.

    Attributes:
        space: The shape's configurations.
        early: The budget while turns before it are not over.
        begin: Called once every turn before it is over, or searched beside it with another runner.
            The budget from then on; None where too little time is left.
        end: Called with the result. Both are safe to call from several threads.
    """

    space: SearchSpace
    early: Budget
    begin: Callable[[], Budget | None]
    end: Callable[[Searched], None]


#: Searches shapes, in order or side by side, each until its budget is spent. A shape that comes
#: again goes on.
Search = Callable[[Sequence[Turn]], None]


def search_in_rounds(
    plan: StudyPlan,
    spaces: Sequence[SearchSpace],
    search: Search,
    *,
    lanes: Callable[[], int] = lambda: 1,
) -> None:
    """Search every shape, then go on with shapes that still gain while budget is left.

    Budget is left where shapes need less than their trials or their share of the time. With
    ``--trials`` and no ``--effort`` every shape gets its trials and no more.

    Args:
        plan: Says trials, effort and time budget.
        spaces: The space of every shape, in the order in which they are searched.
        search: Searches shapes.
        lanes: How many of them are searched at a time, each in a thread of its own.
    """
    rounds = _Rounds(plan, spaces, search, lanes)
    rounds.first()
    while rounds.another():
        pass


class _Rounds:
    def __init__(
        self,
        plan: StudyPlan,
        spaces: Sequence[SearchSpace],
        search: Search,
        lanes: Callable[[], int],
    ) -> None:
        self._lanes, self._lock = lanes, threading.Lock()
        self._spaces, self._search, self._trials = spaces, search, plan.trials
        self._effort = None if plan.effort is None else EFFORTS[plan.effort]
        self._most = plan.trials * (1 if self._effort is None else _MOST_FOLD)
        self._runs = plan.runs
        self._states: dict[KernelShape, Searched] = {}
        self._shares = None
        if plan.time_budget_s is not None:
            self._shares = TimeShares(plan.time_budget_s, shapes=len(spaces))

    def first(self) -> None:
        """Search every shape, each with an even share of the time."""
        left = dict.fromkeys(space.shape for space in self._spaces)

        def share(shape: KernelShape) -> float | None:
            shapes_left = len(left)
            left.pop(shape, None)
            return self._even_share(max(1, shapes_left))

        self._search(
            [self._turn(space, self._trials, partial(share, space.shape)) for space in self._spaces]
        )

    def another(self) -> bool:
        """Go on with shapes that still gain, the worthiest first; returns whether any went on."""
        worth = self._worth()
        before = sum(state.trials for state in self._states.values())
        if self._shares is not None:
            self._share_time(worth, self._shares)
        elif self._effort is not None:
            self._share_trials(worth)
        return sum(state.trials for state in self._states.values()) > before

    def _even_share(self, shapes_left: int) -> float | None:
        if self._shares is None:
            return None
        return self._shares.even_share(shapes_left=shapes_left, lanes=self._lanes())

    def _share_time(self, worth: Mapping[SearchSpace, float], shares: TimeShares) -> None:
        left = dict(worth)

        def share(space: SearchSpace) -> float | None:
            total = math.fsum((left | {space: worth[space]}).values())
            left.pop(space, None)
            return shares.share_by_worth(worth[space], total=total, lanes=self._lanes())

        self._search(
            [
                self._turn(space, self._most, partial(share, space), needs_time=True)
                for space in worth
            ]
        )

    def _share_trials(self, worth: Mapping[SearchSpace, float]) -> None:
        used = sum(state.trials for state in self._states.values())
        left = max(0, self._trials * len(self._spaces) - used)
        shared = extra_trials(left, worth, most=self._most - self._trials)
        self._search(
            [
                self._turn(space, min(self._states[space.shape].trials + trials, self._most))
                for space, trials in shared.items()
            ]
        )

    def _worth(self) -> dict[SearchSpace, float]:
        """The shapes to go on with: microseconds that a forward pass may save, the most first."""
        least = _LEAST_GAIN if self._effort is None else self._effort.least_gain
        worth = {}
        for space in self._spaces:
            state, runs = self._states[space.shape], self._runs.get(space.shape, 0)
            if state.gain >= least and state.trials < self._most:
                gain_us = min(state.gain, _ALL) * (state.default_us or 1.0)
                worth[space] = gain_us * max(runs, 1)
        return dict(sorted(worth.items(), key=lambda pair: -pair[1]))

    def _turn(
        self,
        space: SearchSpace,
        trials: int,
        share: Callable[[], float | None] = lambda: None,
        *,
        needs_time: bool = False,
    ) -> Turn:
        """A turn of up to so many trials, which ends at the deadline that ``share`` gives."""
        early = Budget.of(self._effort, trials)
        deadline: float | None = None

        def begin() -> Budget | None:
            nonlocal deadline
            with self._lock:
                deadline = share()
            return None if needs_time and deadline is None else replace(early, deadline=deadline)

        def end(searched: Searched) -> None:
            with self._lock:
                self._states[space.shape] = searched
                if self._shares is not None and deadline is not None:
                    self._shares.ended(deadline)

        return Turn(space=space, early=early, begin=begin, end=end)
