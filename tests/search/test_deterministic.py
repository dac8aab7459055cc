"""A deterministic run: nothing that splits k is chosen, whatever it costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import autotune
from autotune.errors import InputError
from autotune.export import VllmExporter
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure.measurement import Outcome
from autotune.plan.study import StudyPlan
from autotune.search.events import ShapeDone, Watch, unwatched
from autotune.search.run import Done, run_job
from autotune.store import Store
from autotune.store.chosen import stored_selections
from autotune.testing.landscape import Landscape, shrink

#: Few rows of blocks: whatever does not split k is slower than the default, which does.
SLOW = shrink(num_tokens=16, hidden_size=16384)


class Splits(Landscape):
    """Its default splits k, and is fast, like vLLM's."""

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        listed = super().kernel_space(shape, axes).configs
        fast = [c for c in listed if c.split_k == 16]
        return SearchSpace(
            shape, listed, default=min(fast, key=lambda config: self.truth_us(SLOW, config))
        )


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(
    *shapes: KernelShape,
    runner: Splits | None = None,
    deterministic: bool = True,
    known: Mapping[KernelShape, KernelConfig] | None = None,
    record: Path | None = None,
    watch: Watch = unwatched,
    **flags: Any,
) -> Done:
    """A run of a plan of shapes."""
    plan = StudyPlan.of_shapes(shapes or [SLOW])
    plan = plan.override(trials=flags.pop("trials", 25), deterministic=deterministic, **flags)
    return run_job(
        plan,
        runner or Splits(),
        watch,
        say=lambda _line: None,
        known=known or {},
        record=record,
    )


def configs(done: Done) -> list[KernelConfig]:
    return [one.config for one in done.selections]


def test_the_default_is_what_the_choice_is_compared_with_and_is_never_chosen():
    (one,) = run().selections
    assert one.default.splits_k
    assert not one.config.splits_k
    assert one.deterministic
    assert one.ratio is not None
    assert one.ratio.verdict == "slower"
    assert one.default in one.samples_us


def test_a_free_run_would_have_chosen_a_split():
    (one,) = run(deterministic=False).selections
    assert one.config.splits_k


def test_what_is_slower_than_the_default_is_said():
    (line,) = run().lines
    assert line.startswith("Of 1 whose default splits k, 1 entry is slower than that default: ")
    assert "times as long in the median" in line
    assert not run(deterministic=False).lines


def test_all_that_is_measured_but_the_default_does_not_split():
    with closing(Store("sqlite:///autotune.db")) as store:
        run(trials=20)
        (record,) = store.studies()
        measured = [each.measurement for each in store.finished(record)]
    splitting = [each.config for each in measured if each.config.splits_k]
    assert splitting == [Splits().space(SLOW, {}).default]
    assert len(measured) == 20


def test_nothing_is_cut_short_for_being_slower_than_a_default_that_may_not_be_chosen():
    """On these sizes every configuration is slower than the default by more than the noise."""
    with closing(Store("sqlite:///autotune.db")) as store:
        run(trials=20)
        (record,) = store.studies()
        measured = [each.measurement for each in store.finished(record)]
    default_us = measured[0].latency_us
    works = [each for each in measured[1:] if each.outcome is Outcome.OK]
    assert min(each.latency_us for each in works) > 1.2 * default_us
    assert len(works) > 2


@pytest.mark.slow
@given(st.integers(1, 512), st.sampled_from([2048, 4096, 16384]))
def test_whatever_the_shape_the_best_that_does_not_split_is_found(m, k):
    shape, runner = shrink(num_tokens=m, hidden_size=k), Splits(stride=29, noise=0.0)
    Path("autotune.db").unlink(missing_ok=True)
    (one,) = run(shape, runner=runner, trials=40, sampler="random").selections
    whole = [c for c in runner.space(shape, {}).configs if not c.splits_k]
    best = min(runner.truth_us(shape, each) for each in whole)
    assert not one.config.splits_k
    assert runner.truth_us(shape, one.config) == pytest.approx(best, rel=0.05)


# ------------------------------------------------------------------ one database, both ways


@pytest.mark.slow
def test_one_database_keeps_both_choices_whichever_was_first():
    for flags in ([True, False, True], [False, True, False]):
        Path("autotune.db").unlink(missing_ok=True)
        chosen = [configs(run(deterministic=each))[0] for each in flags]
        assert [config.splits_k for config in chosen] == [not each for each in flags]
        assert chosen[0] == chosen[2]
        stored = {
            environment.deterministic: one.config
            for environment, (one,) in stored_selections("sqlite:///autotune.db")
        }
        assert stored == {flags[0]: chosen[0], flags[1]: chosen[1]}


