"""One tuned file: whether vLLM gets through its keys, and can launch what it finds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from autotune.export.check.findings import Finding
from autotune.export.check.limits import Limits
from autotune.files import read_file
from autotune.launch.op import LookupKey, LoraOp, key_of, key_text
from autotune.launch.release import has_pipeline
from autotune.launch.shape import DTYPE_BYTES
from autotune.launch.sizes import tile_values
from autotune.launch.space import value_fault

#: What a weight takes at the least: a file does not say in which dtype its kernels run.
_VALUE_BYTES = min(DTYPE_BYTES.values())


class TunedFile(NamedTuple):
    """A file that vLLM opens on some GPU.

    Attributes:
        name: Its name in the folder.
        prefix: The GPU's part of the name.
        op: The op whose entries it holds.
        content: Its content, which may be any JSON value.
    """

    name: str
    prefix: str
    op: LoraOp
    content: Any


class Entry(NamedTuple):
    """An entry of a file.

    Attributes:
        keys: The keys above it, as they are spelled.
        values: The parameters.
    """

    keys: tuple[str, ...]
    values: Mapping[str, Any]

    @property
    def key(self) -> LookupKey:
        """The keys as the numbers that vLLM compares."""
        return key_of(map(int, self.keys))


@dataclass(frozen=True, slots=True)
class Examined:
    """A tuned file that could be read, its entries, and what is wrong with them."""

    file: TunedFile
    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...]


def read_content(folder: Path, name: str) -> object | Finding:
    """The content of a file, or why vLLM stops on it."""
    try:
        content: object = json.loads(read_file(Path(f"{folder}/{name}")))
    except (OSError, ValueError, RecursionError) as error:
        return Finding(
            severity="error",
            kind="broken_file",
            file=name,
            message=f"vLLM would stop when it opens it: {error}; export it again, or move it away",
        )
    return content


def walk(file: TunedFile) -> Iterator[Entry | Finding]:
    """Every entry of a file, and everything that is wrong with the keys above the entries."""
    if file.content:
        yield from _below(file, file.content, ())
    else:
        yield Finding(
            severity="warning",
            kind="empty_file",
            file=file.name,
            message="it holds nothing: vLLM takes its default; tune into it, or move it away",
        )


def _below(file: TunedFile, table: object, keys: tuple[str, ...]) -> Iterator[Entry | Finding]:
    levels = file.op.levels
    if isinstance(table, dict) and len(keys) == len(levels):
        yield Entry(keys, table)
        return
    error = partial(Finding, severity="error", kind="structure", file=file.name, key=key_text(keys))
    if not isinstance(table, dict):
        wanted = "an entry" if len(keys) == len(levels) else f"the {levels[len(keys)]} keys"
        yield error(
            message=f"{_shown(table)} where {wanted} should be: "
            "vLLM would stop when it looks in there; take the key out, or tune again"
        )
    elif not table:
        yield error(
            message=f"there are no {levels[len(keys)]} keys: "
            "vLLM would stop with a ValueError; take the empty object out"
        )
    elif not any(map(_is_integer, table)):
        yield error(
            kind="missing_level",
            message=f"the level of {levels[len(keys)]} keys is missing, there is "
            f"{', '.join(table)}: vLLM would stop with a ValueError; nest the entries under "
            f"{', '.join(levels)}",
        )
    else:
        for key, below in table.items():
            is_integer = _is_integer(key)
            if not is_integer or str(int(key)) != key:
                yield _key_finding(file, keys, key)
            if is_integer:
                yield from _below(file, below, (*keys, key))


def _key_finding(file: TunedFile, above: tuple[str, ...], key: str) -> Finding:
    """What is wrong with a key that is no integer, or not spelled as vLLM spells it."""
    level = file.op.levels[len(above)]
    finding = partial(Finding, file=file.name, key=key_text((*above, key)))
    if _is_integer(key):
        return finding(
            severity="warning",
            kind="key_spelling",
            message=f"vLLM asks for {int(key)}, and never finds {key!r} as the exact key; "
            f"write {int(key)}",
        )
    if level == "num_slices":  # which is looked up exactly, so that no other key matters
        return finding(
            severity="warning",
            kind="key_spelling",
            message=f"the {level} key {key!r} is no integer: vLLM never asks for it; take it out",
        )
    return finding(
        severity="error",
        kind="key_not_integer",
        message=f"the {level} key {key!r} is no integer: vLLM would stop with a ValueError as "
        f"soon as it looks for a {level} that is not there; take it out",
    )


def entry_findings(file: TunedFile, entry: Entry, limits: Limits | None) -> Iterator[Finding]:
    """Why vLLM cannot launch a kernel with an entry.

    Args:
        file: The entry's file.
        entry: The entry.
        limits: Of the GPU; None where they are not known.
    """
    error = partial(Finding, severity="error", file=file.name, key=key_text(entry.keys))
    values = file.op.values_in(entry.values)
    missing = [name for name in file.op.required_parameters if name not in values]
    if missing:
        yield error(
            kind="missing_parameter",
            message=f"{', '.join(missing)} missing: vLLM would stop with a KeyError at the "
            "launch; tune the shape again",
        )
    runnable = {}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            yield error(
                kind="parameter_not_integer",
                message=f"{name} must be a whole number: got {_shown(value)}; "
                "vLLM would stop at the launch; tune the shape again",
            )
        elif fault := value_fault(name, value):
            yield error(
                kind="cannot_run",
                message=f"{fault}; vLLM would stop at the launch; tune the shape again",
            )
        else:
            runnable[name] = value
    # vLLM's MoE kernel may read only block_m of an entry: what the rest would need says nothing.
    if limits and not file.op.is_moe and {*file.op.required_parameters} <= runnable.keys():
        needed = _shared_memory_bytes(file.op, runnable, depth=entry.key.k, limits=limits)
        if needed > limits.shared_memory_bytes:
            yield error(
                kind="shared_memory",
                message=f"needs at least {needed} bytes of shared memory a block, and "
                f"{limits.shared_memory_bytes} are there: vLLM would stop at the launch; "
                "tune the shape again",
            )


def _shared_memory_bytes(
    op: LoraOp, values: Mapping[str, int], *, depth: int, limits: Limits
) -> int:
    """What a dense op's pipeline needs for certain, bytes a block.

    Args:
        op: The op.
        values: All its parameters.
        depth: The size that is summed over, k.
        limits: Of the GPU.
    """
    if not has_pipeline(op, limits.capability):
        return 0
    steps = -(-depth // (values["block_k"] * values.get("split_k", 1)))
    if steps <= 1:
        return 0  # the compiler may unroll a loop of one step, which leaves nothing to pipeline
    tile = tile_values(op, values["block_m"], values["block_n"], values["block_k"])
    return min(values["num_stages"] - 1, steps) * tile * _VALUE_BYTES


def _is_integer(key: str) -> bool:
    try:
        int(key)
    except ValueError:
        return False
    return True


def _shown(value: object) -> str:
    """A value from a file, cut to what a line has room for."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
