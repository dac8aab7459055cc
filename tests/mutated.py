"""JSON in which something is not as it should be, for tests of what comes from outside."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

#: Values that a careless or a hostile hand puts in place of a right one.
HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308),
    *(math.nan, math.inf, -math.inf, "", "x", "\x1b[31m", "\ud800", "9" * 5000, [], {}, [[]], [0]),
    *({"": None}, [[[[[[[[]]]]]]]], ["x"] * 3, {"a": {"b": {"c": []}}}),
]


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value of which one place, at any depth, was replaced, left out or doubled."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 5)):
            return {name: one for name, one in value.items() if name != key}
        return value | {key: draw(mutated(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(mutated(value[at])), *value[at + 1 :]]
    return draw(st.sampled_from(HOSTILE) | st.integers() | st.floats() | st.text())
