"""Databases to report on, made without a search, and ways to find what they hold."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from autotune.choose.losses import BetweenRows
from autotune.choose.selection import Selection, select
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Outcome
from autotune.measure.measurement import Ceilings
from autotune.report.gather import of_database
from autotune.report.records import DeviceReport, ShapeReport
from autotune.store import Finished, Store, StudyRecord, facts
from tests.recordings import ENVIRONMENT, latency_us

HERE = Environment.from_mapping(ENVIRONMENT)
NOON = datetime(2025, 6, 1, 12, 0, 0)  # noqa: DTZ001 - the store's times are naive UTC

_AXES = {
    "block_m": (16, 32, 64, 128),
    "block_n": (16, 32, 64),
    "block_k": (32, 64, 128, 256),
    "num_warps": (2, 4, 8),
    "num_stages": (2, 3, 4),
}

#: How every tenth configuration ends.
_FAILURE = (Outcome.LAUNCH_FAILED, "OutOfResources: shared memory, <b>needed</b> & more")


def shape(op: str = "shrink", *, hidden_size: int = 4096, num_tokens: int = 16) -> KernelShape:
    """A shape of rank 16."""
    sizes = {"hidden_size": hidden_size, "num_tokens": num_tokens, "rank": 16, "max_loras": 8}
    return KernelShape.from_mapping({"op": op, **sizes})


def configs(of: KernelShape, count: int) -> list[KernelConfig]:
    """So many distinct configurations, shuffled for the shape; the first is the default."""
    grid = list(itertools.product(*_AXES.values()))
    random.Random(of.label).shuffle(grid)  # noqa: S311 - not for secrets
    extra = {"split_k": 8} if of.op.value == "shrink" else {}
    tables = (dict(zip(_AXES, values, strict=True)) | extra for values in grid)
    return [KernelConfig.from_mapping(of.op, table) for table in itertools.islice(tables, count)]


def measurement(of: KernelShape, config: KernelConfig, number: int, best_us: float) -> Measurement:
    """Every tenth fails; two of three that are slower than the best so far are cut short."""
    if number % 10 == 7:
        outcome, reason = _FAILURE
        return Measurement(shape=of, config=config, outcome=outcome, reason=reason)
    us = latency_us(config.as_dict())
    is_cut = us > best_us and number % 3 > 0
    samples = tuple(round(us * (1 + 0.002 * ((i * 7) % 5)), 3) for i in range(3 if is_cut else 15))
    outcome = Outcome.TOO_SLOW if is_cut else Outcome.OK
    reason = "slower than the best so far beyond the noise" if is_cut else ""
    return Measurement(
        shape=of, config=config, outcome=outcome, reason=reason, samples_us=samples, registers=40
    )


def measured(of: KernelShape, trials: int) -> list[Measurement]:
    """What a search of that many trials finds."""
    found: list[Measurement] = []
    best_us = float("inf")
    for number, config in enumerate(configs(of, trials)):
        found.append(measurement(of, config, number, best_us))
        if found[-1].outcome is Outcome.OK:
            best_us = min(best_us, found[-1].latency_us)
    return found


def selection(found: list[Measurement], **values: Any) -> Selection:
    """The choice among the five fastest and the default."""
    default = found[0].config
    ok = sorted((one for one in found if one.outcome is Outcome.OK), key=lambda m: m.latency_us)
    samples = {one.config: one.samples_us for one in (*ok[:5], found[0])}
    config, ratio = select(default, samples)
    table: dict[str, Any] = {
        "shape": found[0].shape,
        "config": config,
        "default": default,
        "samples_us": samples,
        "ratio": ratio,
        "trials": len(found),
        "outcomes": Counter(one.outcome.value for one in found),
    }
    return Selection(**table | values)


def add_study(
    store: Store,
    of: KernelShape,
    *,
    trials: int = 30,
    layer: str = "",
    is_chosen: bool = True,
    environment: Environment = HERE,
) -> StudyRecord:
    """A study in a database, with its choice or without."""
    name = f"{environment.gpu}/{environment.kernels}/{of.op.value}/{of.label}"
    record = store.study(name, of, environment)
    found = measured(of, trials)
    begun = [NOON + timedelta(seconds=record.id * 60 + 0.1 * n) for n in range(len(found))]
    took, pairs = timedelta(seconds=0.08), zip(found, begun, strict=True)
    store.add(
        record,
        [Finished(measurement=one, started_at=at, finished_at=at + took) for one, at in pairs],
    )
    if is_chosen:
        store.keep_selection(record, selection(found))
    if layer:
        facts.keep_layers(store, environment, {of: facts.LayerUse(names=layer, runs=32)})
    return record


def large_database(path: Path, *, kinds: int = 20, counts: int = 5, trials: int = 200) -> str:
    """The URL of a database of ``kinds`` times ``counts`` shapes."""
    url = f"sqlite:///{path}"
    store = Store(url)
    for kind, count in itertools.product(range(kinds), range(counts)):
        op = "shrink" if kind % 2 else "expand"
        of = shape(op, hidden_size=1024 * (1 + kind), num_tokens=4**count)
        add_study(store, of, trials=trials, layer=f"layer {kind}")
    store.close()
    return url


#: A layer's name as a study file might have it.
HOSTILE = "<script>alert('layer')</script> & <b>more</b>"

ELSEWHERE = replace(HERE, gpu="NVIDIA Other-GPU", provider="vllm", provider_version="0.33.0")


def odd_database(path: Path) -> str:
    """The URL of a database with everything that a report must cope with.

    Two devices, one of them with known ceilings; a hostile name; a shape without a choice, a shape
    where nothing works, a shape without measurements; losses between rows.
    """
    url = f"sqlite:///{path}"
    store = Store(url)
    for count in (1, 16, 256):
        add_study(store, shape(num_tokens=count), layer=HOSTILE)
    add_study(store, shape("expand"), layer="o, down", is_chosen=False)
    _add_failures(store, shape("expand", num_tokens=64))
    store.study("nothing measured", shape(hidden_size=8192), HERE)
    facts.keep_ceilings(store, HERE, Ceilings(1e12, 1e15))
    losses = {2: (0.3, 0.04), 4: (0.02, 0.02), 32: (float("inf"), 0.0)}
    between = [
        BetweenRows(shape=shape(num_tokens=count), before=before, after=after)
        for count, (before, after) in losses.items()
    ]
    facts.keep_between(store, HERE, between)
    add_study(store, shape("expand", num_tokens=1), layer="qkv", environment=ELSEWHERE)
    store.close()
    return url


def _add_failures(store: Store, of: KernelShape) -> None:
    """A study in which four configurations took a second each to fail."""
    record = store.study("nothing works", of, HERE)
    (outcome, reason), ended = _FAILURE, NOON + timedelta(seconds=1)
    failures = [
        Measurement(shape=of, config=config, outcome=outcome, reason=reason)
        for config in configs(of, 4)
    ]
    store.add(
        record,
        [Finished(measurement=one, started_at=NOON, finished_at=ended) for one in failures],
    )


def device_of(folder: Path, *selections: Selection) -> DeviceReport:
    """The device of a database with these choices, each for a number of tokens of its own."""
    url = f"sqlite:///{folder}/own.db"
    with closing(Store(url)) as store:
        for number, chosen in enumerate(selections, start=1):
            of = replace(chosen.shape, num_tokens=number)
            record = add_study(store, of, is_chosen=False)
            store.keep_selection(record, replace(chosen, shape=of))
    (device,) = of_database(url).devices
    return device


def shape_of(device: DeviceReport, kind: str, tokens: int) -> ShapeReport:
    """One of a device's shapes."""
    return next(one for one in device.shapes if one.kind == kind and one.shape.num_tokens == tokens)
