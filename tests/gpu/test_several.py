"""Two GPUs of one host in one run."""

from __future__ import annotations

import statistics
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import sqlalchemy as sa
import torch

from autotune.measure import never_stop
from autotune.measure.cuda.visible import visible_devices
from autotune.measure.runners import gpu_runners
from autotune.plan.study import StudyPlan
from autotune.search.session import Session
from autotune.search.tune import tune
from autotune.store import Store, schema
from autotune.testing.landscape import shrink
from tests.together import problems_in

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

SHAPES = [shrink(num_tokens=count) for count in (1, 4, 16, 64, 256, 1024)]


@pytest.fixture
def asked() -> tuple[int, ...]:
    """By number, so that other work on them is no matter here."""
    names = Counter(each.name for each in visible_devices())
    (name, count), *_ = names.most_common()
    if count < 2:
        pytest.skip("needs two GPUs of one name")
    return tuple(each.number for each in visible_devices() if each.name == name)[:2]


def test_the_driver_counts_the_gpus_as_torch_does():
    seen = visible_devices()
    assert len(seen) == torch.cuda.device_count()
    for each in seen:
        facts = torch.cuda.get_device_properties(each.number)
        assert each.name == facts.name
        assert each.uuid == f"GPU-{facts.uuid}"


def test_both_search_and_each_shape_is_measured_by_one(tmp_path: Path, asked):
    url = f"sqlite:///{tmp_path}/autotune.db"
    plan = StudyPlan.of_shapes(SHAPES).override(storage=url, trials=12)
    with ExitStack() as opened:
        runners = gpu_runners("builtin", print, gpus=asked)
        for runner in runners:
            opened.enter_context(runner)
        assert len({runner.device for runner in runners}) == 2
        with Session(plan, runners) as session:
            tuned = tune(session)
    assert all(one.selection is not None for one in tuned)
    assert problems_in(url) == []
    measured = schema.measurements.c
    with closing(Store(url)) as store, store.engine.connect() as connection:
        pairs = set(map(tuple, connection.execute(sa.select(measured.study_id, measured.device))))
    assert len(pairs) == len(SHAPES)
    assert len({device for _, device in pairs}) == 2


def test_gpus_of_a_host_agree_about_a_configuration(asked):
    medians = []
    with ExitStack() as opened:
        runners = gpu_runners("builtin", print, gpus=asked)
        for runner in runners:
            opened.enter_context(runner)
        for runner in runners:
            default = runner.space(SHAPES[4], {}).default
            found = [runner.measure(SHAPES[4], [default], never_stop) for _ in range(2)]
            medians.append(statistics.median(found[0].samples_us))
    assert medians[0] == pytest.approx(medians[1], rel=0.1)
