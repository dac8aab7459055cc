"""The order and the names of kinds of shapes."""

from __future__ import annotations

from dataclasses import replace

from autotune.report.kinds import in_order, kind_names
from autotune.store.results import ShapeResult
from tests.report.examples import HERE, shape


def test_results_of_a_kind_are_together_by_rising_tokens():
    counts = [(4096, 16), (8192, 16), (4096, 1)]
    results = [
        ShapeResult(
            study="",
            environment=HERE,
            shape=shape(hidden_size=hidden_size, num_tokens=tokens),
            measurements=(),
            default=None,
            selection=None,
        )
        for hidden_size, tokens in counts
    ]
    found = [(one.shape.hidden_size, one.shape.num_tokens) for one in in_order(results)]
    assert found == [(4096, 1), (4096, 16), (8192, 16)]


def test_names_are_as_short_as_tells_kinds_apart():
    plain, wide = shape().without_batch, shape(hidden_size=8192).without_batch
    other_rank = replace(plain, rank=64)
    half = replace(plain, active_loras=4)
    assert kind_names({plain: "qkv"}) == {plain: "shrink qkv"}
    assert kind_names({plain: "qkv", wide: "qkv", other_rank: "o"}) == {
        plain: "shrink qkv 4096>16",
        wide: "shrink qkv 8192>16",
        other_rank: "shrink o",
    }
    names = kind_names({plain: "", half: ""})
    assert len(set(names.values())) == 2
    assert names[half].endswith("active_loras=4")
