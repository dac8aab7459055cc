"""What a run knew beside its measurements, kept in SQLite and in PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa

from autotune.choose.losses import BetweenRows
from autotune.errors import StorageError
from autotune.measure.measurement import Ceilings
from autotune.store import Store, facts, schema
from tests.contracts.examples import HERE, SHAPE, selection


def test_what_a_run_knew_is_read_back_with_its_environment(store):
    elsewhere = replace(HERE, gpu="NVIDIA Other-GPU")
    use = facts.LayerUse(names="o, <down>", runs=32)
    facts.keep_layers(store, HERE, {SHAPE: use})
    facts.keep_layers(store, elsewhere, {SHAPE: replace(use, runs=0)})
    facts.keep_ceilings(store, HERE, Ceilings(3e12, 7e14))
    lost = BetweenRows(shape=replace(SHAPE, num_tokens=24), before=0.3, after=float("inf"))
    facts.keep_between(store, HERE, [lost])
    assert facts.layers(store) == {(HERE, SHAPE): use, (elsewhere, SHAPE): replace(use, runs=0)}
    assert facts.ceilings(store) == {HERE: Ceilings(3e12, 7e14)}
    assert facts.between(store) == {HERE: [lost]}


def test_a_new_fact_replaces_the_old_one_about_the_same_shape(store):
    other = replace(SHAPE, num_tokens=32)
    first, later = (facts.LayerUse(names=name, runs=1) for name in ("first", "later"))
    facts.keep_layers(store, HERE, {SHAPE: first, other: first})
    facts.keep_layers(store, HERE, {SHAPE: later})
    facts.keep_layers(store, HERE, {})
    assert facts.layers(store) == {(HERE, other): first, (HERE, SHAPE): later}


def test_a_database_without_a_table_of_facts_has_none(store, url):
    study = store.study("a study", SHAPE, HERE)
    store.keep_selection(study, selection())
    for table in (schema.facts, schema.versions):
        table.drop(store.engine)
    again = Store(url)
    assert again.selection(study) == selection()
    assert (facts.layers(again), facts.ceilings(again), facts.between(again)) == ({}, {}, {})
    again.close()


def test_a_database_of_a_newer_autotune_is_refused(store, url):
    newer = schema.VERSION + 1
    with store.engine.begin() as connection:
        connection.execute(sa.insert(schema.versions).values(version=newer))
    message = rf"newer autotune: its tables are of version {newer}, this autotune knows .*upgrade"
    with pytest.raises(StorageError, match=message):
        Store(url)
