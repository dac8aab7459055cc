"""Folders that hold anything: every command that reads one ends well, or with one line."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.errors import AutotuneError
from autotune.export import VllmExporter
from autotune.export.bench import find_entry
from autotune.export.check.examine import check_folder
from autotune.export.check.surroundings import check as check_here
from autotune.launch.op import MOE_OPS
from tests.export.examples import H100, qkv_expand, qkv_shrink, selection
from tests.moe import layer_selections, moe_shape
from tests.profiles import examples

#: What a file may hold in place of anything, as JSON text.
HOSTILE = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-0.0", "0", "-1", "1.5", "true", "null"),
    *('""', '"\\u001b[2J\\u0007"', '"\\ud800"', '"a\\nb"', '"16"', "[]", "{}", "[[]]", "[null]"),
    *("9" * 4299, "-" + "9" * 4300, "9" * 5000, "[" * 300 + "]" * 300, "[" * 100_000),
    *('{"a":' * 300 + "1" + "}" * 300, '{"x":{"block_m":16}}', '"' + "x" * 5000 + '"'),
)

#: Keys in place of any other.
KEYS = ("", "-1", "016", " 16", "१६", "x", "\x1b[2J", "\ud800", "9" * 4300, "9" * 5000, "1.5", "/")

#: Stands in a document for hostile text until it is written.
MARK = "HOSTILE TEXT"


@functools.cache
def exported() -> dict[str, str]:
    """A folder with dense and MoE files: by their names their texts."""
    moe = layer_selections({op: {64: 10.0, 32: 9.0} for op in MOE_OPS})
    with tempfile.TemporaryDirectory() as name:
        chosen = [selection(qkv_shrink()), selection(qkv_expand()), *moe]
        VllmExporter().export(chosen, H100, Path(name), merge=False)
        return {path.name: path.read_text() for path in sorted(Path(name).iterdir())}


def mutated(text: str, rng: random.Random, hostile: str, key: str) -> str:
    """A file's text with one value or key changed."""
    content = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        below = node.items() if isinstance(node, dict) else enumerate(node)
        for name, value in list(below):
            places.append((node, name))
            if isinstance(value, dict | list):
                walk(value)

    walk(content)
    node, name = rng.choice(places)
    if isinstance(node, dict) and rng.random() < 0.3:
        node[key] = node.pop(name)
    elif rng.random() < 0.1:
        return hostile
    else:
        node[name] = MARK
    return json.dumps(content).replace(f'"{MARK}"', hostile)


def is_right(way: Callable[[], object]) -> bool:
    """Whether a function ends, or with an error that is one line and harmless."""
    try:
        way()
    except AutotuneError as error:
        text = " ".join(str(error).split())
        return text.isprintable() and len(text) < 2000
    return True


def read_in_every_way(folder: Path) -> None:
    """Check a folder, bench it as far as that needs no GPU, and add to it."""
    asked = [qkv_shrink(), qkv_expand(), *map(moe_shape, MOE_OPS), qkv_shrink(num_tokens=99)]
    ways: list[Callable[[], object]] = [
        lambda: [str(one) for one in _check(folder, asked).findings],
        lambda: json.dumps(_check(folder, asked).as_dict()),
        lambda: check_here(folder, {None: asked}),
        *(functools.partial(find_entry, folder, shape, H100.gpu) for shape in asked),
        lambda: _export(folder, [selection(qkv_shrink(num_tokens=64))]),
        lambda: _export(folder, layer_selections({MOE_OPS[0]: {64: 9.0}}, num_tokens=8)),
    ]
    for way in ways:
        assert is_right(way)
    with contextlib.suppress(AutotuneError):
        assert all(str(one).isprintable() for one in _check(folder, asked).findings)


def _check(folder: Path, asked: list[Any]) -> Any:
    return check_folder(folder, asked={H100.gpu: asked}, device=None, release="0.15.1", environ={})


def _export(folder: Path, selections: list[Any]) -> None:
    VllmExporter().export(selections, H100, folder, merge=True)


@pytest.mark.slow
@settings(max_examples=examples(150), deadline=None)
@given(
    st.sampled_from(sorted(exported())),
    st.randoms(use_true_random=False),
    st.sampled_from(HOSTILE),
    st.sampled_from(KEYS),
)
def test_a_file_with_anything_in_any_place_ends_in_success_or_one_line(name, rng, hostile, key):
    with tempfile.TemporaryDirectory() as folder:
        for each, text in exported().items():
            new = mutated(text, rng, hostile, key) if each == name else text
            (Path(folder) / each).write_bytes(new.encode("utf-8", "surrogatepass"))
        read_in_every_way(Path(folder))


@pytest.mark.slow
@settings(max_examples=examples(30), deadline=None)
@given(st.sampled_from(sorted(exported())), st.binary(max_size=9), st.integers(0, 5000))
def test_a_file_with_any_bytes_in_it_ends_in_success_or_one_line(name, junk, at):
    with tempfile.TemporaryDirectory() as folder:
        for each, text in exported().items():
            content = text.encode()
            new = content[:at] + junk + content[at + 1 :] if each == name else content
            (Path(folder) / each).write_bytes(new)
        read_in_every_way(Path(folder))
