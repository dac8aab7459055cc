"""Databases to report on, made without a search: studies of any number and size."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from autotune.choose.selection import BetweenRows, Selection, select
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Outcome
from autotune.measure.measurement import Ceilings
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
    """As many distinct configurations, in an order of their own; the first is the default."""
    grid = list(itertools.product(*_AXES.values()))
    random.Random(of.label).shuffle(grid)  # noqa: S311 - not for secrets
    extra = {"split_k": 8} if of.op.value == "shrink" else {}
    tables = (dict(zip(_AXES, values, strict=True)) | extra for values in grid)
    return [KernelConfig.from_mapping(of.op, table) for table in itertools.islice(tables, count)]


def measurement(of: KernelShape, config: KernelConfig, number: int, best_us: float) -> Measurement:
    """Every tenth fails, two of three are cut short where they are slower than the best so far."""
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
    """What is chosen among the five fastest and the default."""
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
    """A study in a database, chosen for or not."""
    name = f"{environment.gpu}/{environment.kernels}/{of.op.value}/{of.label}"
    record = store.study(name, of, environment)
    found = measured(of, trials)
    begun = [NOON + timedelta(seconds=record.id * 60 + 0.1 * n) for n in range(len(found))]
    store.add(
        record,
        [
            Finished(measurement=one, started_at=at, finished_at=at + timedelta(seconds=0.08))
            for one, at in zip(found, begun, strict=True)
        ],
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

    Two devices, of which one's ceilings are known; a hostile name; a shape that was not chosen for
    yet, one where nothing works, one of which nothing is measured; losses between rows.
    """
    url = f"sqlite:///{path}"
    store = Store(url)
    for count in (1, 16, 256):
        add_study(store, shape(num_tokens=count), layer=HOSTILE)
    add_study(store, shape("expand"), layer="o, down", is_chosen=False)
    broken = store.study("nothing works", shape("expand", num_tokens=64), HERE)
    store.add(
        broken,
        [
            Finished(
                measurement=Measurement(
                    shape=broken.shape, config=config, outcome=_FAILURE[0], reason=_FAILURE[1]
                ),
                started_at=NOON,
                finished_at=NOON + timedelta(seconds=1),
            )
            for config in configs(broken.shape, 4)
        ],
    )
    store.study("nothing measured", shape(hidden_size=8192), HERE)
    facts.keep_ceilings(store, HERE, Ceilings(1e12, 1e15))
    losses = {2: (0.3, 0.04), 4: (0.02, 0.02), 32: (float("inf"), 0.0)}
    facts.keep_between(
        store,
        HERE,
        [
            BetweenRows(shape=shape(num_tokens=count), before=before, after=after)
            for count, (before, after) in losses.items()
        ],
    )
    add_study(store, shape("expand", num_tokens=1), layer="qkv", environment=ELSEWHERE)
    store.close()
    return url
