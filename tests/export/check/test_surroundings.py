"""Checking a folder tuned for a model: all that vLLM will ask for is there, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autotune.choose.selection import SAME, Selection
from autotune.export import VllmExporter
from autotune.export.check import check
from autotune.launch.shape import KernelShape
from autotune.measure.kernels.defaults import default_config
from autotune.plan.study import StudyPlan
from tests.export.examples import H100

MODELS = sorted((Path(__file__).parents[3] / "studies" / "models").glob("*.json"))

#: Ways to serve a model, all of which vLLM allows for every one of them.
SERVERS: dict[str, dict[str, Any]] = {
    "one GPU": {},
    "two GPUs": {"tensor_parallel": 2},
    "two GPUs, fully sharded": {"tensor_parallel": 2, "fully_sharded": True},
    "two GPUs, expert parallel": {"tensor_parallel": 2, "expert_parallel": True},
}


def default(shape: KernelShape) -> Selection:
    """What a search ends with that finds nothing better: it costs no search."""
    config = default_config(shape)
    return Selection(
        shape=shape,
        config=config,
        default=config,
        samples_us={config: (10.0,)},
        ratio=SAME,
        trials=1,
        outcomes={"ok": 1},
    )


def paths(table: dict[str, Any]) -> Iterator[tuple[int, ...]]:
    """The keys of every entry of a file."""
    for key, below in table.items():
        is_entry = not any(isinstance(value, dict) for value in below.values())
        yield from ((int(key), *rest) for rest in ([()] if is_entry else paths(below)))


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_vllm_finds_every_shape_of_a_model_and_asks_for_every_entry(model, server, tmp_path):
    plan = StudyPlan.of_model(str(model)).with_model(SERVERS[server], {})
    plan = plan.override(max_loras=8, rank=16, tokens=[1, 16, 4096])

    VllmExporter().export(map(default, plan.shapes), H100, tmp_path, merge=False)

    report = check(tmp_path, {H100.gpu: plan.shapes})
    assert {lookup.outcome for lookup in report.lookups} == {"exact"}
    assert not [each for each in report.findings if each.is_error]
    assert "matches_no_layer" not in {each.kind for each in report.findings}
    files = {shape.file_name(H100.gpu) for shape in plan.shapes}
    there = {
        (name, *path) for name in files for path in paths(json.loads((tmp_path / name).read_text()))
    }
    assert there == {(shape.file_name(H100.gpu), *shape.lookup_key) for shape in plan.shapes}
    assert {path.name for path in tmp_path.glob("*.json") if "provenance" not in path.name} == files


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_files_tuned_for_one_gpu_do_not_match_the_shapes_of_two(model, tmp_path):
    plan = StudyPlan.of_model(str(model)).override(max_loras=8, rank=16, tokens=[16])
    VllmExporter().export(map(default, plan.shapes), H100, tmp_path, merge=False)

    halved = plan.with_model({"tensor_parallel": 2}, {})
    report = check(tmp_path, {H100.gpu: halved.shapes})

    assert "nearest" in {lookup.outcome for lookup in report.lookups}
    assert "matches_no_layer" in {each.kind for each in report.findings}
