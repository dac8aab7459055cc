"""JSON in which something is not as it should be, for tests of what comes from outside."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
    """A JSON value of which one place, at any depth, was replaced or left out."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 5)):
            return {name: one for name, one in value.items() if name != key}
        return value | {key: draw(mutated(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(mutated(value[at])), *value[at + 1 :]]
    return draw(st.sampled_from(HOSTILE) | st.integers() | st.floats() | st.text())


def nested(depth: int) -> list[Any]:
    """Lists within lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def places(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested tables and lists, from the outermost inwards."""
    keys = content if isinstance(content, dict) else range(len(content))
    for key in keys:
        yield (*above, key)
        if isinstance(content[key], dict | list):
            yield from places(content[key], (*above, key))