def test_results_export_the_kind_that_is_asked_for(tmp_path):
    run()
    run(deterministic=False)
    results = autotune.load()
    entries = {}
    for kind in (True, False, None):
        results.export(tmp_path / str(kind), deterministic=kind)
        (name,) = (tmp_path / str(kind)).glob("*_SHRINK.json")
        entries[kind] = json.loads(name.read_text())
    assert entries[None] == entries[False] != entries[True]


@pytest.mark.slow
def test_an_earlier_database_teaches_and_none_of_its_splits_is_chosen():
    run(shrink(num_tokens=32), deterministic=False, storage="sqlite:///older.db")
    (one,) = run(warm_start="sqlite:///older.db", sampler="adaptive").selections
    assert not one.config.splits_k


# ------------------------------------------------------------------ what is known already


def test_a_known_configuration_that_splits_is_not_confirmed():
    splitting = next(c for c in Splits().space(SLOW, {}).configs if c.splits_k)
    default = Splits().space(SLOW, {}).default
    for known in (splitting, default):
        Path("autotune.db").unlink(missing_ok=True)
        done = run(known={SLOW: known})
        assert not configs(done)[0].splits_k
        assert done.tuned[0].trials == 25


def test_a_known_configuration_that_does_not_split_is_measured_second():
    known = next(c for c in Splits().space(SLOW, {}).configs if not c.splits_k)
    run(known={SLOW: known})
    with closing(Store("sqlite:///autotune.db")) as store:
        measured = [each.measurement.config for each in store.finished(store.studies()[0])]
    assert measured[1] == known


# ------------------------------------------------------------------ what is refused


class Splitting(Splits):
    """Has only configurations that split k."""

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        space = super().kernel_space(shape, axes)
        splitting = [config for config in space.configs if config.splits_k]
        return SearchSpace(shape, splitting, default=space.default)


def test_a_space_of_splits_alone_is_refused():
    with pytest.raises(InputError, match=r"splits k: .* deterministic allows split_k 1 alone"):
        run(runner=Splitting())


class Breaking(Splits):
    """Whatever does not split k fails."""

    def truth_us(self, shape: KernelShape, config: KernelConfig) -> float:
        return super().truth_us(shape, config) if config.splits_k else float("inf")


def test_where_only_the_default_works_nothing_is_chosen():
    done = run(runner=Breaking())
    assert not done.selections
    assert done.tuned[0].selection is None


def test_axes_without_a_split_of_one_contradict_the_flag(tmp_path):
    study = tmp_path / "study.toml"
    study.write_text(
        "[lora]\nmax_loras = 8\nrank = 16\n[search]\ndeterministic = true\n"
        "[search.space.shrink]\nsplit_k = [4, 8]\n"
        '[[shapes]]\nop = "shrink"\nnum_tokens = 1\nhidden_size = 4096\n'
    )
    plan = StudyPlan.read(study)
    assert plan.deterministic
    with pytest.raises(InputError, match=r"\[search.space.shrink\] split_k must have a 1 .*4, 8"):
        run_job(plan, Splits(), unwatched, say=lambda _line: None)
    run_job(
        plan.override(deterministic=False, trials=3),
        Splits(),
        unwatched,
        say=lambda _line: None,
    )


# ------------------------------------------------------------------ what is written


@pytest.mark.slow
def test_a_recording_of_a_deterministic_run_is_a_recording_like_others(tmp_path):
    run(record=tmp_path / "r.jsonl.gz")
    results = autotune.load_recording(tmp_path / "r.jsonl.gz")
    assert not results.shapes[0].environment.deterministic


def test_the_provenance_says_that_k_was_never_split(tmp_path):
    done = run()
    VllmExporter().export(done.selections, done.environment, tmp_path / "out", merge=False)
    provenance = json.loads(next((tmp_path / "out").glob("*_provenance.json")).read_text())
    assert provenance["environment"]["deterministic"] is True
    ((entry,),) = (of_file.values() for of_file in provenance["entries"].values())
    assert entry["environment"]["deterministic"] is True


@pytest.mark.slow
def test_rows_between_the_tuned_ones_do_not_split():
    """The rows are those of a layer at 1 and 1024 tokens; batch sizes between get rows, too."""
    plan = StudyPlan.of_shapes([shrink(num_tokens=1)]).override(
        trials=20, deterministic=True, tokens="auto"
    )
    plan = plan.with_model({}, {"max_num_batched_tokens": 1024, "max_num_seqs": 64})
    told: list[object] = []
    done = run_job(plan, Splits(), told.append, say=lambda _line: None)
    assert len(done.selections) > len([each for each in told if isinstance(each, ShapeDone)]) > 1
    assert not any(one.config.splits_k for one in done.selections)
    assert all(one.deterministic for one in done.selections)
