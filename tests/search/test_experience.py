from __future__ import annotations

from dataclasses import replace

from autotune.measure.replay import ReplayRunner, shipped_recording
from autotune.search.experience import experience
from autotune.search.transfer import Neighbour, nearest
from tests.search.landscape import Landscape, shrink

SHIPPED = ReplayRunner([shipped_recording()])


def test_every_shape_of_the_shipped_recording_is_there_to_learn_from():
    known = experience(Landscape().environment)
    assert [each.shape for each in known] == list(SHIPPED.shapes)
    assert all(each.is_elsewhere for each in known)
    fastest = next(iter(known[0].timed))
    space = SHIPPED.space(known[0].shape, {})
    assert fastest in space.configs


def test_the_shipped_recording_itself_is_searched_without_it():
    assert experience(SHIPPED.environment) == ()
    assert experience(replace(SHIPPED.environment, driver="another"))


def test_what_was_measured_here_comes_before_the_same_measured_elsewhere():
    (own, *_) = experience(Landscape().environment)
    here = Neighbour(own.shape, own.measurements)
    near = replace(own, shape=shrink(num_tokens=512, rank=16))
    asked = shrink(num_tokens=256, rank=16)
    assert nearest(asked, [near, replace(near, is_elsewhere=False)])[0].is_elsewhere is False
    assert nearest(own.shape, [own, here])[0] is here
