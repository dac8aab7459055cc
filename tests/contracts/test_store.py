"""What the database of a run promises, asked of SQLite and of PostgreSQL.

Two parts share it: our measurements (``Store``) and Optuna's trials (``TrialMirror``).
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace
from itertools import pairwise

import optuna
import optuna_dashboard
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from autotune.errors import StorageError
from autotune.launch.shape import KernelShape
from autotune.measure import Outcome
from autotune.search import TrialMirror
from autotune.search.dashboard import mirror as mirror_module
from autotune.search.objective import CONSTRAINT
from autotune.search.samplers.encoding import value_distributions
from autotune.store import Store, StudyRecord
from tests.contracts.examples import HERE, SHAPE, config, finished, selection, trials
from tests.patience import PATIENCE_S
from tests.profiles import examples
from tests.recordings import EXPAND

# ------------------------------------------------------------------ measurements and selections


def test_a_study_is_made_once(store, url):
    made = store.study("a study", SHAPE, HERE)
    assert store.study("a study", SHAPE, HERE) == made
    again = Store(url)
    assert again.study("a study", SHAPE, HERE) == made
    again.close()
    assert store.study("another", SHAPE, HERE).id != made.id


def test_an_expand_with_unequal_slices_is_read_back_as_it_is(store):
    shape = KernelShape.from_mapping(EXPAND)
    store.study("expand", shape, HERE)
    assert store.study("expand", shape, HERE).shape == shape


def test_a_study_that_was_measured_elsewhere_is_refused_with_what_differs(store):
    store.study("a study", SHAPE, HERE)
    elsewhere = replace(HERE, triton="3.7.0", driver="590")
    with pytest.raises(StorageError, match=r"triton 3\.6\.0, here 3\.7\.0; driver 580, here 590"):
        store.study("a study", SHAPE, elsewhere)


SAMPLES = st.lists(st.floats(1e-3, 1e7), max_size=15).map(tuple)
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
    item = finished(0, **values)
    store.add(study, [item])
    assert store.finished(study) == [item]


def test_measurements_keep_the_order_in_which_they_were_finished(store):
    study = store.study("a study", SHAPE, HERE)
    other = store.study("another", SHAPE, HERE)
    items = [finished(number) for number in (5, 3, 9, 1, 7)]
    store.add(study, items[:2])
    store.add(other, [finished(4)])
    store.add(study, items[2:])
    assert store.finished(study) == items


def test_of_a_batch_that_cannot_be_kept_nothing_is_kept(store):
    study = store.study("a study", SHAPE, HERE)
    store.add(study, [finished(0)])
    with pytest.raises(StorageError, match="cannot use the database"):
        store.add(study, [finished(1), finished(0)])  # a configuration is measured once
    assert store.finished(study) == [finished(0)]


def test_keeping_no_measurements_changes_nothing(store):
    study = store.study("a study", SHAPE, HERE)
    store.add(study, [])
    assert store.finished(study) == []


def test_a_selection_replaces_the_one_before(store):
    study = store.study("a study", SHAPE, HERE)
    assert store.selection(study) is None
    store.keep_selection(study, selection())
    later = selection(trials=40, outcomes={"ok": 40}, ratio=None, samples_us={config(): (5.0,)})
    store.keep_selection(study, later)
    assert store.selection(study) == later


def test_all_selections_come_with_their_environments_by_study_name(store):
    elsewhere = replace(HERE, gpu="NVIDIA Other-GPU")
    for name, environment, count in (("b", HERE, 2), ("a", elsewhere, 1), ("c", HERE, 3)):
        study = store.study(name, SHAPE, environment)
        store.keep_selection(study, selection(trials=count))
    store.study("without one", SHAPE, HERE)
    assert [(environment, chosen.trials) for environment, chosen in store.selections()] == [
        (elsewhere, 1),
        (HERE, 2),
        (HERE, 3),
    ]


def test_readers_see_whole_batches_while_a_writer_writes(store, url):
    study = store.study("a study", SHAPE, HERE)
    done = threading.Event()
    seen: list[list[int]] = [[], []]

    def read(counts: list[int]) -> None:
        reader = Store(url)
        while not done.is_set():
            counts.append(len(reader.finished(study)))
        counts.append(len(reader.finished(study)))
        reader.close()

    readers = [threading.Thread(target=read, args=(counts,)) for counts in seen]
    for thread in readers:
        thread.start()
    for batch in range(20):
        store.add(study, [finished(5 * batch + number) for number in range(5)])
    done.set()
    for thread in readers:
        thread.join(PATIENCE_S)
    for counts in seen:
        assert counts[-1] == 100
        assert all(count % 5 == 0 for count in counts)
        assert all(before <= after for before, after in pairwise(counts))


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
        monkeypatch.setattr(mirror_module, "_known_tables", lambda: None)
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
    assert mirror_module._known_tables() is not None


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
        monkeypatch.setattr(mirror_module, "_known_tables", lambda: None)
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
