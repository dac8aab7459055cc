"""Measuring beside the search."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from autotune.errors import DeviceLost
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, StopRule
from autotune.measure.racing import SlowerThan
from autotune.search.attempt import Attempt
from autotune.search.hand import Hand
from autotune.testing.landscape import Landscape, configs, shrink
from tests.patience import PATIENCE_S

FIRST, SECOND = shrink(num_tokens=16), shrink(num_tokens=64)


class Held(Landscape):
    """Measures nothing before it may."""

    def __init__(self, lookahead: int) -> None:
        super().__init__(lookahead=lookahead)
        self.may, self.threads, self.expected = threading.Event(), set[str](), list[object]()

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        self.threads.add(threading.current_thread().name)
        assert self.may.wait(PATIENCE_S)
        return super().measure(shape, pending, stop)

    def expect(self, configs):
        self.expected.append(configs)


class Lost(Landscape):
    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        raise DeviceLost("made up")


def attempts() -> list[Attempt]:
    return [
        Attempt(shape=shape, configs=tuple(configs()[:2]), rule=SlowerThan({}))
        for shape in (FIRST, SECOND)
    ]


def test_the_search_goes_on_while_an_attempt_is_made():
    runner = Held(lookahead=4)
    hand = Hand(runner)
    assert hand.end() is None
    hand.begin(attempts())
    three = {FIRST: configs()[:3]}
    hand.expect(three)
    hand.expect(three)
    assert runner.expected == [three]  # said once
    runner.may.set()
    made = hand.end()
    assert made is not None
    assert (made.measurement.shape, made.measurement.config) == (FIRST, configs()[0])
    assert made.started_at <= made.finished_at
    assert runner.threads != {threading.current_thread().name}
    assert hand.end() is None
    hand.close()


def test_a_runner_that_wants_one_at_a_time_is_asked_at_once():
    runner = Held(lookahead=1)
    runner.may.set()
    hand = Hand(runner)
    hand.begin(attempts())
    hand.expect({FIRST: configs()[:3]})
    assert runner.expected == []
    assert runner.threads == {threading.current_thread().name}
    assert hand.end() is not None


def test_closing_waits_for_nothing():
    runner = Held(lookahead=4)
    hand = Hand(runner)
    hand.begin(attempts())
    under_way = hand._made
    hand.close()
    assert under_way is not None
    assert not under_way.done()
    runner.may.set()


@pytest.mark.parametrize("lookahead", [1, 4])
def test_a_gpu_that_is_lost_is_said_and_nothing_is_waited_for_after_that(lookahead):
    hand = Hand(Lost(lookahead=lookahead))

    def asked() -> None:
        hand.begin(attempts())
        hand.end()

    with pytest.raises(DeviceLost):
        asked()
    assert hand.end() is None
    hand.close()
