"""One tuned file: whether vLLM gets through its keys, and can launch what it finds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from autotune.errors import ShapeError, shown
from autotune.export.check.findings import Finding
from autotune.export.check.limits import Limits
from autotune.export.lookup import keys_in
from autotune.files import read_file
from autotune.launch.config import KernelConfig
from autotune.launch.op import (
    MOE_DEFAULTS,
    PARAMETER_DEFAULTS,
    LookupKey,
    LoraOp,
    key_of,
    key_text,
)
from autotune.launch.release import has_pipeline, one_shot_rank
from autotune.launch.rules import WASTE_RULES, broken_rules, memory_rejection, value_fault
from autotune.launch.shape import DTYPE_BYTES, KernelShape
from autotune.measure.kernels.defaults import default_config

#: More slices than any layer has; the default is the same for all numbers from two on.
_MANY_SLICES = 4

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
            message=f"{shown(table)} where {wanted} should be: "
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
            f"{keys_in(table)}: vLLM would stop "
            f"with a ValueError; nest the entries under {', '.join(levels)}",
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
            message=f"vLLM asks for {int(key)}, and never finds {shown(key)} as the exact key; "
            f"write {int(key)}",
        )
    if level == "num_slices":  # which is looked up exactly, so that no other key matters
        return finding(
            severity="warning",
            kind="key_spelling",
            message=f"the {level} key {shown(key)} is no integer: vLLM never asks for it; "
            "take it out",
        )
    return finding(
        severity="error",
        kind="key_not_integer",
        message=f"the {level} key {shown(key)} is no integer: vLLM would stop with a ValueError as "
        f"soon as it looks for a {level} that is not there; take it out",
    )


def entry_findings(
    file: TunedFile, entry: Entry, *, limits: Limits | None, release: str
) -> Iterator[Finding]:
    """Why vLLM cannot launch a kernel with an entry, or why the search would not have tried it.

    Args:
        file: The entry's file.
        entry: The entry.
        limits: Of the GPU; None where they are not known.
        release: vLLM's release.
    """
    faults = list(_value_faults(file.op, entry.values))
    if faults:
        for kind, message in faults:
            yield Finding(
                severity="error",
                kind=kind,
                file=file.name,
                key=key_text(entry.keys),
                message=f"{message}; tune the shape again",
            )
    elif not file.op.is_moe or entry.key.k > one_shot_rank(release):  # else block_m alone is read
        yield from _rule_findings(file, entry, limits)


def _value_faults(op: LoraOp, entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Per value that no kernel runs with the kind of finding, and what vLLM does then."""
    values = op.values_in(entry)
    missing = [name for name in op.required_parameters if name not in values]
    if missing:
        yield (
            "missing_parameter",
            f"{', '.join(missing)} missing: vLLM would stop with a KeyError at the launch",
        )
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            yield (
                "parameter_not_integer",
                f"{name} must be a whole number: got {shown(value)}; vLLM would stop at the launch",
            )
        elif fault := value_fault(name, value):
            yield "cannot_run", f"{fault}; vLLM would stop at the launch"


def _rule_findings(file: TunedFile, entry: Entry, limits: Limits | None) -> Iterator[Finding]:
    """The search's rules that an entry breaks, whose values are all right each for itself."""
    op, finding = file.op, partial(Finding, file=file.name, key=key_text(entry.keys))
    given = MOE_DEFAULTS if op.is_moe else PARAMETER_DEFAULTS
    values: dict[str, Any] = {**given, **op.values_in(entry.values)}
    config = KernelConfig(**{name: values[name] for name in op.parameters})
    # The m, n and k of a dense op's product are those of its key; a MoE op's depend on its experts.
    sizes = None if op.is_moe else (entry.key.m, entry.key.n, entry.key.k)
    for broken in broken_rules(config, sizes):
        if broken.rule not in WASTE_RULES:
            yield finding(
                severity="error",
                kind=broken.rule,
                message=f"{broken.reason}: compiling it may take minutes while vLLM serves; "
                "tune the shape again",
            )
        elif not _is_default(file, entry, config):
            yield finding(
                severity="warning",
                kind=broken.rule,
                message=f"{broken.reason}: the search would not try it; tune the shape again",
            )
    if limits is None:
        return
    if not has_pipeline(op, limits.capability):
        config = replace(config, num_stages=1)
    broken_memory = memory_rejection(
        op, config, value_bytes=_VALUE_BYTES, limit_bytes=limits.shared_memory_bytes
    )
    if broken_memory:
        yield finding(
            severity="error",
            kind=broken_memory.rule,
            message=f"{broken_memory.reason}: vLLM would stop at the launch; tune the shape again",
        )


def _is_default(file: TunedFile, entry: Entry, config: KernelConfig) -> bool:
    """Whether a dense entry is vLLM's default, which is right where nothing is faster."""
    key = entry.key
    table: dict[str, Any] = {
        "op": file.op.value,
        "num_tokens": key.m,
        "max_loras": key.max_loras - 1,
    }
    if file.op is LoraOp.SHRINK:
        table |= {"hidden_size": key.k, "rank": key.n, "num_slices": key.num_slices}
    else:
        table |= {"rank": key.k, "slice_sizes": [key.n] * min(key.num_slices, _MANY_SLICES)}
    try:
        return config == default_config(KernelShape.from_mapping(table))
    except ShapeError:  # vLLM never asks for it
        return False


def _is_integer(key: str) -> bool:
    try:
        int(key)
    except ValueError:
        return False
    return True
