"""Numbers and times as text."""

from __future__ import annotations

import pytest

from autotune.report.words import counted, duration_in_words


@pytest.mark.parametrize(("count", "text"), [(0, "0 tokens"), (1, "1 token"), (16, "16 tokens")])
def test_a_count_agrees_with_its_noun(count, text):
    assert counted(count, "token") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.24, "0.2 s"), (59.9, "59.9 s"), (250, "4 min 10 s"), (7500.4, "2 h 5 min")],
)
def test_a_duration_in_a_sentence_has_units(seconds, text):
    assert duration_in_words(seconds) == text
