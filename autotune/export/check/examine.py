"""Checking a folder of tuned files against what vLLM does with it.

Reads the folder and nothing else: the GPU's name, vLLM's release and the process's environment are
the caller's to give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from autotune.errors import EntryMissing, InputError
from autotune.export.check.agreement import coupling_findings, layer_findings
from autotune.export.check.entries import (
    Entry,
    Examined,
    TunedFile,
    entry_findings,
    read_content,
    walk,
)
from autotune.export.check.findings import Finding, LookedUp, Report
from autotune.export.check.folder import bypassed, missing_files, switched_off
from autotune.export.check.limits import Limits, limits_of
from autotune.export.lookup import look_up
from autotune.export.names import meant_name, names_in, parse_name, provenance_prefixes
from autotune.launch.environment import Device
from autotune.launch.op import LoraOp, gpu_file_prefix
from autotune.launch.shape import KernelShape

#: Kinds that tell what a folder lacks or also holds. Who has just exported chose that: models may
#: share a folder, and so may GPUs.
KINDS_OF_CHOICE = frozenset(
    {"expand_file_missing", "moe_files_missing", "matches_no_layer", "other_gpu", "bypassed"}
)


def check_folder(
    folder: Path,
    *,
    asked: Mapping[str, Sequence[KernelShape]],
    device: Device | None,
    release: str,
    environ: Mapping[str, str],
) -> Report:
    """Check a folder as ``VLLM_TUNED_CONFIG_FOLDER`` would name it.

    Args:
        folder: The folder.
        asked: Per GPU that the folder is for, by the name that ``torch.cuda.get_device_name()``
            gives, or its part of the files' names, the shapes to look up; none where only the
            files are checked.
        device: The GPU that is here, whose limits are known; None where there is none.
        release: vLLM's version, whose behaviour is told.
        environ: The environment variables that vLLM would be started with.

    Raises:
        InputError: There is no such folder, or nothing in it that looks like a tuned file.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give the one that autotune run wrote")
    named = list(_name_findings(folder, asked))
    files, broken = _read_all(folder, asked)
    if not files and not broken and not named:
        raise InputError(f"{folder} holds no tuned file: give the folder that autotune run wrote")
    read = {file.name: _examined(file, device) for file in files}
    lookups, looked = _look_up_all(asked, read, {finding.file for finding in broken})
    coupled = list(_coupled(read.values(), broken))
    findings = [
        *named,
        *broken,
        *(finding for each in read.values() for finding in each.findings),
        *coupled,
        *_layers(lookups, told={finding.place for finding in coupled}),
        *looked,
        *_unmatched(asked, read.values()),
        *missing_files(asked, read, environ),
        *bypassed(read.values(), release),
        *switched_off(environ),
    ]
    unique = sorted(dict.fromkeys(findings), key=lambda finding: not finding.is_error)
    return Report(
        folder=str(folder), release=release, findings=tuple(unique), lookups=tuple(lookups)
    )


# ------------------------------------------------------------------ the files


def _name_findings(folder: Path, gpus: Iterable[str]) -> Iterator[Finding]:
    known = {gpu_file_prefix(gpu) for gpu in gpus} | set(provenance_prefixes(folder))
    for text in names_in(folder):
        name, meant = parse_name(text), meant_name(text)
        if meant:
            yield Finding(
                severity="error",
                kind="file_name",
                file=text,
                message=f"no GPU's name gives this file name: vLLM would never read it; "
                f"rename it, to {meant} perhaps",
            )
        elif name and name.prefix not in known:
            yield Finding(
                severity="error",
                kind="other_gpu",
                file=text,
                message=f"this GPU's files begin with {' or '.join(sorted(known))}: vLLM would "
                "never read this one; rename it if it was tuned there, or move it away",
            )


def _read_all(folder: Path, gpus: Iterable[str]) -> tuple[list[TunedFile], list[Finding]]:
    """Every tuned file, those first that lie deeper since a GPU's name has a ``/``."""
    of_gpus = [
        f"{gpu_file_prefix(gpu)}{suffix}"
        for gpu in gpus
        for op in LoraOp
        for suffix in op.file_suffixes
        if Path(f"{folder}/{gpu_file_prefix(gpu)}{suffix}").is_file()
    ]
    files, broken = [], []
    for name in filter(None, map(parse_name, dict.fromkeys([*of_gpus, *names_in(folder)]))):
        content = read_content(folder, name.text)
        if isinstance(content, Finding):
            broken.append(content)
        else:
            files.append(TunedFile(name.text, name.prefix, name.op, content))
    return files, broken


def _examined(file: TunedFile, device: Device | None) -> Examined:
    limits = _limits(file.prefix, device)
    walked = list(walk(file))
    entries = tuple(each for each in walked if isinstance(each, Entry))
    of_keys = [each for each in walked if isinstance(each, Finding)]
    of_entries = [finding for each in entries for finding in entry_findings(file, each, limits)]
    return Examined(file, entries, (*of_keys, *of_entries))


