from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.choose.selection import Selection
from autotune.measure.measurement import Ceilings
from autotune.report.gather import of_database
from autotune.report.panel import compared_rows, explained
from autotune.report.records import DeviceReport, ShapeReport, kind_names
from autotune.report.remarks import answer, remarks
from autotune.store import Store
from tests.report.examples import (
    HERE,
    HOSTILE,
    add_study,
    configs,
    measured,
    odd_database,
    selection,
    shape,
)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """The device of the odd database whose ceilings are known."""
    found = of_database(odd_database(tmp_path_factory.mktemp("odd") / "odd.db"))
    here, _ = found.devices
    return here


def shape_of(device: DeviceReport, kind: str, tokens: int) -> ShapeReport:
    """One of a device's shapes."""
    return next(one for one in device.shapes if one.kind == kind and one.shape.num_tokens == tokens)


def report_of(tmp_path: Path, *selections: Selection) -> DeviceReport:
    """The device of a database with these choices for one shape each."""
    url = f"sqlite:///{tmp_path}/own.db"
    with closing(Store(url)) as store:
        for number, chosen in enumerate(selections, start=1):
            of = replace(chosen.shape, num_tokens=number)
            record = add_study(store, of, is_chosen=False)
            store.keep_selection(record, replace(chosen, shape=of))
    (device,) = of_database(url).devices
    return device


# ------------------------------------------------------------------ shapes


def test_every_shape_says_how_it_came_out(odd):
    verdicts = [(one.shape.op.value, one.shape.num_tokens, one.verdict) for one in odd.shapes]
    assert verdicts == [
        ("shrink", 1, "faster"),
        ("shrink", 16, "faster"),
        ("shrink", 256, "faster"),
        ("expand", 16, "not finished"),
        ("expand", 64, "nothing works"),
        ("shrink", 16, "not finished"),
    ]


def test_the_latency_of_the_default_and_of_what_was_chosen_are_those_of_the_finalists(odd):
    one = shape_of(odd, f"shrink {HOSTILE}", 16)
    chosen, default, tuned = one.selection, one.default, one.tuned
    assert chosen is not None
    assert chosen.ratio is not None
    assert default is not None
    assert tuned is not None
    assert default.median == pytest.approx(chosen.default_latency_us)
    assert tuned.median == pytest.approx(chosen.latency_us)
    assert default.median / tuned.median == pytest.approx(chosen.ratio.value, rel=0.01)


def test_the_roofline_is_that_of_the_ceilings(odd):
    one = shape_of(odd, f"shrink {HOSTILE}", 16)
    assert odd.ceilings == Ceilings(1e12, 1e15)
    assert one.floor_us == pytest.approx(one.bytes_moved / 1e12 * 1e6)


def test_the_layer_of_a_row_that_was_added_is_that_of_its_neighbours(odd):
    # Only the study of 16 tokens was given the name.
    assert shape_of(odd, "expand o, down", 64).result.study == "nothing works"


def test_time_is_that_of_the_measurements_by_outcome(odd):
    one = shape_of(odd, "expand o, down", 64)
    assert one.spent_s == {"launch_failed": pytest.approx(4.0)}


def test_a_search_that_went_on_after_the_choice_is_told(tmp_path):
    device = report_of(tmp_path, selection(measured(shape(), 20)))
    (one,) = device.shapes
    assert one.is_stale
    assert any("searched further" in each.text for each in remarks(device))


# ------------------------------------------------------------------ names


def test_names_of_kinds_are_as_short_as_tells_them_apart():
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


# ------------------------------------------------------------------ what is said


def test_the_answer_names_the_median_and_the_best(odd):
    best = max(one.selection.ratio.value for one in odd.shapes if one.selection)
    assert f"up to {best:.2f} times" in answer(odd)
    assert "median of 3 shapes" in answer(odd)


def test_nothing_is_called_well_where_something_does_not_work(odd):
    found = remarks(odd)
    assert [one.level for one in found] == ["bad", "note", "note"]
    assert "1 shape without a configuration that works" in found[0].text
    assert "2 shapes without a choice yet" in found[1].text


def test_where_all_is_well_it_is_said(tmp_path):
    found = remarks(report_of(tmp_path, selection(measured(shape(), 30))))
    assert (found[0].level, found[0].text) == (
        "good",
        "Nothing that was chosen is slower than vLLM's default.",
    )


def test_a_default_that_is_kept_and_one_that_fails_are_told(tmp_path):
    chosen = selection(measured(shape(), 30))
    kept = replace(chosen, config=chosen.default)
    without = {config: us for config, us in chosen.samples_us.items() if config != chosen.default}
    failing = replace(chosen, samples_us=without, ratio=None)
    device = report_of(tmp_path, kept, failing)
    assert device.verdicts == {"default kept": 1, "default fails": 1}
    texts = " ".join(one.text for one in remarks(device))
    assert "1 shape where nothing beats vLLM's default" in texts
    assert "1 shape whose default does not run" in texts


def test_nothing_is_compared_where_nothing_was_chosen(tmp_path):
    url = f"sqlite:///{tmp_path}/own.db"
    with closing(Store(url)) as store:
        add_study(store, shape(), is_chosen=False)
    (device,) = of_database(url).devices
    assert "nothing to compare" in answer(device)
    assert device.environment == HERE


# ------------------------------------------------------------------ one shape's tables


def test_the_table_of_a_shape_marks_what_was_changed(odd):
    rows = {row.name: row for row in compared_rows(shape_of(odd, f"shrink {HOSTILE}", 16))}
    assert rows["block_k"].differs
    assert not rows["split_k"].differs
    assert rows["share of the roofline"].tuned.endswith("%")
    assert not rows["µs per launch"].differs
    assert (rows["registers"].tuned, rows["spills"].tuned) == ("40", "–")


def test_reasons_are_counted(odd):
    (why,) = explained(shape_of(odd, "expand o, down", 64))
    assert (why.outcome, why.count) == ("launch failed", 4)
    assert why.reasons[0][1] == len(configs(shape(), 4))
