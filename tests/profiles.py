"""How thorough the tests are: Hypothesis's profiles, and what else depends on them.

``default`` is for every change: few examples, the same ones each time. ``thorough`` draws others
each time and seven times as many: ``make test-thorough``, or ``--hypothesis-profile=thorough``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import hypothesis

_Value = TypeVar("_Value")

#: Examples of a test that says no number of its own.
_DEFAULT, _THOROUGH = 15, 100

#: Fewer examples than that would be no search.
_FEWEST = 3


def register() -> None:
    """Make the profiles known to Hypothesis, and load the one that ``--hypothesis-profile`` may
    replace.
    """
    # How long an example takes says nothing about the code here, only about the machine.
    untimed = hypothesis.settings(
        deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.register_profile(
        "default", untimed, max_examples=_DEFAULT, derandomize=True, database=None
    )
    hypothesis.settings.register_profile(
        "thorough", untimed, max_examples=_THOROUGH, derandomize=False, print_blob=True
    )
    hypothesis.settings.load_profile("default")


def examples(thorough: int) -> int:
    """A test's number of examples in the present profile, from its number in ``thorough``."""
    return max(_FEWEST, thorough * hypothesis.settings().max_examples // _THOROUGH)


def is_thorough() -> bool:
    """Whether the present profile is ``thorough``."""
    return hypothesis.settings().max_examples >= _THOROUGH


def some(default: Sequence[_Value], rest: Sequence[_Value]) -> list[_Value]:
    """Values to parametrise a test by; the rest, of the same kind, only where it is thorough."""
    return [*default, *rest] if is_thorough() else list(default)
