"""The answer of a report, and its remarks."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from autotune.choose.selection import Ratio
from autotune.report.gather import of_database
from autotune.report.remarks import answer, remarks
from autotune.store import Store
from tests.report.examples import HERE, add_study, device_of, measured, selection, shape


def test_the_answer_names_the_median_and_the_best(odd_device):
    best = max(one.selection.ratio.value for one in odd_device.shapes if one.selection)
    assert f"up to {best:.2f} times" in answer(odd_device)
    assert "median of 3 shapes" in answer(odd_device)


def test_no_remark_is_good_where_something_does_not_work(odd_device):
    found = remarks(odd_device)
    assert [one.level for one in found] == ["bad", "note", "note", "note"]
    assert "1 shape without a configuration that works" in found[0].text
    assert "2 shapes without a choice yet" in found[1].text


def test_a_remark_says_that_all_is_well(tmp_path):
    found = remarks(device_of(tmp_path, selection(measured(shape(), 30))))
    assert (found[0].level, found[0].text) == ("good", "No choice is slower than vLLM's default.")


def test_a_deterministic_choice_that_is_slower_is_not_said_to_be_none(tmp_path):
    chosen = selection(measured(shape(), 30))
    slower = replace(chosen, ratio=Ratio(value=0.2, low=0.2, high=0.2))
    device = device_of(tmp_path, chosen, slower)
    device = replace(device, environment=replace(device.environment, deterministic=True))
    texts = " ".join(one.text for one in remarks(device))
    assert "1 shape slower than the default, which splits k: it is not chosen" in texts
    assert "No choice is slower" not in texts


def test_a_kept_default_and_a_failing_default_have_remarks(tmp_path):
    chosen = selection(measured(shape(), 30))
    kept = replace(chosen, config=chosen.default)
    without = {config: us for config, us in chosen.samples_us.items() if config != chosen.default}
    failing = replace(chosen, samples_us=without, ratio=None)
    device = device_of(tmp_path, kept, failing)
    assert device.verdicts == {"default kept": 1, "default fails": 1}
    texts = " ".join(one.text for one in remarks(device))
    assert "1 shape where nothing beats vLLM's default" in texts
    assert "1 shape whose default does not run" in texts


def test_a_choice_with_newer_trials_has_a_remark(tmp_path):
    device = device_of(tmp_path, selection(measured(shape(), 20)))
    assert any("trials that are newer than the choice" in each.text for each in remarks(device))


def test_nothing_is_compared_where_nothing_was_chosen(tmp_path):
    url = f"sqlite:///{tmp_path}/own.db"
    with closing(Store(url)) as store:
        add_study(store, shape(), is_chosen=False)
    (device,) = of_database(url).devices
    assert "nothing to compare" in answer(device)
    assert device.environment == HERE


def test_a_remark_counts_the_configurations_of_each_kernel(tmp_path):
    device = device_of(tmp_path, *(selection(measured(shape(num_tokens=n), 30)) for n in (1, 16)))
    (text,) = (one.text for one in remarks(device) if "Distinct" in one.text)
    assert text.endswith("in all for 2 rows.")