def _limits(prefix: str, device: Device | None) -> Limits | None:
    if device is not None and gpu_file_prefix(device.name) == prefix:
        return Limits(device.capability, device.shared_memory_bytes)
    return limits_of(prefix)


def _coupled(read: Iterable[Examined], broken: Iterable[Finding]) -> Iterator[Finding]:
    """The coupling of each GPU's MoE files, unless one that is there cannot be read."""
    by_gpu: dict[str, dict[LoraOp, tuple[TunedFile, Sequence[Entry]]]] = {}
    for each in read:
        if each.file.op.is_moe:
            by_gpu.setdefault(each.file.prefix, {})[each.file.op] = (each.file, each.entries)
    unreadable = {name.prefix for name in (parse_name(one.file) for one in broken) if name}
    for prefix, files in by_gpu.items():
        if prefix not in unreadable:
            yield from coupling_findings(prefix, files)


# ------------------------------------------------------------------ the shapes


def _look_up_all(
    asked: Mapping[str, Sequence[KernelShape]], read: Mapping[str, Examined], broken: set[str]
) -> tuple[list[LookedUp], list[Finding]]:
    lookups, findings = [], []
    without: Counter[str] = Counter()
    for gpu, shapes in asked.items():
        for shape in shapes:
            name = shape.file_name(gpu)
            if name in read:
                lookup, finding = _looked_up(gpu, shape, read[name].file.content)
                findings += [finding] if finding else []
            elif name in broken:  # which is told of the file
                lookup = LookedUp(gpu=gpu, shape=shape, outcome="stops")
            else:
                lookup = LookedUp(gpu=gpu, shape=shape, outcome="default")
                without[name] += 1
            lookups.append(lookup)
    return lookups, findings + [_no_file(name, count) for name, count in without.items()]


def _layers(lookups: Iterable[LookedUp], told: set[str]) -> Iterator[Finding]:
    """The coupling of the layers that were asked for, each GPU's by itself."""
    by_gpu: dict[str, list[LookedUp]] = {}
    for lookup in lookups:
        by_gpu.setdefault(lookup.gpu, []).append(lookup)
    for of_gpu in by_gpu.values():
        yield from layer_findings(of_gpu, told)


def _no_file(name: str, count: int) -> Finding:
    return Finding(
        severity="warning",
        kind="no_file",
        file=name,
        message=f"is not there: vLLM takes its default for {count} of the shapes asked for; "
        "tune them on this GPU",
    )


def _looked_up(gpu: str, shape: KernelShape, table: Any) -> tuple[LookedUp, Finding | None]:  # noqa: ANN401 - any JSON
    key = shape.lookup_key
    finding = partial(Finding, file=shape.file_name(gpu), key=_text(key))
    try:
        found = look_up(table, key)
    except EntryMissing as error:
        if error.vllm_error is None:  # an empty file, which is told of the file
            return LookedUp(gpu=gpu, shape=shape, outcome="default"), None
        return LookedUp(gpu=gpu, shape=shape, outcome="stops"), finding(
            severity="error",
            kind="missing_num_slices" if error.vllm_error == "KeyError" else "lookup_stops",
            message=f"{error} ({error.vllm_error} in the server)",
        )
    if found.path == key:
        return LookedUp(
            gpu=gpu, shape=shape, outcome="exact", path=found.path, entry=found.leaf
        ), None
    distances = ", ".join(
        f"{level} {taken} in place of {wanted} ({abs(taken - wanted)} off)"
        for level, wanted, taken in zip(shape.op.levels, key, found.path, strict=True)
        if taken != wanted
    )
    return LookedUp(
        gpu=gpu, shape=shape, outcome="nearest", path=found.path, entry=found.leaf
    ), finding(
        severity="warning",
        kind="nearest_key",
        message=f"not there: vLLM takes the nearest, {_text(found.path)}: {distances}; tune it too",
    )


def _unmatched(
    asked: Mapping[str, Sequence[KernelShape]], read: Iterable[Examined]
) -> Iterator[Finding]:
    """The sizes in a GPU's files that no shape which was asked for has."""
    sizes: dict[str, set[tuple[int, ...]]] = {}
    for gpu, shapes in asked.items():
        for shape in shapes:
            sizes.setdefault(shape.file_name(gpu), set()).add(shape.lookup_key[3:])
    for each in read:
        known = sizes.get(each.file.name)
        others = [] if known is None else dict.fromkeys(entry.path[3:] for entry in each.entries)
        for size in others:
            if size not in (known or ()):
                yield Finding(
                    severity="warning",
                    kind="matches_no_layer",
                    file=each.file.name,
                    message=f"no shape asked for has {_sizes(each.file.op, size)}, which entries "
                    "here are for: right for another model or rank, else they only ever mislead "
                    "the nearest key",
                )


def _sizes(op: LoraOp, sizes: Iterable[int]) -> str:
    """The last keys of a path in words, such as ``k 4096 and n 16``."""
    return " and ".join(f"{name} {size}" for name, size in zip(op.levels[3:], sizes, strict=True))


def _text(key: Iterable[int]) -> str:
    return "/".join(map(str, key))
