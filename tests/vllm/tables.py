"""Hypothesis's tuned files: nearly right, wrong in every way, and what to look up in them.

A table starts as the product of a few keys per level. Then it is damaged along one path, the one
that most look-ups follow: damage elsewhere would hardly ever be met.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

from hypothesis import strategies as st

#: The level of ``num_slices``, the only one without a fallback.
_EXACT_LEVEL = 1

#: Keys lie close together, so that ties and near misses are common, or very far apart.
_numbers = st.integers(1, 12) | st.sampled_from([16, 17, 64, 128, 4096, 14336, 10**9])

#: What ``int()`` takes for a number, though vLLM never asks for it in this spelling.
_spellings = st.sampled_from(["0{}", "00{}", " {}", "{} ", "+{}", "\n{}\t", "0_{}", "-{}"])

#: What ``int()`` does not take. The last has more digits than it reads from Python 3.11 on.
_words = st.sampled_from(
    ["", " ", "default", "block_m", "BLOCK_SIZE_M", "1.0", "1e2", "0x10", "_1", "1__6", "²", "1,2"]
) | st.just("9" * 5000)

#: What may be in the place of a table or of an entry. Read anew each time: damage is done in place.
_falsy = st.sampled_from(["null", "{}", "{}", "[]", '""', "0", "0.0", "false"]).map(json.loads)
_no_tables = _falsy | st.sampled_from(["true", "7", "-0.5", '"16"', "[16]", "[{}]"]).map(json.loads)


@st.composite
def cases(draw: st.DrawFn, levels: int) -> tuple[Any, list[tuple[int, ...]]]:
    """The content of a file with so many levels of keys, more or less, and what to look up in it.

    Every entry says where it is, in ``at``: the keys above it as they are spelled.
    """
    keys = st.lists(_numbers, min_size=1, max_size=3, unique=True)
    per_level = [draw(keys) for _ in range(levels)]
    path = tuple(str(draw(st.sampled_from(numbers))) for numbers in per_level)
    content: Any = _product(per_level)
    # The last twice: it is above the entries.
    damaged = st.sampled_from([*range(levels), levels - 1])
    for level in draw(st.lists(damaged, max_size=3)):
        table = _table_at(content, path[:level])
        if table is not None:
            site = _Site(table, path[level], per_level[level + 1 :])
            draw(st.sampled_from(_DAMAGES))(draw, site)
    if draw(st.integers(0, 9)) == 6:  # neither end: Hypothesis likes those
        content = draw(_no_tables)
    _label(content, ())
    near = (_wanted(level, numbers, path[level]) for level, numbers in enumerate(per_level))
    wanted = st.tuples(*near) | st.just(tuple(map(int, path)))
    return content, draw(st.lists(wanted, min_size=4, max_size=8))


@st.composite
def keys_in(draw: st.DrawFn, table: dict[str, Any], levels: int) -> tuple[int, ...]:
    """What to look up in a table that is whole: keys that are there, near them and far away."""
    wanted = []
    for level in range(levels):
        numbers = list(map(int, table))
        own = str(draw(st.sampled_from(numbers)))
        wanted.append(draw(_wanted(level, numbers, own)))
        table = table[own]
    return tuple(wanted)


def _product(per_level: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A table of every combination of the levels' numbers; with no level, an entry."""
    if not per_level:
        return {"at": []}
    return {str(number): _product(per_level[1:]) for number in per_level[0]}


def _label(content: Any, above: tuple[str, ...]) -> None:
    """Write into every entry where it is."""
    if not isinstance(content, dict):
        return
    if "at" in content:
        content["at"] = list(above)
        return
    for key, below in content.items():
        _label(below, (*above, key))


def _table_at(content: Any, path: tuple[str, ...]) -> dict[str, Any] | None:
    """The table below some keys; None where earlier damage has taken it away."""
    for step in path:
        content = content.get(step) if isinstance(content, dict) else None
    return content if isinstance(content, dict) and "at" not in content else None


# ------------------------------------------------------------------ damage


class _Site(NamedTuple):
    """A key to do damage to, its table, and the numbers of the levels below."""

    table: dict[str, Any]
    key: str
    per_level_below: Sequence[Sequence[int]]

    def insert(self, draw: st.DrawFn, key: str) -> None:
        """Add a key, as the first or the last."""
        others = dict(self.table)
        self.table.clear()
        new = {key: _product(self.per_level_below)}
        self.table.update({**new, **others} if draw(st.booleans()) else {**others, **new})


def _add_a_spelling(draw: st.DrawFn, site: _Site) -> None:
    site.insert(draw, draw(_spellings).format(site.key))
    draw(st.sampled_from([_lose, _empty, _empty]))(draw, site)


def _add_a_word(draw: st.DrawFn, site: _Site) -> None:
    site.insert(draw, draw(_words))
    if draw(st.booleans()):
        _lose(draw, site)


def _empty(draw: st.DrawFn, site: _Site) -> None:
    site.table[site.key] = draw(_falsy)


def _nullify(_: st.DrawFn, site: _Site) -> None:
    site.table[site.key] = None  # one falsy value of many, but the only one that is no entry


def _lose(_: st.DrawFn, site: _Site) -> None:
    site.table.pop(site.key, None)


def _replace(draw: st.DrawFn, site: _Site) -> None:
    site.table[site.key] = draw(_no_tables)


def _end_early(_: st.DrawFn, site: _Site) -> None:
    site.table[site.key] = {"at": []}


def _nest_deeper(_: st.DrawFn, site: _Site) -> None:
    site.table[site.key] = {site.key: site.table.get(site.key)}


_DAMAGES = (
    *(_add_a_spelling, _add_a_spelling, _add_a_word, _add_a_word),
    *(_lose, _empty, _nullify, _nullify, _replace, _end_early, _nest_deeper),
)


# ------------------------------------------------------------------ questions


def _wanted(level: int, numbers: list[int], own: str) -> st.SearchStrategy[int]:
    """The number to ask for at a level: mostly the one on the path, or one near it, or any."""
    exact = st.just(int(own))
    if level == _EXACT_LEVEL:  # many look-ups would end there, were it often another
        return st.integers(0, 19).flatmap(lambda one: _numbers if one == 13 else exact)
    middles = [(a + b) // 2 for a, b in combinations(numbers, 2)]
    beside = [max(1, number + step) for number in numbers for step in (-1, 1)]
    near = st.sampled_from([*numbers, *beside, *middles])
    return st.one_of(exact, exact, near, st.sampled_from(middles) if middles else near, _numbers)
