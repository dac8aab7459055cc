"""Measures one configuration after another, while the search thinks about the next ones.

Choosing a configuration takes the searching process about as long as the GPU takes to measure one.
So a runner that wants several configurations under way measures in a thread of its own. A runner
that wants one at a time, such as a replay, is asked when an attempt begins: what is chosen then
depends on nothing but the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Runner
from autotune.search.attempt import Attempt, Made


class Hand:
    """Has a runner make one attempt at a time."""

    def __init__(self, runner: Runner) -> None:
        """Make nothing yet.

        Args:
            runner: Measures. Between ``begin`` and ``end`` it is the hand's alone.
        """
        self._runner = runner
        self._thread = (
            ThreadPoolExecutor(1, thread_name_prefix="measure") if runner.lookahead > 1 else None
        )
        self._made: Future[Made] | None = None
        self._expected: set[tuple[KernelShape, KernelConfig]] = set()

    def begin(self, attempts: Sequence[Attempt]) -> None:
        """Make that of the attempts whose configuration is ready first.

        Args:
            attempts: The most urgent first, at least one, each of another shape.
        """
        by_shape = {each.shape: each for each in attempts}

        def make() -> Made:
            pending = {shape: each.configs for shape, each in by_shape.items()}
            return by_shape[self._runner.first_ready(pending)].made_by(self._runner)

        if self._thread is not None:
            self._made = self._thread.submit(make)
            return
        made = make()
        self._made = Future()
        self._made.set_result(made)

    def expect(self, pending: Mapping[KernelShape, Sequence[KernelConfig]]) -> None:
        """Say what later attempts will have, while one is made that does not know of it."""
        if self._made is None or self._thread is None:
            return
        now = {(shape, config) for shape, those in pending.items() for config in those}
        new = now - self._expected
        self._expected = now
        if new:
            self._runner.expect(
                {
                    shape: [config for config in those if (shape, config) in new]
                    for shape, those in pending.items()
                }
            )

    def end(self) -> Made | None:
        """Wait for the attempt that was begun; None where none was.

        Raises:
            DeviceLost: The GPU is lost.
            AutotuneError: As the runner does.
        """
        made, self._made = self._made, None
        return None if made is None else made.result()

    def close(self) -> None:
        """Wait for nothing: what is still being made is of no use to anybody."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
