"""Patterns that somebody else wrote."""

from __future__ import annotations

import pytest

from autotune.plan.models.patterns import PatternError, matching


def test_a_pattern_matches_whole_names():
    assert matching(r".*\.(q|v)_proj", ["a.q_proj", "a.k_proj", "b.v_proj.x"]) == {"a.q_proj"}


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["(.*)*(.*)*(.*)*(.*)*Z", "(a|aa)+c", r"(\w+\.?)+!"])
def test_a_pattern_that_never_ends_is_given_up(pattern):
    name = f"model.layers.0.{'a' * 60}"

    with pytest.raises(PatternError, match="takes more than a second to match: got '") as info:
        matching(pattern, [name, "a" * 60])
    assert str(info.value).isprintable()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"is no valid pattern: got '\('"),
        ("a{99999999999999}", "is no valid pattern"),
        ("(" * 20000 + ")" * 20000, "is no valid pattern|cannot be matched"),
        ("\x1b[", r"is no valid pattern: got '\\x1b\['"),
    ],
)
def test_a_pattern_that_is_none_is_refused_in_one_line(pattern, message):
    with pytest.raises(PatternError, match=message) as info:
        matching(pattern, ["a"])
    assert str(info.value).isprintable()
