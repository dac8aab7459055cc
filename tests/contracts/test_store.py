"""What the database of a run promises, asked of SQLite and of PostgreSQL.

Two parts share it: our measurements (``Store``) and Optuna's trials (``TrialMirror``).
"""

from __future__ import annotations

import uuid

import optuna
import optuna_dashboard
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from autotune.launch.shape import KernelShape
from autotune.measure import Outcome
from autotune.search import TrialMirror
from autotune.search.dashboard import mirror as mirror_module
from autotune.search.dashboard.optuna_tables import known_tables
from autotune.search.samplers.encoding import value_distributions
from autotune.search.samplers.objective import CONSTRAINT
from autotune.store import Store, StudyRecord
from autotune.testing import StoreSuite
from tests.contracts.examples import HERE, SHAPE, finished, trials
from tests.profiles import examples
from tests.recordings import EXPAND


class TestDatabase(StoreSuite):
    """SQLite and PostgreSQL pass the suite that is shipped."""

    @pytest.fixture
    def url(self, url):
        return url


# ------------------------------------------------------------------ measurements


def test_an_expand_with_unequal_slices_is_read_back_as_it_is(store):
    shape = KernelShape.from_mapping(EXPAND)
    store.study("expand", shape, HERE)
    assert store.study("expand", shape, HERE).shape == shape


SAMPLES = st.lists(st.floats(1e-3, 1e7), min_size=1, max_size=15).map(tuple)
COUNTS = st.none() | st.integers(0, 2**31 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)


@settings(
    max_examples=examples(25),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    outcome=st.sampled_from(Outcome),
    reason=TEXTS,
    samples_us=SAMPLES,
    relative_error=st.none() | st.floats(0, 1e300),
    shared_memory_bytes=COUNTS,
    registers=COUNTS,
    spills=COUNTS,
)
def test_a_measurement_is_read_back_as_it_was_kept(store, **values):
    study = store.study(f"study {uuid.uuid4()}", SHAPE, HERE)
    if values["outcome"] not in (Outcome.OK, Outcome.TOO_SLOW):
        values["samples_us"] = ()
    item = finished(0, **values)
    store.add(study, [item])
    assert store.finished(study) == [item]


# ------------------------------------------------------------------ Optuna's trials


def facts(trial: FrozenTrial) -> dict[str, object]:
    """All that a trial says of itself, but for its database's own id."""
    names = ["number", "state", "values", "params", "distributions", "user_attrs"]
    names += ["system_attrs", "intermediate_values", "datetime_start", "datetime_complete"]
    return {name: getattr(trial, name) for name in names} | {"constraints": trial.constraints}


def study_of(store: Store, name: str = "a study") -> StudyRecord:
    return store.study(name, SHAPE, HERE)


@pytest.mark.parametrize("tables", ["known", "unknown"])
def test_mirrored_trials_are_what_optuna_would_have_written(
    store, storage, url, tables, monkeypatch
):
    if tables == "unknown":  # a later Optuna
        monkeypatch.setattr(mirror_module, "known_tables", lambda: None)
    mirror = TrialMirror(url)
    mirrored = mirror.open_study(study_of(store))
    mirror.add(mirrored, trials()[:2])
    mirror.add(mirrored, trials()[2:])
    optunas = optuna.create_study(storage=storage, study_name="Optuna's own")
    optunas.add_trials(trials())

    loaded = optuna.load_study(storage=storage, study_name="a study")
    assert list(map(facts, loaded.trials)) == list(map(facts, optunas.trials))
    mirror.close()


def test_this_optuna_has_the_tables_that_batches_are_written_to():
    assert known_tables() is not None


def test_mirrored_trials_are_numbered_consecutively_in_every_study(store, mirror, storage):
    first = mirror.open_study(study_of(store, "first"))
    second = mirror.open_study(study_of(store, "second"))
    mirror.add(first, trials()[:3])
    mirror.add(second, trials()[:2])
    mirror.add(first, trials()[3:])
    mirror.add(first, [])
    assert [mirror.count(first), mirror.count(second)] == [5, 2]
    for name, count in (("first", 5), ("second", 2)):
        loaded = optuna.load_study(storage=storage, study_name=name)
        assert [trial.number for trial in loaded.trials] == list(range(count))


def test_a_mirrored_study_says_what_it_is_and_which_trial_is_best(store, mirror, storage):
    mirror.add(mirror.open_study(study_of(store)), trials())
    loaded = optuna.load_study(storage=storage, study_name="a study")
    assert loaded.best_trial.number == 3
    assert loaded.best_value == 4.5
    assert loaded.best_params == finished(3).measurement.config.as_dict()
    assert loaded.metric_names == ["latency_us"]
    assert loaded.user_attrs == {"shape": SHAPE.as_dict(), "environment": HERE.as_dict()}


def test_a_mirrored_configuration_that_cannot_work_violates_its_constraint(store, mirror, storage):
    mirror.add(mirror.open_study(study_of(store)), trials())
    loaded = optuna.load_study(storage=storage, study_name="a study").trials
    cannot_work = [trial.constraints[CONSTRAINT] > 0 for trial in loaded]
    assert cannot_work == [False, False, True, False, True]
    assert {trial.state for trial in loaded} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_a_study_that_optuna_opens_can_be_continued_with_it(store, mirror, storage):
    mirror.add(mirror.open_study(study_of(store)), trials())
    loaded = optuna.load_study(storage=storage, study_name="a study")
    trial = loaded.ask(value_distributions(SHAPE.op))
    loaded.tell(trial, 3.0)
    assert loaded.best_trial.number == len(trials())


# ------------------------------------------------------------------ notes


LONG = "".join(f"{number} µs\n" for number in range(1_000))


@pytest.mark.parametrize("tables", ["known", "unknown"])
def test_a_note_is_what_optunas_dashboard_shows(store, storage, url, tables, monkeypatch):
    if tables == "unknown":  # a later Optuna
        monkeypatch.setattr(mirror_module, "known_tables", lambda: None)
    mirror = TrialMirror(url)
    mirrored = mirror.open_study(study_of(store))
    for text in ("**2.00x**", LONG, "**2.10x**"):
        mirror.keep_note(mirrored, text)
        loaded = optuna.load_study(storage=storage, study_name="a study")
        assert optuna_dashboard.get_note(loaded) == text
    mirror.close()


def test_a_note_that_a_person_has_edited_is_kept(store, mirror, storage):
    mirrored = mirror.open_study(study_of(store))
    mirror.keep_note(mirrored, "**2.00x**")
    loaded = optuna.load_study(storage=storage, study_name="a study")
    optuna_dashboard.save_note(loaded, "**2.00x**, and too good to be true")
    mirror.keep_note(mirrored, "**2.10x**")
    assert optuna_dashboard.get_note(loaded) == "**2.00x**, and too good to be true"


def test_a_note_that_says_the_same_is_not_written_again(store, mirror, storage):
    mirrored = mirror.open_study(study_of(store))
    versions = []
    for text in ("**2.00x**", "**2.00x**", "**2.10x**"):
        mirror.keep_note(mirrored, text)
        (attributes,) = (each.system_attrs for each in storage.get_all_studies())
        versions.append(attributes["dashboard:note_ver"])
    assert versions == [1, 1, 2]
